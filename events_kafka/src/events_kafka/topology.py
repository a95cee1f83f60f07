"""Topics and subscriptions as topics and consumer groups of Kafka: the requests of an administrator.

What exists is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from events_kafka.options import KafkaOptions

__all__ = ["Topology"]


class Topology:
    """The topic and the consumer groups of one client.  All its coroutines run at home and wait without blocking."""

    def __init__(self, topic: str, options: KafkaOptions) -> None:
        self._topic = topic
        self._options = options

    async def partitions(self, topic: str) -> list[int]:
        """Return the numbers of the partitions of *topic*, in order.

        :raises BrokerError: ``NOT_FOUND`` if there is no such topic.
        """
        raise NotImplementedError

    async def ends(self, topic: str) -> Mapping[int, int]:
        """Return the end of each partition: the offset of the next message.

        :raises BrokerError: if that failed.
        """
        raise NotImplementedError

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        """Return the positions of *topic* that *group* has committed, by partition; empty if there are none.

        :raises BrokerError: if that failed.
        """
        raise NotImplementedError
