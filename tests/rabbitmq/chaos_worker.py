"""A producer or a consumer in a process of its own, which writes down what it did and when.

::

    python -m rabbitmq.chaos_worker producer URL TOPIC FIRST STEP
    python -m rabbitmq.chaos_worker consumer URL TOPIC

Each line of the output is an event, the time (``time.monotonic()``, which all processes of a machine share) and the
number of a message:

* *b* a send began, *c* it was confirmed,
* *r* a message was received, *a* it was acknowledged, *x* its acknowledgement failed.

A consumer prints *ready* when it has joined.  A producer sends the numbers FIRST, FIRST + STEP and so on.  Both end
when their input closes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections.abc import Iterable

from events_core import AcknowledgeError, EventClient, EventConfig, EventMessage, create_client

CONCURRENCY = 50
"""Sends of one producer that are out at the same time."""
BATCH = 100
"""Most messages that a consumer takes at once."""
PADDING = b"x" * 240
"""With the number, about 256 bytes."""


def note(event: str, numbers: Iterable[int]) -> None:
    now = time.monotonic()
    sys.stdout.writelines(f"{event} {now:.6f} {number}\n" for number in numbers)
    sys.stdout.flush()


def connect(url: str, topic: str) -> EventClient:
    options = {
        "url": url,
        "subscription": f"{topic}-s",
        "create": "all",
        "send_timeout": "300",
        "ack_timeout": "300",
        "connect_timeout": "120",
        "heartbeat": "60",  # a busy machine is not taken for an outage, which would explain no duplicate
    }
    return create_client(EventConfig(topic, options=options, backend="rabbitmq"))


async def produce(url: str, topic: str, first: int, step: int) -> None:
    input_closed = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    numbers = itertools.count(first, step)
    async with connect(url, topic) as client, asyncio.TaskGroup() as group:

        async def send() -> None:
            while not input_closed.done():
                number = next(numbers)
                note("b", [number])
                await client.send_message(EventMessage(b"%d %b" % (number, PADDING)))
                note("c", [number])

        for _ in range(CONCURRENCY):
            group.create_task(send())


async def consume(url: str, topic: str) -> None:
    input_closed = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with connect(url, topic) as client, client.subscribe() as receiver:
        print("ready", flush=True)
        while not input_closed.done():
            messages = await receiver.receive_messages(BATCH, 0.5)
            numbers = {message.message_id: int(message.data.split()[0]) for message in messages}
            note("r", numbers.values())
            try:
                await receiver.acknowledge_messages(messages)
            except AcknowledgeError as error:
                note("x", [numbers.pop(identity) for identity in error.failed])
            note("a", numbers.values())


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    role, url, topic, *bounds = sys.argv[1:]
    asyncio.run(consume(url, topic) if role == "consumer" else produce(url, topic, *map(int, bounds)))


if __name__ == "__main__":
    main()
