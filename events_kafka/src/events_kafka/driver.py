"""The client's side: one topic of a cluster.

The engine calls everything here on its I/O loop.  Modules that import confluent-kafka are imported in
:meth:`KafkaDriver.open`, so that a program which only configures a client does not wait for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import attrs

from events_core import Capabilities, ConfigurationError, EventMessage
from events_core.engine import BrokerError, Delivery, Driver
from events_kafka import limits
from events_kafka.options import KafkaOptions

if TYPE_CHECKING:
    from confluent_kafka import Message
    from confluent_kafka.admin import AdminClient

    from events_kafka.source import KafkaSource

__all__ = ["KafkaDriver"]

T = TypeVar("T")


class KafkaDriver(Driver[KafkaOptions]):
    """One topic of a cluster."""

    mixed_keys = True  # librdkafka keeps the order of each partition, and so of each key
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
        raise NotImplementedError

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        raise NotImplementedError

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> KafkaSource:
        raise NotImplementedError

    async def keep_dead_letters(self, subscription: str) -> bool | None:
        raise NotImplementedError

    async def delete_subscription(self, subscription: str) -> None:
        raise NotImplementedError

    async def ping(self) -> None:
        raise NotImplementedError

    async def run_native(self, work: Callable[[AdminClient], Awaitable[T]]) -> T:
        raise NotImplementedError

    def native_message(self, delivery: Delivery) -> Message:
        record: Message = delivery.token.record
        return record

    async def close(self) -> None:
        raise NotImplementedError


def _capabilities(options: KafkaOptions) -> Capabilities:
    return attrs.evolve(
        limits.FULL_CAPABILITIES,
        ordering="none" if options.ordering is False else "subscription",
        limits=attrs.evolve(limits.FULL_CAPABILITIES.limits, max_message_bytes=options.max_message_bytes),
    )
