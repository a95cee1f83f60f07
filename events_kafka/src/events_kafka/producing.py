"""Publishing: one idempotent producer of librdkafka, and its delivery reports."""

from __future__ import annotations

from collections.abc import Sequence

from events_core import EventMessage
from events_core.engine import BrokerError
from events_kafka.options import KafkaOptions

__all__ = ["Publisher"]


class Publisher:
    """A sender of messages to any topic.  Calls may overlap."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options

    async def publish(self, topic: str, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        """Publish *messages* in order; return the id of each, or the reason why it was not stored."""
        raise NotImplementedError

    async def close(self) -> None:
        """Throw away what was not sent, and end the thread."""
        raise NotImplementedError
