"""A RabbitMQ server as its administrator and other programs see it, by bare pika."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

from events_core import EventConfig
from events_rabbitmq import RabbitMQClient

from .server import Server

PATIENT = dict.fromkeys(("send_timeout", "ack_timeout", "connect_timeout"), "300")
"""Options with which a call ends when it is done, however busy the machine is.  A server may take a minute to start."""


def client(topic: str, **options: str) -> RabbitMQClient:
    return RabbitMQClient(EventConfig(topic, options={"create": "all", **PATIENT, **options}, backend="rabbitmq"))


def exists(declare: Callable[[], object]) -> bool:
    """Return whether the queue or exchange that *declare* names is there."""
    try:
        declare()
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return False
    return True


class Console:
    """A server, and the topic and the subscription of one test."""

    def __init__(self, server: Server, url: str = "") -> None:
        self.server = server
        self.url = url or server.url
        self.topic = f"t-{uuid.uuid4().hex[:12]}"
        self.subscription = f"{self.topic}-s"

    @property
    def queue(self) -> str:
        """The queue of the subscription."""
        return self.queue_of(self.subscription)

    def queue_of(self, subscription: str) -> str:
        """Return the name of the queue of a subscription."""
        return f"{self.topic}:{subscription}"

    def client(self, **options: str) -> RabbitMQClient:
        return client(self.topic, **{"url": self.url, "subscription": self.subscription, **options})

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Enter with a channel of a new connection, which confirms what is published."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel

    def declare_exchange(self, kind: str = "fanout", name: str = "", **settings: Any) -> None:
        with self.channel() as channel:
            channel.exchange_declare(name or self.topic, kind, **{"durable": True, **settings})

    def declare_queue(self, name: str = "", **arguments: Any) -> None:
        """Declare a durable queue and bind it to the topic; ``x_queue_type`` stands for ``x-queue-type``."""
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        with self.channel() as channel:
            channel.queue_declare(name or self.queue, durable=True, arguments={"x-queue-type": "quorum"} | given)
            channel.queue_bind(name or self.queue, self.topic)

    def unbind_queue(self) -> None:
        with self.channel() as channel:
            channel.queue_unbind(self.queue, self.topic, routing_key="")

    def delete_queue(self, name: str = "") -> None:
        with self.channel() as channel:
            channel.queue_delete(name or self.queue)

    def delete_exchange(self, name: str = "") -> None:
        with self.channel() as channel:
            channel.exchange_delete(name or self.topic)

    def has_queue(self, name: str = "") -> bool:
        with self.channel() as channel:
            return exists(lambda: channel.queue_declare(name or self.queue, passive=True))

    def has_exchange(self) -> bool:
        with self.channel() as channel:
            return exists(lambda: channel.exchange_declare(self.topic, passive=True))

    def publish(
        self,
        body: bytes,
        headers: Mapping[str, Any] | None = None,
        *,
        exchange: str | None = None,
        key: str = "",
        **properties: Any,
    ) -> None:
        """Publish as another program; the server has stored the message when this returns."""
        made = pika.BasicProperties(headers=dict(headers) if headers is not None else None, **properties)
        with self.channel() as channel:
            channel.basic_publish(self.topic if exchange is None else exchange, key, body, made, mandatory=True)

    def take(self, name: str = "") -> tuple[bytes, pika.BasicProperties] | None:
        """Take one message out of a queue, the subscription's by default; None if it has none ready."""
        with self.channel() as channel:
            method, properties, body = channel.basic_get(name or self.queue, auto_ack=True)
            return None if method is None else (body, properties)

    def drain(self) -> list[bytes]:
        """Take all messages out of the subscription's queue, and return their bodies."""
        return [body for body, _ in iter(self.take, None)]

    def ready(self, name: str = "") -> int:
        """Return the number of messages that the queue would deliver."""
        with self.channel() as channel:
            return int(channel.queue_declare(name or self.queue, passive=True).method.message_count)

    def messages(self) -> int:
        """Return the number of messages of the subscription, ready and out, as the server counts them."""
        rows = self.server.command("list_queues", "--quiet", "name", "messages").splitlines()
        return next(int(row.split()[1]) for row in rows if row.split()[:1] == [self.queue])

    def consumers(self, name: str = "") -> int:
        """Return the number of consumers of the queue."""
        with self.channel() as channel:
            return int(channel.queue_declare(name or self.queue, passive=True).method.consumer_count)
