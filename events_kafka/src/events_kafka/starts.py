"""The positions from which partitions are read: those that the group has committed, or the oldest record.

The functions ask the broker, and wait in the consumer's thread.  They raise ``KafkaException`` if it does not answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from confluent_kafka.cimpl import Consumer as Native
from confluent_kafka.cimpl import KafkaError, KafkaException, TopicPartition

from events_kafka.claims import Start

__all__ = ["ANSWER", "committed_starts", "new_starts", "watermarks"]

_log = logging.getLogger("events_kafka")

ANSWER = 2.0
"""Seconds to wait for an answer of a broker that answers.  On the connection that fetches it takes as long as a fetch
waits for records, 0.5 s (``fetch.wait.max.ms``), because a broker handles the requests of a connection in order."""


def committed_starts(native: Native, topic: str, partitions: Sequence[int]) -> Sequence[Start]:
    """Return the positions that the group has committed.

    A partition without a position starts with its oldest record.  It was added later, or the position has expired.
    """
    # With all partitions below: numbers only grow, so one with a lower number was there before.
    asked = [TopicPartition(topic, partition) for partition in range(max(partitions) + 1)]
    found = native.committed(asked, timeout=ANSWER)
    for each in found:
        if each.error is not None:
            raise KafkaException(each.error)
    positions = {each.partition: each for each in found if each.offset >= 0}
    first = min(positions, default=max(partitions))
    return [
        Start(partition, positions[partition].offset, positions[partition].metadata or "")
        if partition in positions
        else _oldest_start(native, topic, partition, was_added=partition > first)
        for partition in partitions
    ]


def _oldest_start(native: Native, topic: str, partition: int, *, was_added: bool) -> Start:
    low, _ = watermarks(native, topic, partition)
    reason = "it was added later" if was_added else "the topic was created again, or the group unused for too long"
    _log.log(
        logging.INFO if was_added else logging.WARNING,
        "the group has no position in partition %d of topic %r: %s; it starts with the oldest message, offset %d",
        partition,
        topic,
        reason,
        low,
    )
    return Start(partition, low, is_committed=False)


def new_starts(native: Native, topic: str, known: Sequence[int]) -> Sequence[Start]:
    """Return the beginnings of partitions that are not among *known*."""
    partitions = native.list_topics(topic, timeout=ANSWER).topics[topic].partitions
    return [Start(each, watermarks(native, topic, each)[0]) for each in partitions if each not in known]


def watermarks(native: Native, topic: str, partition: int) -> tuple[int, int]:
    """Return the offset of the oldest record of a partition, and that of its next one."""
    found = native.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER, cached=False)
    if found is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return found
