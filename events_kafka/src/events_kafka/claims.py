"""The partitions that this receiver has, and which of their records are settled.

A *claim* is one partition, from its assignment to this receiver until it is revoked.  If the partition comes back, that
is another claim.  A delivery belongs to its claim: after the claim has ended, another receiver may have the record.

The consumer's thread adds claims and notes what has come.  Home settles, and ends claims.  Both hold
:attr:`Claims.lock` for it, never while they wait for something.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from events_kafka.position import Position

if TYPE_CHECKING:
    from confluent_kafka import Message

__all__ = ["Claim", "Claims", "Commit", "Seen", "Start", "Token"]

_token = tuple.__new__  # takes half of the time of Token(…), and this is done for each record


class Start(NamedTuple):
    """The position at which a claim begins."""

    partition: int
    offset: int
    metadata: str = ""
    """The metadata of the commit."""
    is_committed: bool = True
    """True if the group has committed it."""


class Claim:
    """One partition of this receiver."""

    __slots__ = ("committed", "is_paused", "number", "partition", "position", "prefix", "taken")

    def __init__(self, number: int, topic: str, start: Start, taken: Collection[int] = ()) -> None:
        self.number = number
        self.partition = start.partition
        self.prefix = f"{topic}/{start.partition}/"
        """The ids of its messages without their offsets."""
        self.position = Position(start.offset, start.metadata)
        self.committed: tuple[int, str] | None = (start.offset, start.metadata) if start.is_committed else None
        """The offset and the metadata that the broker has; ``None`` if it has none.  Only the thread touches it."""
        self.is_paused = False
        """True while nothing more of it is fetched, because of its gap.  Only the thread touches it."""
        self.taken = frozenset(taken)
        """The offsets of messages that the application may hold from before the topic was created again."""


class Token(NamedTuple):
    """The handle of a delivery."""

    claim: Claim
    offset: int
    record: Message


class Commit(NamedTuple):
    """A position on its way to the broker."""

    claim: Claim
    offset: int
    metadata: str


class Seen(NamedTuple):
    """Records that have come, in order."""

    fresh: Sequence[Token]
    """Those to deliver."""
    renamed: Collection[Token]
    """Those of *fresh* whose id another message has, of a topic that was deleted."""
    stale: Collection[Claim]
    """Claims whose records may have been fetched for an earlier claim of the partition."""


class Claims:
    """All claims of one receiver."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self.lock = threading.Lock()
        self._claims: dict[int, Claim] = {}
        """The present claims, by partition."""
        self._left: dict[int, frozenset[int]] = {}
        """The unsettled offsets of the last claim of each partition that the receiver had."""
        self.newest = 0
        """The number of the newest claim."""

    def __len__(self) -> int:
        """Return the number of partitions."""
        return len(self._claims)

    @property
    def all(self) -> Sequence[Claim]:
        """The present claims."""
        with self.lock:
            return list(self._claims.values())

    def find(self, partition: int) -> Claim | None:
        """Return the claim of a partition; ``None`` if the receiver does not have it."""
        return self._claims.get(partition)

    def add(self, starts: Iterable[Start]) -> Sequence[Claim]:
        """Begin claims, and return them."""
        added = []
        with self.lock:
            for start in starts:
                self.newest += 1
                left = self._left.pop(start.partition, frozenset())
                # Without a position, it may be the partition of a new topic.
                claim = Claim(self.newest, self._topic, start, () if start.is_committed else left)
                self._claims[start.partition] = claim
                added.append(claim)
        return added

    def end(self, claims: Iterable[Claim]) -> None:
        """End *claims*.  From now on their positions do not change."""
        with self.lock:
            for claim in claims:
                if self._claims.get(claim.partition) is claim:
                    del self._claims[claim.partition]
                    self._left[claim.partition] = frozenset(claim.position.unsettled)

    def see(self, records: Iterable[Message], newest: int) -> Seen:
        """Note that *records* have come.

        :param newest: the number of the newest claim before the records were asked for.
        """
        fresh: list[Token] = []
        renamed: list[Token] = []
        stale: set[Claim] = set()
        with self.lock:
            for record in records:
                partition, offset = record.partition(), record.offset()
                assert partition is not None
                assert offset is not None
                claim = self._claims.get(partition)
                if claim is None:
                    continue  # it was revoked meanwhile
                if claim.number > newest:
                    stale.add(claim)
                elif claim.position.see(offset):
                    token = _token(Token, (claim, offset, record))
                    fresh.append(token)
                    if offset in claim.taken:
                        renamed.append(token)
        return Seen(fresh, renamed, stale)

    def has(self, token: Token) -> bool:
        """Return whether the claim of a delivery goes on.  Under the lock."""
        claim = token.claim
        return self._claims.get(claim.partition) is claim

    def is_unsettled(self, token: Token) -> bool:
        """Return whether a delivery is still to be settled.  Under the lock."""
        return self.has(token) and token.claim.position.is_unsettled(token.offset)

    def settle(self, token: Token) -> bool:
        """Note that a record is done; return False if its claim has ended.  Under the lock."""
        if not self.has(token):
            return False
        token.claim.position.settle(token.offset)
        return True

    def gaps(self) -> Sequence[tuple[Claim, int]]:
        """Return each present claim with its gap (:attr:`Position.gap`)."""
        with self.lock:
            return [(claim, claim.position.gap) for claim in self._claims.values()]

    def commits(self, claims: Iterable[Claim], limit: int, *, unchanged: bool = False) -> list[Commit]:
        """Return the positions to commit.

        :param limit: most bytes of metadata.
        :param unchanged: also those that the broker has already.
        """
        with self.lock:
            found = [Commit(claim, claim.position.offset, claim.position.metadata(limit)) for claim in claims]
        return [each for each in found if unchanged or each.claim.committed != (each.offset, each.metadata)]
