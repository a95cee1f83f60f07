"""The positions of a consumer group, by a consumer that does not join it.

The administrator of librdkafka has requests for them too.  But the one that reads crashes the process while the group's
coordinator is not ready, as after the start of a broker (librdkafka #5040).  These functions block: call them in a
thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from confluent_kafka.cimpl import Consumer, KafkaError, KafkaException, TopicPartition

from events_kafka.errors import broker_error, making, translated
from events_kafka.options import KafkaOptions
from events_kafka.settings import given, settings

__all__ = ["COORDINATOR_IS_COMING", "positions", "set_positions"]

_TIMEOUT = 10.0
"""Seconds for a request.  The engine bounds what it asks for itself."""

COORDINATOR_IS_COMING = frozenset(
    (
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError._WAIT_COORD,
    )
)
"""The errors of requests that were not carried out, because the group's coordinator starts or moves."""

_PAUSE = 0.1
"""Seconds between two requests until the coordinator is there.  librdkafka looks for it, and does not ask again."""


def positions(options: KafkaOptions, group: str, topic: str, partitions: Sequence[int]) -> Mapping[int, int]:
    """Return the positions of *topic* that *group* has committed, by partition; empty if there are none.

    :raises BrokerError: if that failed.
    """
    asked = f"read the positions of consumer group {group!r}"
    with _passer_by(options, group) as consumer, translated(asked):
        places = [TopicPartition(topic, number) for number in partitions]
        found = _with_coordinator(lambda: consumer.committed(places, timeout=_TIMEOUT))
    _check(asked, found)
    return {place.partition: place.offset for place in found if place.offset >= 0}


def set_positions(options: KafkaOptions, group: str, topic: str, offsets: Mapping[int, int]) -> bool:
    """Commit *offsets* for *group*; return False if it has members, which alone may commit.

    :raises BrokerError: if that failed.
    """
    asked = f"create consumer group {group!r}"
    places = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
    with _passer_by(options, group) as consumer, translated(asked):
        try:
            found = _with_coordinator(lambda: consumer.commit(offsets=places, asynchronous=False))
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_MEMBER_ID:
                return False
            raise
    _check(asked, found)
    return True


@contextmanager
def _passer_by(options: KafkaOptions, group: str) -> Iterator[Consumer]:
    """Enter with a consumer of *group* that does not join it.

    :raises BrokerError: if it cannot be made.
    """
    with making(given(options).values()):
        consumer = Consumer({**settings(options, "consumer"), "group.id": group, "enable.auto.commit": False})
    try:
        yield consumer
    finally:
        consumer.close()


def _with_coordinator(request: Callable[[], list[TopicPartition]]) -> list[TopicPartition]:
    """Make a request again until the group has a coordinator, and return the answer."""
    ends = time.monotonic() + _TIMEOUT
    while True:
        try:
            return request()
        except KafkaException as error:
            if error.args[0].code() not in COORDINATOR_IS_COMING or time.monotonic() > ends:
                raise
        time.sleep(_PAUSE)


def _check(asked: str, places: Sequence[TopicPartition]) -> None:
    for place in places:
        if place.error is not None:
            raise broker_error(asked, place.error)
