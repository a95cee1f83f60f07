"""The partitions that librdkafka fetches: from where, and which of them are paused.

All of it runs in the consumer's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from confluent_kafka.cimpl import Consumer as Native
from confluent_kafka.cimpl import TopicPartition

from events_kafka.claims import Claim, Claims, Start
from events_kafka.starts import watermarks

__all__ = ["Assignment"]

_log = logging.getLogger("events_kafka")


class Assignment:
    """The partitions of one consumer, as librdkafka has them.

    :param native: the consumer of librdkafka.
    :param lose: ends claims whose records another receiver may have.
    :param is_eager: True if the group takes all partitions away before it gives new ones.
    :param max_gap: the most settled records after an unsettled one, for each partition.
    """

    def __init__(
        self,
        native: Native,
        claims: Claims,
        topic: str,
        lose: Callable[[Sequence[Claim]], None],
        *,
        is_eager: bool,
        max_gap: int,
    ) -> None:
        self._native = native
        self._claims = claims
        self._topic = topic
        self._lose = lose
        self._is_eager = is_eager
        self._max_gap = max_gap
        self.is_paused = False
        """True while all partitions are paused."""
        self.ignores = False
        """True once :meth:`ignore` was called."""
        self._astray: set[int] = set()
        """Partitions whose position the broker does not have."""

    def place(self, claims: Sequence[Claim], *, again: bool = False) -> None:
        """Fetch the partitions of *claims*, from their positions on.

        :param again: librdkafka has them already, and is elsewhere.
        """
        if self._is_eager:
            claims = self._claims.all
            placed = self._partitions(claims)
            self._native.assign(placed)
        else:
            placed = self._partitions(claims)
            if again:
                self._native.incremental_unassign(placed)
            self._native.incremental_assign(placed)
        if again:
            for claim in claims:
                claim.is_paused = False
        # A partition that was paused when it was removed is still paused when it comes back (2.16, measured).
        if self.is_paused:
            self._native.pause(placed)
        else:
            self._native.resume(self._partitions([claim for claim in claims if not claim.is_paused]))

    def ignore(self, partitions: Sequence[TopicPartition]) -> None:
        """Take *partitions* and fetch nothing of them: librdkafka wants each that the group gives to be taken."""
        self.ignores = True
        if self._is_eager:
            self._native.assign(list(partitions))
        else:
            self._native.incremental_assign(list(partitions))
        self._native.pause(list(partitions))

    def remove(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch *partitions* no more."""
        if self._is_eager:
            self._native.unassign()
        else:
            self._native.incremental_unassign(list(partitions))

    def claims_of(self, partitions: Iterable[TopicPartition]) -> Sequence[Claim]:
        """Return the claims of those *partitions* that the receiver has."""
        found = [self._claims.find(each.partition) for each in partitions]
        return [claim for claim in found if claim is not None]

    def _partitions(self, claims: Iterable[Claim]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, claim.partition, claim.position.next) for claim in claims]

    # Pauses

    def pause(self) -> None:
        """Fetch nothing.  librdkafka throws away what it has fetched ahead."""
        self.is_paused = True
        self._native.pause(self._partitions(self._claims.all))

    def resume(self) -> None:
        """Fetch again."""
        self.is_paused = False
        self._native.resume(self._partitions([claim for claim in self._claims.all if not claim.is_paused]))

    def bound_gaps(self) -> None:
        """Pause partitions that wait for an unsettled record, and resume those that do not wait any more."""
        for claim, gap in self._claims.gaps():
            if not claim.is_paused and gap >= self._max_gap:
                self._pause_for_gap(claim, gap)
            elif claim.is_paused and gap <= self._max_gap // 2:
                claim.is_paused = False
                if not self.is_paused:
                    self._native.resume(self._partitions([claim]))

    def _pause_for_gap(self, claim: Claim, gap: int) -> None:
        claim.is_paused = True
        self._native.pause(self._partitions([claim]))
        _log.warning(
            "partition %d of topic %r pauses: %d messages are settled after one that is not; settle that one, or "
            "raise the option max_gap",
            claim.partition,
            self._topic,
            gap,
        )

    # Positions that the broker does not have

    @property
    def is_astray(self) -> bool:
        """Return whether :meth:`correct` has something to do."""
        return bool(self._astray)

    def went_astray(self, partition: int) -> None:
        """Note that the broker does not have the position of a partition."""
        self._astray.add(partition)

    def correct(self) -> None:
        """Set positions that the broker does not have to the oldest record.

        :raises KafkaException: if the broker does not answer.
        """
        for partition in list(self._astray):
            claim = self._claims.find(partition)
            if claim is not None:
                self._correct(claim, *watermarks(self._native, self._topic, partition))
            self._astray.discard(partition)

    def _correct(self, claim: Claim, low: int, high: int) -> None:
        wanted = claim.position.next
        if wanted > high:
            self._begin_again(claim, low, high)
            return
        if wanted < low:
            _log.warning(
                "the messages from offset %d to %d of partition %d of topic %r are gone: its retention ended before "
                "they were received",
                wanted,
                low - 1,
                claim.partition,
                self._topic,
            )
            with self._claims.lock:
                claim.position.skip(low)
        self.place([claim], again=True)

    def _begin_again(self, claim: Claim, low: int, high: int) -> None:
        _log.warning(
            "partition %d of topic %r ends at offset %d, and the position was %d: the topic was created again, or its "
            "end was lost; it starts with the oldest message, at offset %d",
            claim.partition,
            self._topic,
            high,
            claim.position.next,
            low,
        )
        self._lose([claim])
        placed = self._claims.add([Start(claim.partition, low, is_committed=False)])
        self.place(placed, again=True)
