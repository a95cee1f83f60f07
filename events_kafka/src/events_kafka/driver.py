"""The client's side: one topic of a cluster.

The engine calls everything here on its I/O loop, except ``objection`` and ``hand_over``.  Modules that import
confluent-kafka are imported in :meth:`KafkaDriver.open`, so that a program which only configures a client does not wait
for it.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar

import attrs

from events_core import Capabilities, ConfigurationError, ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery, Driver, Publishing, off_loop
from events_kafka import limits
from events_kafka.options import KafkaOptions

if TYPE_CHECKING:
    from confluent_kafka import Message
    from confluent_kafka.admin import AdminClient

    from events_kafka.admin import Administrator
    from events_kafka.producing import Begun, Publisher
    from events_kafka.source import KafkaSource
    from events_kafka.topology import Topology

__all__ = ["KafkaDriver"]

T = TypeVar("T")


class KafkaDriver(Driver[KafkaOptions]):
    """One topic of a cluster."""

    mixed_keys = True  # librdkafka keeps the order of each partition, and so of each key
    hands_over = True
    max_batch_messages = limits.MAX_BATCH_MESSAGES
    max_batch_bytes = limits.MAX_BATCH_BYTES
    max_settle_batch = limits.MAX_SETTLE_BATCH
    longest_pause = 5.0  # a broker is back within seconds, and receivers should be too

    def __init__(self, topic_name: str, project_id: str, options: KafkaOptions) -> None:
        super().__init__(topic_name, project_id, options)
        problems = [*self._problems()]
        if problems:
            raise ConfigurationError("; ".join(problems))
        self.address = options.bootstrap_servers
        self.capabilities = _capabilities(options)
        self._admin: Administrator | None = None

    def _problems(self) -> Iterator[str]:
        if self.project_id:
            yield f"project_id is {self.project_id!r}; Kafka has no projects, leave it out"
        dead = self.options.dead_letter_topic
        names = [("topic", self.topic_name)]
        if dead:
            names.append(("option 'dead_letter_topic':", dead))
        yield from filter(None, itertools.starmap(limits.topic_objection, names))
        if dead == self.topic_name:
            yield f"option 'dead_letter_topic' is the topic itself, {dead!r}; name another"

    async def open(self) -> None:
        await off_loop(_import_kafka)
        from events_kafka.admin import Administrator
        from events_kafka.topology import Topology

        options = self.options
        self._admin = admin = Administrator(options)
        self.topology: Topology = Topology(admin, self.topic_name, options)
        self._publisher: Publisher = self._publisher_of(self.topic_name)
        self._letters: Publisher | None = None
        try:
            await admin.open()
            await self.topology.create()
            await self._read_limit(self._publisher, self.topic_name)
        except BaseException:
            await self.close()
            raise

    def _publisher_of(self, topic: str) -> Publisher:
        from events_kafka.producing import Publisher

        return Publisher(topic, self.options, lambda: self.topology.partitions(topic))

    async def _read_limit(self, publisher: Publisher, topic: str) -> None:
        limit = await self.topology.max_message_bytes(topic)
        if limit is not None:
            publisher.max_message_bytes = limit

    def objection(self, message: EventMessage) -> str:
        # A plain loop, because joining the few names first would take twice as long.
        for name in message.attributes:
            if "\0" in name:
                return f"attribute key {name!r:.80} has a NUL character, which librdkafka cannot send"
        return ""

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        return await self._store(messages)

    def hand_over(self, messages: Sequence[EventMessage], report: Callable[[Sequence[str] | Publishing], None]) -> bool:
        def take(found: list[str] | Begun) -> None:
            report(found if isinstance(found, list) else partial(self._store, messages, found))

        return self._publisher.hand_over(messages, take)

    async def _store(self, messages: Sequence[EventMessage], begun: Begun | None = None) -> Sequence[str | BrokerError]:
        results = await self._publish(messages, begun)
        # Asked for each message, and nearly all are ids.
        missing = [place for place, result in enumerate(results) if result.__class__ is not str and _is_missing(result)]
        if missing and self.options.create == "all":  # the topic was deleted
            await self.topology.create(again=True)
            again = await self._publish([messages[place] for place in missing])
            for place, result in zip(missing, again, strict=True):
                results[place] = result
        return results

    async def _publish(self, messages: Sequence[EventMessage], begun: Begun | None = None) -> list[str | BrokerError]:
        try:
            return [*await self._publisher.publish(messages, begun)]
        except BrokerError as error:
            if not _is_missing(error):
                raise
            return [error] * len(messages)

    async def store_letter(self, letter: EventMessage) -> None:
        """Publish *letter* to the dead-letter topic, and return when Kafka has stored it.

        :raises BrokerError: if it may not be stored.
        """
        topic = self.options.dead_letter_topic
        assert topic is not None
        result = await self._publish_letter(topic, letter)
        if _is_missing(result) and self.options.create == "all":
            await self.topology.find_topic(topic)
            result = await self._publish_letter(topic, letter)
        if isinstance(result, BrokerError):
            raise BrokerError(str(result), result.code, retryable=True) from result.__cause__

    async def _publish_letter(self, topic: str, letter: EventMessage) -> str | BrokerError:
        try:
            if self._letters is None:
                letters = self._publisher_of(topic)
                await self._read_limit(letters, topic)
                self._letters = self._letters or letters
            return await self._letters.publish_letter(letter)
        except BrokerError as error:
            return error

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> KafkaSource:
        from events_kafka.source import Context, join

        name = subscription or f"~{socket.gethostname()[:60]}-{os.getpid()}-{token_hex(8)}"
        group = None if subscription is None else self.options.group_of(self.topic_name, subscription)
        await self.topology.find_topic(self.topic_name)
        if group is not None:
            await self.topology.find_group(self.topic_name, group)
        context = Context(name, self.capabilities, self.topology, self.store_letter, wake)
        return await join(self.options, self.topic_name, group, context)

    async def keep_dead_letters(self, subscription: str) -> bool | None:
        topic = self.options.dead_letter_topic
        assert topic is not None
        return await self.topology.keep_letters(topic, subscription)

    async def delete_subscription(self, subscription: str) -> None:
        await self.topology.delete_group(self.topic_name, self.options.group_of(self.topic_name, subscription))

    async def ping(self) -> None:
        await self.topology.partitions(self.topic_name)

    async def run_native(self, work: Callable[[AdminClient], Awaitable[T]]) -> T:
        assert self._admin is not None
        return await work(self._admin.native)

    def native_message(self, delivery: Delivery) -> Message:
        record: Message = delivery.token.record
        return record

    async def close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is None:
            return
        await self._publisher.close()
        if self._letters is not None:
            await self._letters.close()
        await admin.close()


def _import_kafka() -> None:
    """Import confluent-kafka.  That takes a while, so a thread does it."""
    import events_kafka.admin
    import events_kafka.producing
    import events_kafka.source
    import events_kafka.topology  # noqa: F401


def _is_missing(result: str | BrokerError) -> bool:
    return isinstance(result, BrokerError) and result.code is ErrorCode.NOT_FOUND


def _capabilities(options: KafkaOptions) -> Capabilities:
    return attrs.evolve(
        limits.FULL_CAPABILITIES,
        ordering="none" if options.ordering is False else "subscription",
        limits=attrs.evolve(limits.FULL_CAPABILITIES.limits, max_message_bytes=options.max_message_bytes),
    )
