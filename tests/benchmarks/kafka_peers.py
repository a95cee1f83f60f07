"""The contenders of ``kafka_cost.py`` and their works, each with the settings that measured best for it.

``kafka_cost.py`` runs this program once for each contender, work and round, so that the threads and connections of one
contender do not count for another.  The argument is a task as JSON.  The program prints its figures as JSON.

All send with an idempotent producer and ``acks=all``: messages with two headers and no key.  All receive as the only
member of a group.  The libraries commit in the background, once a second.  FastStream does so every 5 s, its default;
what a crash interrupts is then lost or comes again, so it is the fastest of its settings and not the safest.
"""

from __future__ import annotations

import asyncio
import json
import sys
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import contenders
from contenders import (
    BATCH,
    PAYLOAD,
    RESPONSE,
    SENDERS,
    attributes,
    receive_backlog,
    send_alone,
    send_batches,
    send_concurrently,
)
from contest import Figures

TIMEOUT = 120.0
"""Seconds after which a work has failed."""
COMMIT_INTERVAL_MS = 1000
MAX_BATCH_SIZE = 1 << 20
"""The batches of aiokafka, for a partition.  With its 16 KiB, a batch of some 50 messages has room for few of 2,000
senders: each time it is sent, all others wake up and wait again.  That costs eight times as much CPU."""


@dataclass(frozen=True, kw_only=True)
class Task(contenders.Task):
    """A work on a broker, which ``address`` names as host:port."""

    address: str

    @property
    def group(self) -> str:
        """The group of the subscription, by the rule of events-kafka."""
        return f"{self.topic}.{self.subscription}"


def read(value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> None:
    """Look at a record as an application does, because some clients decode only what is read."""
    assert value is not None
    assert len(value) == len(PAYLOAD)
    assert dict(headers)["kind"] == b"order.placed"


class Contender(contenders.Contender[Task]):
    """A client of one topic and one subscription."""

    @property
    def receives(self) -> bool:
        return self.task.work == "receive"


class Ours(Contender):
    """events-kafka, with its default settings."""

    async def open(self) -> None:
        from events_core import EventMessage, create_client

        self.message = EventMessage
        url = f"kafka://{self.task.address}/{self.task.topic}"
        if self.receives:
            url += f"?subscription={self.task.subscription}&create=subscription&start=earliest"
        self.client = await self.stack.enter_async_context(create_client(url))
        if self.receives:
            self.receiver = await self.stack.enter_async_context(self.client.subscribe())

    async def send(self, number: int) -> None:
        await self.client.send_message(self.message(PAYLOAD, attributes(number)))

    async def send_batch(self, numbers: Iterable[int]) -> None:
        await self.client.send_messages([self.message(PAYLOAD, attributes(number)) for number in numbers])

    async def take(self) -> int:
        messages = await self.receiver.receive_messages(RESPONSE)
        for message in messages:
            contenders.read(message.data, message.attributes)
        await self.receiver.acknowledge_messages(messages)
        return len(messages)


class Bare(Contender):
    """A client without asyncio.  It has the process for itself, so its calls may block the loop."""

    @abstractmethod
    def publish(self, number: int) -> None: ...

    @abstractmethod
    def drain(self, left: int) -> None:
        """Wait until only *left* messages are not confirmed."""

    async def send(self, number: int) -> None:
        self.publish(number)
        self.drain(0)

    async def send_batch(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.publish(number)
        self.drain(0)

    async def send_concurrently(self, messages: int) -> None:
        """Keep up to 2,000 messages out.  No task waits for a single message."""
        for first in range(0, messages, BATCH):
            self.drain(SENDERS - BATCH)
            for number in range(first, min(first + BATCH, messages)):
                self.publish(number)
        self.drain(0)


class Floor(Bare):
    """Bare confluent-kafka: a callback for each delivery report, and offsets that librdkafka commits."""

    async def open(self) -> None:
        import confluent_kafka

        self.positions = confluent_kafka.TopicPartition
        self.out = 0
        if self.receives:
            self.consumer = confluent_kafka.Consumer(
                {
                    "bootstrap.servers": self.task.address,
                    "group.id": self.task.group,
                    "auto.offset.reset": "earliest",
                    "enable.auto.offset.store": False,
                    "auto.commit.interval.ms": COMMIT_INTERVAL_MS,
                }
            )
            self.stack.callback(self.consumer.close)
            self.consumer.subscribe([self.task.topic])
        else:
            self.producer = confluent_kafka.Producer(
                {"bootstrap.servers": self.task.address, "enable.idempotence": True, "linger.ms": 0}
            )
            self.stack.callback(self.producer.flush)

    def publish(self, number: int) -> None:
        self.producer.produce(self.task.topic, PAYLOAD, headers=attributes(number), on_delivery=self._on_delivery)
        self.out += 1

    def _on_delivery(self, error: object, _: object) -> None:
        assert error is None, error
        self.out -= 1

    def drain(self, left: int) -> None:
        while self.out > left:
            self.producer.poll(1)

    async def take(self) -> int:
        messages = self.consumer.consume(RESPONSE, 1)
        last: dict[int, int] = {}
        for message in messages:
            assert message.error() is None, message.error()
            read(message.value(), message.headers())
            last[message.partition()] = message.offset() + 1
        if last:
            self.consumer.store_offsets(offsets=[self.positions(self.task.topic, *each) for each in last.items()])
        return len(messages)


class KafkaPython(Bare):
    """kafka-python."""

    async def open(self) -> None:
        import kafka  # type: ignore[import-not-found,unused-ignore]

        self.out: list[Any] = []
        if self.receives:
            self.consumer = kafka.KafkaConsumer(
                self.task.topic,
                bootstrap_servers=self.task.address,
                group_id=self.task.group,
                auto_offset_reset="earliest",
                auto_commit_interval_ms=COMMIT_INTERVAL_MS,
            )
            self.stack.callback(self.consumer.close)
        else:
            self.producer = kafka.KafkaProducer(
                bootstrap_servers=self.task.address, enable_idempotence=True, acks="all"
            )
            self.stack.callback(self.producer.close)

    def publish(self, number: int) -> None:
        headers = [(name, value.encode()) for name, value in attributes(number).items()]
        self.out.append(self.producer.send(self.task.topic, PAYLOAD, headers=headers))

    def drain(self, left: int) -> None:
        done = len(self.out) - left
        for future in self.out[:done]:
            future.get(TIMEOUT)
        del self.out[:done]

    async def take(self) -> int:
        batches = self.consumer.poll(1000, max_records=RESPONSE)
        for messages in batches.values():
            for message in messages:
                read(message.value, message.headers)
        return sum(map(len, batches.values()))


class AioKafka(Contender):
    """aiokafka."""

    async def open(self) -> None:
        import aiokafka

        if self.receives:
            self.consumer = aiokafka.AIOKafkaConsumer(
                self.task.topic,
                bootstrap_servers=self.task.address,
                group_id=self.task.group,
                auto_offset_reset="earliest",
                auto_commit_interval_ms=COMMIT_INTERVAL_MS,
            )
            await self.consumer.start()
            self.stack.push_async_callback(self.consumer.stop)
        else:
            self.producer = aiokafka.AIOKafkaProducer(
                bootstrap_servers=self.task.address, enable_idempotence=True, max_batch_size=MAX_BATCH_SIZE
            )
            await self.producer.start()
            self.stack.push_async_callback(self.producer.stop)

    async def send(self, number: int) -> None:
        headers = [(name, value.encode()) for name, value in attributes(number).items()]
        await self.producer.send_and_wait(self.task.topic, PAYLOAD, headers=headers)

    async def take(self) -> int:
        batches = await self.consumer.getmany(timeout_ms=1000, max_records=RESPONSE)
        for messages in batches.values():
            for message in messages:
                read(message.value, message.headers)
        return sum(map(len, batches.values()))


class ConfluentAsyncio(Contender):
    """The asyncio classes of confluent-kafka.  They cannot send headers."""

    async def open(self) -> None:
        from confluent_kafka.aio import AIOConsumer, AIOProducer

        if self.receives:
            self.consumer = AIOConsumer(
                {
                    "bootstrap.servers": self.task.address,
                    "group.id": self.task.group,
                    "auto.offset.reset": "earliest",
                    "auto.commit.interval.ms": COMMIT_INTERVAL_MS,
                }
            )
            self.stack.push_async_callback(self.consumer.close)
            await self.consumer.subscribe([self.task.topic])
        else:
            self.producer = AIOProducer(
                {"bootstrap.servers": self.task.address, "enable.idempotence": True, "linger.ms": 0},
                batch_size=BATCH,
                buffer_timeout=0.1,
            )
            self.stack.push_async_callback(self.producer.close)

    async def send(self, number: int) -> None:
        sent = await self.producer.produce(self.task.topic, PAYLOAD)
        if self.task.work == "alone":
            await self.producer.flush()  # otherwise it waits for the timer, also with batch_size=1
        await sent

    async def take(self) -> int:
        messages = await self.consumer.consume(RESPONSE, 1)
        for message in messages:
            assert message.error() is None, message.error()
            read(message.value(), message.headers())
        return len(messages)


class FastStream(Contender):
    """FastStream's KafkaBroker, which is on aiokafka; a handler for each message."""

    batch = False
    settings: ClassVar[dict[str, Any]] = {}

    async def open(self) -> None:
        from faststream.kafka import KafkaBroker
        from faststream.kafka.annotations import KafkaMessage

        self.broker = KafkaBroker(self.task.address, enable_idempotence=True, logger=None, **self.settings)
        self.handled = 0
        self.progress = asyncio.Event()
        if self.receives:
            # Its annotations cannot be strings of this module, because the names are local.
            async def handle(message: Any) -> None:
                records = message.raw_message if self.batch else [message.raw_message]
                for record in records:
                    read(record.value, record.headers)
                self.handled += len(records)
                self.progress.set()

            handle.__annotations__ = {"message": KafkaMessage, "return": None}
            more: dict[str, Any] = {"batch": True, "max_records": RESPONSE} if self.batch else {}
            subscriber = self.broker.subscriber(
                self.task.topic, group_id=self.task.group, auto_offset_reset="earliest", **more
            )
            subscriber(handle)
        await self.broker.start()
        self.stack.push_async_callback(self.broker.stop)

    async def send(self, number: int) -> None:
        await self.broker.publish(PAYLOAD, self.task.topic, headers=attributes(number))

    async def take(self) -> int:
        while not self.handled:
            self.progress.clear()
            await self.progress.wait()
        handled, self.handled = self.handled, 0
        return handled


class FastStreamSet(FastStream):
    """FastStream with larger batches, as aiokafka above."""

    settings: ClassVar[dict[str, Any]] = {"max_batch_size": MAX_BATCH_SIZE}


class FastStreamBatch(FastStream):
    """FastStream with a handler for up to 100 messages, which fail together."""

    batch = True


CONTENDERS: dict[str, type[Contender]] = {
    "ours": Ours,
    "floor": Floor,
    "aiokafka": AioKafka,
    "faststream": FastStream,
    "fs-set": FastStreamSet,
    "fs-batch": FastStreamBatch,
    "cf-asyncio": ConfluentAsyncio,
    "kafka-py": KafkaPython,
}


WORKS: dict[str, Callable[[Contender], Awaitable[Figures]]] = {
    "concurrently": send_concurrently,
    "batches": send_batches,
    "alone": send_alone,
    "receive": receive_backlog,
}


async def main(task: Task) -> None:
    async with CONTENDERS[task.contender](task) as contender, asyncio.timeout(TIMEOUT):
        figures = await WORKS[task.work](contender)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Task(**json.loads(sys.argv[1]))))
