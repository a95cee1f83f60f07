"""The client's side: one topic of a virtual host.

The engine calls everything here on its I/O loop.  Modules that import pika are imported in :meth:`RabbitMQDriver.open`,
so that a program which only configures a client does not wait for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar

import attrs

from events_core import Capabilities, ConfigurationError, ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery, Driver, off_loop
from events_rabbitmq import limits
from events_rabbitmq.address import addresses
from events_rabbitmq.options import RabbitMQOptions

if TYPE_CHECKING:
    from pika.adapters.asyncio_connection import AsyncioConnection  # type: ignore[import-untyped]

    from events_rabbitmq.codec import NativeMessage
    from events_rabbitmq.links import Links, Servers
    from events_rabbitmq.publishing import Publisher
    from events_rabbitmq.source import RabbitMQSource
    from events_rabbitmq.topology import Topology

__all__ = ["RabbitMQDriver"]

T = TypeVar("T")

_CLEAN_UP_TIMEOUT = 2.0
"""Seconds to delete an ephemeral subscription after its creation failed or was cancelled."""


class RabbitMQDriver(Driver[RabbitMQOptions]):
    """One topic of a virtual host."""

    mixed_keys = True  # the messages of a channel are stored in order, also if their keys differ
    max_batch_messages = limits.MAX_BATCH_MESSAGES
    max_batch_bytes = limits.MAX_BATCH_BYTES
    max_settle_batch = limits.MAX_SETTLE_BATCH
    longest_pause = 5.0  # a node is back within seconds, and receivers should be too

    def __init__(self, topic_name: str, project_id: str, options: RabbitMQOptions) -> None:
        super().__init__(topic_name, project_id, options)
        problems = [*self._problems()]
        if problems:
            raise ConfigurationError("; ".join(problems))
        self.address = ",".join(map(str, addresses(options)))
        self.capabilities = _capabilities(options)
        self._links: Links | None = None
        self._servers: Servers | None = None
        """The order in which to try servers.  It outlives an attempt to open the client that failed."""

    def _problems(self) -> Iterator[str]:
        if self.project_id:
            yield f"project_id is {self.project_id!r}; RabbitMQ has no projects, leave it out"
        options, dead = self.options, self.options.dead_letter_topic
        names = [("topic", self.topic_name)]
        if options.subscription:
            names.append(("queue", options.queue_of(self.topic_name, options.subscription)))
        if dead:
            letters = options.queue_of(dead, options.letters_subscription)
            names += [("dead_letter_topic", dead), ("queue of dead letters", letters)]
        yield from filter(None, itertools.starmap(limits.name_objection, names))
        if dead == self.topic_name:
            yield f"option 'dead_letter_topic' is the topic itself, {dead!r}; name another"

    async def open(self) -> None:
        await off_loop(_import_pika)
        from events_rabbitmq.links import Links, Servers
        from events_rabbitmq.publishing import Publisher
        from events_rabbitmq.topology import Topology, place_of

        options = self.options
        self._servers = self._servers or Servers(options, f"events-core {self.topic_name}")
        self._links = links = Links(self._servers, self.connection_restored)
        self.topology: Topology = Topology(links, self.topic_name, options)
        place, letters = place_of(self.topic_name, options), place_of(options.dead_letter_topic or "", options)
        self._publisher: Publisher = Publisher(links.sending, place, strict=options.unroutable == "fail")
        self._letters: Publisher = Publisher(links.sending, letters, strict=True)
        try:
            await links.any()
            await self.topology.create()
        except BaseException:
            await self.close()
            raise

    def objection(self, message: EventMessage) -> str:
        if not message.attributes:  # a key alone always fits
            return ""
        reserved = limits.RESERVED_ATTRIBUTES.intersection(message.attributes)
        if reserved:
            return f"attribute key {min(reserved)!r} is a header that means something to RabbitMQ; use another name"
        headers = [*message.attributes.items(), (limits.KEY_HEADER, message.ordering_key or "")]
        size = sum(len(name) + len(value) + 6 for name, value in headers)
        if size > limits.MAX_HEADER_BYTES // 4:  # a character has 4 bytes at most
            size = sum(len(name.encode()) + len(value.encode()) + 6 for name, value in headers)
        if size > limits.MAX_HEADER_BYTES:
            most = limits.MAX_HEADER_BYTES
            return f"its attributes and ordering key have {size} bytes; RabbitMQ takes {most} at most"
        return ""

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        create_again = self.topology.create_again if self.options.create == "all" else None
        return await self.topology.gate.send(lambda: self._publisher.publish(messages), create_again)

    async def store_letter(self, letter: EventMessage) -> None:
        """Publish *letter* to the dead-letter topic, and return when a queue has it.

        :raises BrokerError: if it may not be stored.
        """
        topic = self.options.dead_letter_topic
        assert topic is not None
        result: str | BrokerError
        try:
            result = await self._letters.publish_letter(letter)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
            result = error
        # The topic has no queue, or was deleted.
        is_unread = isinstance(result, BrokerError) and result.code is ErrorCode.NOT_FOUND
        if is_unread and await self.topology.add_letters(topic, self.options.letters_subscription):
            result = await self._letters.publish_letter(letter)
        if isinstance(result, BrokerError):
            raise BrokerError(str(result), result.code, retryable=True)

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> RabbitMQSource:
        from events_rabbitmq.source import RabbitMQSource

        self._check_subscription(subscription)
        ephemeral = subscription is None
        name = subscription or f"~{socket.gethostname()[:60]}-{os.getpid()}-{token_hex(8)}"
        source = RabbitMQSource(self, name, wake, ephemeral=ephemeral)
        try:
            await self.topology.join(source.queue, ephemeral=ephemeral)
            await source.start()
        except BaseException:  # also when cancelled: the server may have created it
            if ephemeral:
                with suppress(BrokerError, TimeoutError):
                    async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
                        await self.topology.delete(source.queue)
            raise
        return source

    def _check_subscription(self, name: str | None) -> None:
        """Refuse a subscription that this configuration cannot have.

        :raises BrokerError: ``UNSUPPORTED``, ``INVALID`` or ``NOT_FOUND``.
        """
        if self.options.start == "earliest":
            raise BrokerError("this backend does not offer start=earliest; use latest", ErrorCode.UNSUPPORTED)
        if self.options.topology == "queue" and name != self.topic_name:
            code = ErrorCode.UNSUPPORTED if name is None else ErrorCode.NOT_FOUND
            raise BrokerError(f"with topology=queue the only subscription is {self.topic_name!r}, not {name!r}", code)
        objection = limits.name_objection("queue", self.options.queue_of(self.topic_name, name or ""))
        if objection:
            raise BrokerError(objection, ErrorCode.INVALID)

    async def keep_dead_letters(self, subscription: str) -> bool | None:
        assert self.options.dead_letter_topic is not None
        return await self.topology.keep_letters(self.options.dead_letter_topic, subscription)

    async def delete_subscription(self, subscription: str) -> None:
        self._check_subscription(subscription)
        await self.topology.delete(self.options.queue_of(self.topic_name, subscription))

    async def ping(self) -> None:
        await self.topology.find_topic(self.topic_name, passive=True)

    async def run_native(self, work: Callable[[AsyncioConnection], Awaitable[T]]) -> T:
        connection = await self.links.any()
        return await work(connection.native)

    def native_message(self, delivery: Delivery) -> NativeMessage:
        from events_rabbitmq.codec import native  # imports pika, as every message that was received has done

        return native(delivery)

    async def close(self) -> None:
        links, self._links = self._links, None
        if links is not None:
            await links.close()

    @property
    def links(self) -> Links:
        """The connections; only while the driver is open."""
        assert self._links is not None, "the driver is not open"
        return self._links


def _import_pika() -> None:
    """Import pika.  That takes a while, so a thread does it."""
    import events_rabbitmq.links
    import events_rabbitmq.publishing
    import events_rabbitmq.source  # noqa: F401

    # pika reports an error for each connection that fails, and the engine reports outages itself, once.
    log = logging.getLogger("pika")
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)


def _capabilities(options: RabbitMQOptions) -> Capabilities:
    return attrs.evolve(
        limits.FULL_CAPABILITIES,
        ordering="subscription" if options.ordering else "none",
        limits=attrs.evolve(limits.FULL_CAPABILITIES.limits, max_message_bytes=options.max_message_bytes),
    )
