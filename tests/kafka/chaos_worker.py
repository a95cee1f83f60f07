"""A producer or a consumer in a process of its own, which writes down what it did and when.

::

    python chaos_worker.py producer ADDRESS TOPIC MESSAGES SECONDS
    python chaos_worker.py consumer ADDRESS TOPIC SESSION_TIMEOUT

Each line of the output is an event, the time (``time.monotonic()``, which all processes of a machine share) and the
number of a message:

* *c* it was confirmed,
* *r* it was handed out; its partition and its offset follow,
* *n* it is to be nacked,
* *d* it is done and to be acknowledged, then *a* it was acknowledged or *x* the acknowledgement failed.

The number says the key of a message, and its place among those of the key: see :func:`key_of`.  A consumer prints
*ready* when it has joined, and ends when its input closes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time

from events_core import (
    AcknowledgeError,
    EventClient,
    EventConfig,
    EventMessage,
    EventReceiver,
    ReceivedMessage,
    create_client,
)

KEYS = 500
SUBSCRIPTION = "chaos"
FAILURES = 0.05
TASKS = 20
"""Messages that a consumer handles at once."""
HANDLING = 0.02
"""Most seconds that a message takes."""
BATCH = 100
"""Messages of one ``send_messages``."""
PADDING = b"x" * 240
"""With the number, about 256 bytes."""


def key_of(number: int) -> tuple[int, int]:
    """Return the key of a message, and its place among those of the key."""
    return number % KEYS, number // KEYS


def note(event: str, *fields: object) -> None:
    print(event, f"{time.monotonic():.6f}", *fields, flush=True)


def connect(address: str, topic: str, session_timeout: float) -> EventClient:
    options: dict[str, object] = {
        "bootstrap_servers": address,
        "create": "subscription",
        "start": "earliest",
        "session_timeout": session_timeout,
        "send_timeout": 300,
        "connect_timeout": 120,
    }
    return create_client(EventConfig(topic, options=options, backend="kafka"))


async def produce(address: str, topic: str, messages: int, seconds: float) -> None:
    """Send *messages* evenly over *seconds*."""
    began = time.monotonic()
    async with connect(address, topic, 45) as client:
        for first in range(0, messages, BATCH):
            await asyncio.sleep(began + seconds * first / messages - time.monotonic())
            numbers = range(first, min(first + BATCH, messages))
            await client.send_messages(
                EventMessage(b"%d %b" % (number, PADDING), ordering_key=f"key-{key_of(number)[0]}")
                for number in numbers
            )
            for number in numbers:
                note("c", number)


async def consume(address: str, topic: str, session_timeout: float) -> None:
    input_closed = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with connect(address, topic, session_timeout) as client, client.subscribe(SUBSCRIPTION) as receiver:
        print("ready", flush=True)

        async def work() -> None:
            while not input_closed.done():
                if message := await receiver.receive_message(0.5):
                    await handle(receiver, message)

        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(work())


async def handle(receiver: EventReceiver, message: ReceivedMessage) -> None:
    number = int(message.data.split()[0])
    _, partition, offset = message.message_id.rsplit("/", 2)
    note("r", number, partition, offset)
    await asyncio.sleep(random.uniform(0, HANDLING))
    if random.random() < FAILURES:
        note("n", number)
        await receiver.nack(message)
        return
    # Before the call: another task may get the next message of the key before this one continues.
    note("d", number)
    try:
        await receiver.acknowledge(message)
    except AcknowledgeError:
        note("x", number)
    else:
        note("a", number)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    role, address, topic, *numbers = sys.argv[1:]
    if role == "producer":
        asyncio.run(produce(address, topic, int(numbers[0]), float(numbers[1])))
    else:
        asyncio.run(consume(address, topic, float(numbers[0])))


if __name__ == "__main__":
    main()
