"""The contenders of ``rabbitmq_cost.py`` and their works, each with the settings that measured best for it.

``rabbitmq_cost.py`` runs this program once for each contender, work and round, so that the threads and connections of
one contender do not count for another.  The argument is a task as JSON.  The program prints its figures as JSON.

All send persistent messages with two headers to one fanout exchange, with ``mandatory`` and publisher confirms.  All
receive from one durable quorum queue, with a prefetch of 1,000.
"""

from __future__ import annotations

import asyncio
import json
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import contenders
from contenders import (
    BATCH,
    PAYLOAD,
    RESPONSE,
    SENDERS,
    attributes,
    read,
    receive,
    send_alone,
    send_batches,
    send_concurrently,
)
from contest import Figures

PREFETCH = 1_000
PERSISTENT = 2
TIMEOUT = 120.0
"""Seconds after which a work has failed."""


@dataclass(frozen=True, kw_only=True)
class Task(contenders.Task):
    """A work on a server."""

    url: str

    @property
    def queue(self) -> str:
        """The queue of the subscription, by the rule of events-rabbitmq."""
        return f"{self.topic}:{self.subscription}"


class Contender(contenders.Contender[Task]):
    """A client of one topic and one subscription."""

    @property
    def receives(self) -> bool:
        return self.task.work == "receive"


class Ours(Contender):
    """events-rabbitmq, with its default settings."""

    async def open(self) -> None:
        from events_core import EventConfig, EventMessage, create_client

        self.message = EventMessage
        config = EventConfig(self.task.topic, "", {"url": self.task.url}, "rabbitmq")
        self.client = await self.stack.enter_async_context(create_client(config))
        if self.receives:
            self.receiver = await self.client.subscribe(self.task.subscription)

    async def send(self, number: int) -> None:
        await self.client.send_message(self.message(PAYLOAD, attributes(number)))

    async def send_batch(self, numbers: Iterable[int]) -> None:
        await self.client.send_messages([self.message(PAYLOAD, attributes(number)) for number in numbers])

    async def take(self) -> int:
        messages = await self.receiver.receive_messages(RESPONSE)
        for message in messages:
            read(message.data, message.attributes)
        await self.receiver.acknowledge_messages(messages)
        return len(messages)


class Arrivals:
    """Messages that a client's callback has brought, for a task that waits for them."""

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._arrived = asyncio.Event()

    def add(self, *message: Any) -> None:
        self._messages.append(message)
        self._arrived.set()

    async def take(self) -> list[Any]:
        await self._arrived.wait()
        taken = [self._messages.popleft() for _ in range(min(RESPONSE, len(self._messages)))]
        if not self._messages:
            self._arrived.clear()
        return taken


class Confirms:
    """The delivery tags of what was sent and is not confirmed; for clients that have only a stream of confirms."""

    def __init__(self) -> None:
        self._sent = 0
        self._open: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def sent(self) -> None:
        self._sent += 1
        self._open[self._sent] = None

    def confirmed(self, tag: int, multiple: bool) -> None:
        if not multiple:
            del self._open[tag]
            return
        while self._open and (first := next(iter(self._open))) <= tag:
            del self._open[first]


class Floor(Contender):
    """Bare pika in the application's own loop: no future for a message, no retries, no bounds."""

    async def open(self) -> None:
        import pika
        from pika.adapters.asyncio_connection import AsyncioConnection

        loop = asyncio.get_running_loop()
        connected, opened, ready = loop.create_future(), loop.create_future(), loop.create_future()
        self.connection = AsyncioConnection(
            pika.URLParameters(self.task.url),
            on_open_callback=connected.set_result,
            on_open_error_callback=lambda _, error: connected.set_exception(error),
            custom_ioloop=loop,
        )
        await connected
        self.stack.push_async_callback(self._close)
        self.connection.channel(on_open_callback=opened.set_result)
        self.channel = await opened
        self.properties = pika.BasicProperties
        self.confirms = Confirms()
        self.arrivals = Arrivals()
        self.progress = asyncio.Event()
        if self.receives:
            self.channel.basic_qos(prefetch_count=PREFETCH)
            self.channel.basic_consume(self.task.queue, self._on_message)
        else:
            self.channel.confirm_delivery(self._on_confirm, ready.set_result)
            await ready

    async def _close(self) -> None:
        closed = asyncio.get_running_loop().create_future()
        self.connection.add_on_close_callback(lambda *_: closed.set_result(None))
        self.connection.close()
        await closed

    def _on_message(self, _: object, method: Any, properties: Any, body: bytes) -> None:
        self.arrivals.add(method.delivery_tag, properties.headers, body)

    def _on_confirm(self, frame: Any) -> None:
        assert frame.method.NAME == "Basic.Ack"
        self.confirms.confirmed(frame.method.delivery_tag, frame.method.multiple)
        self.progress.set()

    def publish(self, number: int) -> None:
        properties = self.properties(headers=attributes(number), delivery_mode=PERSISTENT)
        self.channel.basic_publish(self.task.topic, "", PAYLOAD, properties, mandatory=True)
        self.confirms.sent()

    async def drain(self, left: int) -> None:
        """Wait until only *left* messages are not confirmed."""
        while len(self.confirms) > left:
            self.progress.clear()
            await self.progress.wait()

    async def send(self, number: int) -> None:
        self.publish(number)
        await self.drain(0)

    async def send_batch(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.publish(number)
        await self.drain(0)

    async def send_concurrently(self, messages: int) -> None:
        """Keep up to 2,000 messages out.  No task waits for a single message."""
        for first in range(0, messages, BATCH):
            await self.drain(SENDERS - BATCH)
            for number in range(first, min(first + BATCH, messages)):
                self.publish(number)
        await self.drain(0)

    async def take(self) -> int:
        taken = await self.arrivals.take()
        for _, headers, body in taken:
            read(body, headers)
        self.channel.basic_ack(taken[-1][0], multiple=True)
        return len(taken)


class AioPika(Contender):
    """Bare aio-pika: a message is acknowledged by itself, as its documentation shows."""

    async def open(self) -> None:
        import aio_pika

        connection = await self.stack.enter_async_context(await aio_pika.connect(self.task.url))
        channel = await connection.channel()  # with publisher confirms
        self.message = aio_pika.Message
        self.arrivals = Arrivals()
        if self.receives:
            await channel.set_qos(PREFETCH)
            queue = await channel.get_queue(self.task.queue, ensure=False)
            await queue.consume(self._on_message)
        self.exchange = await channel.get_exchange(self.task.topic, ensure=False)

    async def _on_message(self, message: Any) -> None:
        self.arrivals.add(message)

    async def send(self, number: int) -> None:
        message = self.message(PAYLOAD, headers=attributes(number), delivery_mode=PERSISTENT)
        await self.exchange.publish(message, "", mandatory=True)

    async def take(self) -> int:
        taken = await self.arrivals.take()
        for (message,) in taken:
            read(message.body, message.headers)
            await message.ack()
        return len(taken)


class AioPikaMultiple(AioPika):
    """Bare aio-pika that acknowledges a batch with its last message."""

    async def take(self) -> int:
        taken = await self.arrivals.take()
        for (message,) in taken:
            read(message.body, message.headers)
        await taken[-1][0].ack(multiple=True)
        return len(taken)


class Aiormq(Contender):
    """aiormq, the protocol library of aio-pika, with multiple acknowledgements."""

    async def open(self) -> None:
        import aiormq

        connection = await aiormq.connect(self.task.url)
        self.stack.push_async_callback(connection.close)
        self.channel = await connection.channel()
        self.properties = aiormq.spec.Basic.Properties
        self.arrivals = Arrivals()
        if self.receives:
            await self.channel.basic_qos(prefetch_count=PREFETCH)
            await self.channel.basic_consume(self.task.queue, self._on_message)

    async def _on_message(self, message: Any) -> None:
        self.arrivals.add(message)

    async def send(self, number: int) -> None:
        properties = self.properties(headers=dict(attributes(number)), delivery_mode=PERSISTENT)
        await self.channel.basic_publish(PAYLOAD, exchange=self.task.topic, properties=properties, mandatory=True)

    async def take(self) -> int:
        taken = await self.arrivals.take()
        for (message,) in taken:
            read(message.body, message.header.properties.headers)
        await self.channel.basic_ack(taken[-1][0].delivery_tag, multiple=True)
        return len(taken)


class FastStream(Contender):
    """FastStream's RabbitBroker; a handler receives, and FastStream acknowledges when it has returned."""

    async def open(self) -> None:
        from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
        from faststream.rabbit.annotations import RabbitMessage

        self.broker = RabbitBroker(self.task.url, default_channel=Channel(prefetch_count=PREFETCH), logger=None)
        self.exchange = RabbitExchange(self.task.topic, type=ExchangeType.FANOUT, durable=True, declare=False)
        self.handled = 0
        self.progress = asyncio.Event()
        if self.receives:
            # Its annotations cannot be strings of this module, because the names are local.
            async def handle(message: Any) -> None:
                read(message.body, message.headers)
                self.handled += 1
                self.progress.set()

            handle.__annotations__ = {"message": RabbitMessage, "return": None}
            self.broker.subscriber(RabbitQueue(self.task.queue, declare=False))(handle)
        await self.broker.start()
        self.stack.push_async_callback(self.broker.stop)

    async def send(self, number: int) -> None:
        await self.broker.publish(
            PAYLOAD, exchange=self.exchange, headers=attributes(number), persist=True, mandatory=True
        )

    async def take(self) -> int:
        while not self.handled:
            self.progress.clear()
            await self.progress.wait()
        handled, self.handled = self.handled, 0
        return handled


class Blocking(Contender):
    """A client without asyncio.  It has the process for itself, so its calls may block the loop."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.arrivals: deque[Any] = deque()

    @abstractmethod
    def publish(self, number: int) -> None: ...

    @abstractmethod
    def drain_events(self) -> object:
        """Read once from the socket; wait until there is something."""

    async def send(self, number: int) -> None:
        self.publish(number)

    async def send_batch(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.publish(number)

    async def send_concurrently(self, messages: int) -> None:
        await self.send_batch(range(messages))

    def taken(self) -> Iterator[Any]:
        while not self.arrivals:
            self.drain_events()
        for _ in range(min(RESPONSE, len(self.arrivals))):
            yield self.arrivals.popleft()


class Kombu(Blocking):
    """Kombu on py-amqp.  Its publisher confirms are one by one, so each message waits for its own."""

    async def open(self) -> None:
        import kombu

        self.connection = self.stack.enter_context(
            kombu.Connection(self.task.url, transport_options={"confirm_publish": True})
        )
        channel = self.connection.channel()
        if self.receives:
            channel.basic_qos(0, PREFETCH, False)
            queue = kombu.Queue(self.task.queue, no_declare=True)
            consumer = kombu.Consumer(channel, [queue], on_message=self.arrivals.append, auto_declare=False)
            self.stack.enter_context(consumer)
        exchange = kombu.Exchange(self.task.topic, "fanout", no_declare=True)
        self.producer = kombu.Producer(channel, exchange, auto_declare=False)

    def publish(self, number: int) -> None:
        self.producer.publish(PAYLOAD, headers=attributes(number), mandatory=True, delivery_mode=PERSISTENT)

    def drain_events(self) -> object:
        return self.connection.drain_events(timeout=TIMEOUT)

    async def take(self) -> int:
        taken = [*self.taken()]
        for message in taken:
            read(message.body, message.headers)
        taken[-1].ack(multiple=True)
        return len(taken)


class PyAmqp(Blocking):
    """py-amqp, the protocol library of Kombu, with a stream of confirms."""

    async def open(self) -> None:
        from urllib.parse import urlsplit

        import amqp  # type: ignore[import-untyped]

        parts = urlsplit(self.task.url)
        address = f"{parts.hostname}:{parts.port or 5672}"
        self.connection = self.stack.enter_context(
            amqp.Connection(address, parts.username or "guest", parts.password or "guest")
        )
        self.message = amqp.Message
        self.channel = self.connection.channel()
        self.confirms = Confirms()
        if self.receives:
            self.channel.basic_qos(0, PREFETCH, False)
            self.channel.basic_consume(self.task.queue, callback=self.arrivals.append)
        else:
            self.channel.confirm_select()
            self.channel.events["basic_ack"].add(self.confirms.confirmed)

    def publish(self, number: int) -> None:
        message = self.message(PAYLOAD, application_headers=attributes(number), delivery_mode=PERSISTENT)
        self.channel.basic_publish(message, exchange=self.task.topic, mandatory=True)
        self.confirms.sent()

    def drain_events(self) -> object:
        return self.connection.drain_events(timeout=TIMEOUT)

    def drain(self, left: int) -> None:
        while len(self.confirms) > left:
            self.drain_events()

    async def send(self, number: int) -> None:
        self.publish(number)
        self.drain(0)

    async def send_batch(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.publish(number)
        self.drain(0)

    async def send_concurrently(self, messages: int) -> None:
        for number in range(messages):
            self.drain(SENDERS - 1)
            self.publish(number)
        self.drain(0)

    async def take(self) -> int:
        taken = [*self.taken()]
        for message in taken:
            read(message.body, message.headers)
        self.channel.basic_ack(taken[-1].delivery_tag, multiple=True)
        return len(taken)


CONTENDERS: dict[str, type[Contender]] = {
    "ours": Ours,
    "floor": Floor,
    "aio-pika": AioPika,
    "aio-multi": AioPikaMultiple,
    "faststream": FastStream,
    "kombu": Kombu,
    "aiormq": Aiormq,
    "py-amqp": PyAmqp,
}
WORKS: dict[str, Callable[[Contender], Awaitable[Figures]]] = {
    "concurrently": send_concurrently,
    "batches": send_batches,
    "alone": send_alone,
    "receive": receive,
}


async def main(task: Task) -> None:
    async with CONTENDERS[task.contender](task) as contender, asyncio.timeout(TIMEOUT):
        figures = await WORKS[task.work](contender)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Task(**json.loads(sys.argv[1]))))
