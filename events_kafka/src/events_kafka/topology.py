"""Topics and subscriptions as topics and consumer groups of Kafka: the requests of an administrator.

A subscription exists while its group has committed a position for the topic.  What exists is never changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import TopicCollection
from confluent_kafka.admin import ConfigResource, NewTopic, OffsetSpec, ResourceType
from confluent_kafka.cimpl import KafkaError, KafkaException, TopicPartition

from events_core import ErrorCode
from events_core.engine import BrokerError, off_loop
from events_kafka.admin import Administrator
from events_kafka.groups import positions, set_positions
from events_kafka.options import KafkaOptions
from events_kafka.scratch import created

__all__ = ["Topology"]

_log = logging.getLogger("events_kafka")

_REQUEST_TIMEOUT = 10.0
"""Seconds for a request.  The engine bounds what it asks for itself, and retries."""


class Topology:
    """The topic and the consumer groups of one client.  All its coroutines run at home and wait without blocking."""

    def __init__(self, admin: Administrator, topic: str, options: KafkaOptions) -> None:
        self._admin = admin
        self._topic = topic
        self._options = options

    # Topics

    async def create(self, *, again: bool = False) -> None:
        """Create the configured topics and subscription, if they are missing and the options allow it.

        :param again: True if the topic was there and is missed.  Whatever it has by now was sent since, so the
            subscription then starts with the oldest message.
        :raises BrokerError: ``NOT_FOUND`` if the topic is missing and may not be created.
        """
        options = self._options
        await self.find_topic(self._topic)
        if options.dead_letter_topic and options.create == "all":
            await self.find_topic(options.dead_letter_topic)
        if options.subscription and options.create != "never":
            group = options.group_of(self._topic, options.subscription)
            await self.find_group(self._topic, group, from_oldest=again)

    async def find_topic(self, topic: str) -> list[int]:
        """Look for *topic*, or create it if the options allow that; return its partitions.

        :raises BrokerError: ``NOT_FOUND`` if there is no such topic.
        """
        try:
            return await self.partitions(topic)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND or self._options.create != "all":
                raise
        await self._create_topic(topic)
        return await self._created(topic)

    async def partitions(self, topic: str) -> list[int]:
        """Return the numbers of the partitions of *topic*, in order.

        :raises BrokerError: ``NOT_FOUND`` if there is no such topic, ``UNAVAILABLE`` if it has no leaders yet.
        """
        asked = f"look for topic {topic!r}"
        found = await self._admin.ask(
            asked, lambda admin: admin.describe_topics(TopicCollection([topic]), **_TIMEOUT)[topic]
        )
        return sorted(partition.id for partition in found.partitions)

    async def _create_topic(self, topic: str) -> None:
        options = self._options
        config = {} if options.retention is None else {"retention.ms": str(max(1, round(options.retention * 1000)))}
        # -1 stands for the broker's own default.
        new = NewTopic(topic, options.partitions or -1, options.replication_factor or -1, config=config)
        try:
            await self._admin.ask(
                f"create topic {topic!r}",
                lambda admin: admin.create_topics([new], operation_timeout=_REQUEST_TIMEOUT, **_TIMEOUT)[topic],
            )
        except BrokerError as error:
            if not _is(error, KafkaError.TOPIC_ALREADY_EXISTS):  # another client was faster
                created(topic)  # nobody knows
                raise
        except asyncio.CancelledError:
            created(topic)
            raise
        else:
            created(topic)

    async def delete_topic(self) -> None:
        """Delete the topic with its messages; that it is missing is no error.

        :raises BrokerError: if that failed.
        """
        topic = self._topic
        try:
            await self._admin.ask(
                f"delete topic {topic!r}", lambda admin: admin.delete_topics([topic], **_TIMEOUT)[topic]
            )
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise

    async def _created(self, topic: str) -> list[int]:
        """Return the partitions of *topic* as soon as the brokers have learned of it from the controller."""
        for pause in _LEARNING:
            try:
                await self.ends(topic)  # that needs the leaders
                return await self.partitions(topic)
            except BrokerError as error:
                if error.code is not ErrorCode.NOT_FOUND and not error.retryable:
                    raise
            await asyncio.sleep(pause)
        return await self.partitions(topic)

    async def max_message_bytes(self, topic: str) -> int | None:
        """Return the topic's ``max.message.bytes``; ``None`` if the user may not read it."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            found = await self._admin.ask(
                f"read the settings of topic {topic!r}",
                lambda admin: admin.describe_configs([resource], **_TIMEOUT)[resource],
            )
        except BrokerError as error:
            if error.code is not ErrorCode.PERMISSION_DENIED:
                raise
            _log.debug("%s; the broker refuses messages that are too large", error)
            return None
        return int(found["max.message.bytes"].value)

    # Offsets

    async def ends(self, topic: str) -> Mapping[int, int]:
        """Return the end of each partition: the offset of the next message.

        :raises BrokerError: if that failed.
        """
        return await self._offsets(topic, OffsetSpec.latest())

    async def starts(self, topic: str) -> Mapping[int, int]:
        """Return the offset at which a new subscription starts in each partition, by the option ``start``.

        :raises BrokerError: if that failed.
        """
        if self._options.start == "latest":
            return await self.ends(topic)
        time = self._options.start_time
        if time is None:
            return await self._oldest(topic)
        milliseconds = round(time.timestamp() * 1000)
        at_time = await self._offsets(topic, OffsetSpec.for_timestamp(max(0, milliseconds)))
        if all(offset >= 0 for offset in at_time.values()):
            return at_time
        # -1: the partition has no message since then.
        ends = await self.ends(topic)
        return {partition: offset if offset >= 0 else ends[partition] for partition, offset in at_time.items()}

    async def _oldest(self, topic: str) -> Mapping[int, int]:
        return await self._offsets(topic, OffsetSpec.earliest())

    async def _offsets(self, topic: str, spec: OffsetSpec) -> Mapping[int, int]:
        asked = f"read the offsets of topic {topic!r}"
        places = {TopicPartition(topic, number): spec for number in await self.partitions(topic)}
        found = await self._admin.ask_all(asked, lambda admin: admin.list_offsets(places, **_TIMEOUT).items())
        return {place.partition: result.offset for place, result in found}

    # Consumer groups

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        """Return the positions of *topic* that *group* has committed, by partition; empty if there are none.

        :raises BrokerError: if that failed.
        """
        partitions = await self.partitions(topic)
        return await off_loop(lambda: positions(self._options, group, topic, partitions))

    async def find_group(
        self, topic: str, group: str, *, create: bool | None = None, from_oldest: bool = False
    ) -> None:
        """Look for the subscription of *topic* that is *group*, or create it.

        :param create: whether it may be created; as the options say for ``None``.
        :param from_oldest: whether a new one starts with the oldest message, and not as the options say.
        :raises BrokerError: ``NOT_FOUND`` if it is missing and may not be created.
        """
        if create is None:
            create = self._options.create != "never"
        # Before it is known whether the group exists.  If another client creates it in the meantime, what is committed
        # here is no later than its start, and skips nothing.
        starts: Mapping[int, int] = {}
        if create:
            starts = await (self._oldest(topic) if from_oldest else self.starts(topic))
        if await self.committed(topic, group):
            return
        if not create:
            raise BrokerError(
                f"topic {topic!r} has no consumer group {group!r}; create it with create=subscription, and start at "
                "least one receiver every 7 days: Kafka forgets the positions of a group without members",
                ErrorCode.NOT_FOUND,
            )
        await self._commit(topic, group, starts)
        if self._options.start != "earliest" and not from_oldest and any(starts.values()):
            # Kafka does not tell a new group from one that it has forgotten.
            _log.warning(
                "consumer group %r is new, or was unused for so long that Kafka has forgotten its positions (7 days, "
                "unless the broker is set otherwise); it starts at start=%s, and skips what topic %r has before",
                group,
                self._options.start,
                topic,
            )

    async def _commit(self, topic: str, group: str, starts: Mapping[int, int]) -> None:
        # If the group has members, another client has created it.
        await off_loop(lambda: set_positions(self._options, group, topic, starts))

    async def keep_letters(self, topic: str, subscription: str) -> bool | None:
        """Create *subscription* of a dead-letter *topic*, from its beginning; ``None`` if it may not be created.

        Kafka cannot tell cheaply whether a topic has a group.  Another one costs nothing, because a topic keeps its
        messages for ``retention`` whether or not a group has read them.
        """
        if self._options.create == "never":
            return None
        await self.find_topic(topic)
        group = self._options.group_of(topic, subscription)
        if not await self.committed(topic, group):
            await self._commit(topic, group, await self._oldest(topic))
        return True

    async def delete_group(self, topic: str, group: str) -> None:
        """Delete *group* with its positions.

        :raises BrokerError: ``NOT_FOUND`` if there is none, ``INVALID`` if it has members.
        """
        await self.find_group(topic, group, create=False)  # a group may exist without having read this topic
        for pause in _LEAVING:
            try:
                return await self._delete_group(group)
            except BrokerError as error:
                if not _is(error, KafkaError.NON_EMPTY_GROUP):
                    raise
            await asyncio.sleep(pause)
        await self._delete_group(group)

    async def _delete_group(self, group: str) -> None:
        await self._admin.ask(
            f"delete consumer group {group!r}", lambda admin: admin.delete_consumer_groups([group], **_TIMEOUT)[group]
        )


_TIMEOUT: dict[str, Any] = {"request_timeout": _REQUEST_TIMEOUT}
_LEARNING = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Pauses, in seconds, while the brokers learn of a topic that the controller has created."""
_LEAVING = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses, in seconds, while receivers that have just closed leave their group."""


def _is(error: BrokerError, code: int) -> bool:
    """Return whether *error* stands for Kafka's error of this *code*."""
    cause = error.__cause__
    return isinstance(cause, KafkaException) and cause.args[0].code() == code
