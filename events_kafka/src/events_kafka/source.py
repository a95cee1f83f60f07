"""The receiver's side: the engine's source on a consumer of librdkafka."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs

from events_core import Capabilities, EventMessage
from events_core.engine import BrokerError, Delivery, Settlement, Source
from events_kafka.options import KafkaOptions
from events_kafka.topology import Topology

__all__ = ["Context", "KafkaSource", "join"]


@attrs.frozen
class Context:
    """The things that a source needs of its driver."""

    subscription: str
    """Name of the subscription; a generated name if it is ephemeral."""
    capabilities: Capabilities
    topology: Topology
    """The requests of an administrator."""
    store_letter: Callable[[EventMessage], Awaitable[None]]
    """Publishes to the dead-letter topic, and returns when the letter is stored.  Raises ``BrokerError``."""
    wake: Callable[[], None]
    """The ``wake`` of :meth:`events_core.engine.Driver.subscribe`."""


class KafkaSource(Source):
    """One receiver."""

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        raise NotImplementedError

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


async def join(options: KafkaOptions, topic: str, group: str | None, context: Context) -> KafkaSource:
    """Join the consumer group *group*, which exists, or read *topic* from its present end for ``None``.

    The driver has made sure before that the group has committed its start for all partitions that the topic had.

    :raises BrokerError: if that failed.  Nothing is left behind.
    """
    raise NotImplementedError
