"""The contenders of ``sqs_cost.py`` and their works.

``sqs_cost.py`` runs this program once for each contender, work and round, so that the connections and the CPU of one
contender do not count for another.  The argument is a task as JSON.  The program prints its figures as JSON.

A message has 256 bytes and two attributes.  SQS takes only text, so every client encodes the bytes in base64.  Kombu
puts the attributes into an envelope of its own, which is the body.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import contenders
from contenders import (
    PAYLOAD,
    RESPONSE,
    attributes,
    read,
    receive_backlog,
    send_batches,
    send_concurrently,
)
from contest import Figures

TIMEOUT = 200.0
"""Seconds after which a work has failed."""
REGION = "us-east-1"
FULL = 10
"""Most entries of a request, and most messages of an answer, of both services."""
IN_FLIGHT = 8
"""Requests of the floor that are out at once."""
WAIT = 20
"""Seconds of a long poll."""
HANDLERS = 100
IDLE = 60.0
SETTLED = 3.0
"""Seconds after which an idle receiver does nothing more of its beginning."""


@dataclass(frozen=True, kw_only=True)
class Task(contenders.Task):
    """A work on an emulator."""

    address: str
    """The URL of the endpoint."""
    topology: str
    """``sns``: a topic with a queue; ``queue``: a queue alone."""
    fifo: bool = False
    keys: int = 0
    """Number of ordering keys."""
    topic_arn: str = ""
    queue_url: str = ""

    @property
    def receives(self) -> bool:
        return self.work in ("receive", "receive one by one", "all at once", "idle")

    def key(self, number: int) -> str | None:
        return f"shop-{number % self.keys}" if self.keys else None


class Contender(contenders.Contender[Task]):
    """A client of one topic and one subscription."""


class Ours(Contender):
    """events-sqs, with its default settings."""

    async def open(self) -> None:
        from events_core import EventMessage, create_client

        self.message = EventMessage
        options = {
            "endpoint_url": self.task.address,
            "topology": self.task.topology,
            "ordering": str(self.task.fifo).lower(),
            "subscription": self.task.subscription,
        }
        url = f"sqs://{REGION}/{self.task.topic}?{urlencode(options)}"
        self.client = await self.stack.enter_async_context(create_client(url))
        if self.task.receives:
            self.receiver = await self.stack.enter_async_context(self.client.subscribe())

    def made(self, number: int) -> Any:
        return self.message(PAYLOAD, attributes(number), ordering_key=self.task.key(number))

    async def send(self, number: int) -> None:
        await self.client.send_message(self.made(number))

    async def send_batch(self, numbers: Iterable[int]) -> None:
        await self.client.send_messages([self.made(number) for number in numbers])

    async def take(self) -> int:
        messages = await self.receiver.receive_messages(RESPONSE)
        for message in messages:
            read(message.data, message.attributes)
        await self.receiver.acknowledge_messages(messages)
        return len(messages)

    async def handle(self, messages: int) -> None:
        """Handle *messages* with 100 handlers; each acknowledges its message by itself."""
        from events_core import consume

        stop = asyncio.Event()
        left = messages

        async def handler(message: Any) -> None:
            nonlocal left
            read(message.data, message.attributes)
            left -= 1
            if not left:
                stop.set()

        await consume(self.receiver, handler, concurrency=HANDLERS, stop=stop)

    async def wait(self, seconds: float) -> None:
        assert await self.receiver.receive_message(seconds) is None


class Floor(Contender):
    """Bare aiobotocore: requests of ten, written by hand, several at once."""

    async def open(self) -> None:
        from aiobotocore.session import get_session

        session = get_session()
        self.clients = {}
        for service in ("sqs", "sns"):
            client = session.create_client(service, region_name=REGION, endpoint_url=self.task.address)
            self.clients[service] = await self.stack.enter_async_context(client)
        self.sqs = self.clients["sqs"]

    def entry(self, number: int) -> dict[str, Any]:
        made = {
            "Id": str(number % FULL),
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in attributes(number).items()
            },
            "Message" if self.task.topology == "sns" else "MessageBody": base64.b64encode(PAYLOAD).decode(),
        }
        if key := self.task.key(number):
            made |= {"MessageGroupId": key, "MessageDeduplicationId": str(number)}
        return made

    async def publish(self, numbers: Sequence[int]) -> None:
        entries = [self.entry(number) for number in numbers]
        if self.task.topology == "sns":
            done = await self.clients["sns"].publish_batch(
                TopicArn=self.task.topic_arn, PublishBatchRequestEntries=entries
            )
        else:
            done = await self.sqs.send_message_batch(QueueUrl=self.task.queue_url, Entries=entries)
        assert not done.get("Failed"), done["Failed"]

    async def send(self, number: int) -> None:
        await self.publish([number])

    async def send_batch(self, numbers: Iterable[int]) -> None:
        listed = list(numbers)
        tens = iter([listed[first : first + FULL] for first in range(0, len(listed), FULL)])

        async def sender() -> None:
            for ten in tens:
                await self.publish(ten)

        await asyncio.gather(*(sender() for _ in range(IN_FLIGHT)))

    async def send_concurrently(self, messages: int) -> None:
        """Keep full requests out.  No task waits for a single message."""
        await self.send_batch(range(messages))

    async def take(self) -> int:
        return sum(await asyncio.gather(*(self.take_ten() for _ in range(IN_FLIGHT))))

    async def take_ten(self) -> int:
        got = await self.sqs.receive_message(
            QueueUrl=self.task.queue_url,
            MaxNumberOfMessages=FULL,
            WaitTimeSeconds=1,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
        )
        messages = got.get("Messages", [])
        for message in messages:
            values = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
            read(base64.b64decode(message["Body"]), values)
        if messages:
            handles = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(messages)]
            done = await self.sqs.delete_message_batch(QueueUrl=self.task.queue_url, Entries=handles)
            assert not done.get("Failed"), done["Failed"]
        return len(messages)


class Kombu(Contender):
    """Kombu's SQS transport, on a bare queue.  It blocks, so it has the process for itself."""

    async def open(self) -> None:
        import kombu

        where = self.task.address.removeprefix("http://")
        queue = self.task.queue_url.rpartition("/")[2]
        self.connection = self.stack.enter_context(
            kombu.Connection(
                f"sqs://test:test@{where}",
                transport_options={
                    "region": REGION,
                    "wait_time_seconds": WAIT,
                    "is_secure": False,
                    "predefined_queues": {queue: {"url": self.task.queue_url}},
                },
            )
        )
        channel = self.connection.channel()
        self.queue = queue
        self.arrivals: list[Any] = []
        if self.task.receives:
            channel.basic_qos(0, RESPONSE, False)
            consumer = kombu.Consumer(
                channel, [kombu.Queue(queue, no_declare=True)], on_message=self.arrivals.append, auto_declare=False
            )
            self.stack.enter_context(consumer)
        self.producer = kombu.Producer(channel, auto_declare=False)

    async def send(self, number: int) -> None:
        self.producer.publish(PAYLOAD, routing_key=self.queue, headers=attributes(number))

    async def send_batch(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            await self.send(number)

    async def send_concurrently(self, messages: int) -> None:
        await self.send_batch(range(messages))

    async def take(self) -> int:
        # An answer that brings nothing is an error here.
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=1)
        taken, self.arrivals[:] = [*self.arrivals], []
        for message in taken:
            read(message.body, message.headers)
            message.ack()
        return len(taken)


CONTENDERS: dict[str, type[Contender]] = {"ours": Ours, "floor": Floor, "kombu": Kombu}


# Works of ours, whose calls are counted


async def counted(work: Awaitable[object], messages: int) -> Figures:
    """Await *work*, and return when it began and ended, for the proxy that counts."""
    began = time.time()
    await work
    return {"messages": messages, "began": began, "ended": time.time()}


async def fill(contender: Contender) -> Figures:
    """Send what the same contender is to receive, because each has a form of its own."""
    await contender.send_batch(range(contender.task.messages))
    return {}


async def receive_one_by_one(contender: Ours) -> Figures:
    """Receive and acknowledge a backlog, which was there before."""
    return await counted(contender.handle(contender.task.messages), contender.task.messages)


async def send_one_by_one(contender: Ours) -> Figures:
    return await counted(contender.send_concurrently(contender.task.messages), contender.task.messages)


async def all_at_once(contender: Ours) -> Figures:
    """Receive and acknowledge what is being sent."""
    messages = contender.task.messages
    both = asyncio.gather(contender.send_concurrently(messages), contender.handle(messages))
    return await counted(both, messages)


async def idle(contender: Ours) -> Figures:
    """Wait for a message that does not come; what follows the start of a receiver does not count."""
    await contender.wait(SETTLED)
    return await counted(contender.wait(IDLE), 0)


WORKS: dict[str, Callable[[Any], Awaitable[Figures]]] = {
    "concurrently": send_concurrently,
    "batches": send_batches,
    "receive": receive_backlog,
    "fill": fill,
    "send one by one": send_one_by_one,
    "receive one by one": receive_one_by_one,
    "all at once": all_at_once,
    "idle": idle,
}


async def main(task: Task) -> None:
    async with CONTENDERS[task.contender](task) as contender, asyncio.timeout(TIMEOUT):
        figures = await WORKS[task.work](contender)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Task(**json.loads(sys.argv[1]))))
