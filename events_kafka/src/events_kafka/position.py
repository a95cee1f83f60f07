"""The position of one partition: the offset to commit, and the acknowledged offsets beyond it.

Kafka keeps one number for each partition of a consumer group: all records below it are done.  So the number to commit
is the lowest offset that is not settled.  A record that is held or has failed keeps it back, however many later ones
are acknowledged.  After a crash those would come again.  Therefore a commit also carries them, in its metadata::

    offset   100  101  102  103  104  105  106
             held done done  -   held done next

    commit   100, metadata "events 1 100 1+3 1+1"

The first numbers of the metadata are its format and the offset.  Then come pairs, from that offset on: so many offsets
are not settled, and so many after them are.

**Holes.**  Compaction and transactions leave offsets without a record, such as 103.  No arithmetic tells them from
records that have not come yet, so the position counts the offsets that were seen.  A hole between two seen offsets
stays a hole, so the metadata may name it as done.

This module does no I/O.  Its owner locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

__all__ = ["MAX_METADATA", "Position"]

MAX_METADATA = 4096
"""Bytes of metadata that a broker takes with a commit, unless it is told otherwise (``offset.metadata.max.bytes``)."""

_FORMAT = "events 1"


class Position:
    """The records of one partition that were seen since it was assigned, and which of them are settled.

    :param start: the committed offset, from which on records come.
    :param metadata: the metadata of that commit.  It is ignored if another program wrote it, or moved the offset.
    """

    def __init__(self, start: int, metadata: str = "") -> None:
        self._next = start
        """The offset after the highest one that was seen."""
        self._unsettled: dict[int, int] = {}
        """The offsets that were seen and not settled, in order, each with its number among those that were seen."""
        self._seen = 0
        # What was acknowledged before the partition came here: ranges of offsets, the end excluded.  All of them end
        # after _next.
        self._done = deque(_read(metadata, start))

    def see(self, offset: int) -> bool:
        """Note that a record has come; return False if it must not be delivered: it is done, or was seen before."""
        if offset < self._next:
            return False
        self._next = offset + 1
        self._seen += 1
        done = self._done
        if done:
            while done and done[0][1] <= offset:
                done.popleft()
            if done and done[0][0] <= offset:
                if done[0][1] == self._next:
                    done.popleft()
                return False
        self._unsettled[offset] = self._seen
        return True

    def settle(self, offset: int) -> None:
        """Note that the record is done.  To do so again has no effect."""
        self._unsettled.pop(offset, None)

    def is_unsettled(self, offset: int) -> bool:
        """Return whether the record was seen, and is not done."""
        return offset in self._unsettled

    def skip(self, offset: int) -> None:
        """Note that the records below *offset* that have not come are gone: the broker has deleted them."""
        self._next = max(self._next, offset)
        while self._done and self._done[0][1] <= self._next:
            self._done.popleft()

    @property
    def unsettled(self) -> Collection[int]:
        """The offsets of the records that were seen and are not done."""
        return self._unsettled.keys()

    @property
    def next(self) -> int:
        """The lowest offset that may still come."""
        return self._next

    @property
    def offset(self) -> int:
        """The offset to commit: the lowest one that is not done."""
        for offset in self._unsettled:
            return offset
        if self._done and self._done[0][0] <= self._next:
            return self._done[0][1]
        return self._next

    @property
    def gap(self) -> int:
        """The number of records beyond :attr:`offset` that are done: a commit cannot pass them."""
        for number in self._unsettled.values():
            return self._seen - number + 1 - len(self._unsettled)
        return 0

    def metadata(self, limit: int = MAX_METADATA) -> str:
        """Return the metadata of a commit, of at most *limit* bytes.  The ranges that do not fit come again."""
        position = at = self.offset
        text = f"{_FORMAT} {position}"
        for first, end in self._ranges(position):
            pair = f" {first - at}+{end - first}"
            if len(text) + len(pair) > limit:
                break
            text += pair
            at = end
        return text if at > position else ""

    def _ranges(self, begin: int) -> Iterator[tuple[int, int]]:
        """Return the ranges of offsets from *begin* on that are done."""
        for offset in self._unsettled:
            if offset > begin:
                yield begin, offset
            begin = offset + 1
        if begin < self._next:
            yield begin, self._next
            begin = self._next
        for first, end in self._done:
            if end > begin:
                yield max(begin, first), end


def _read(metadata: str, offset: int) -> Iterator[tuple[int, int]]:
    """Return the ranges that *metadata* names; none if it does not belong to the *offset*.

    A tool may copy metadata to another offset, as MirrorMaker does when it translates offsets.
    """
    mark = f"{_FORMAT} {offset} "
    if not metadata.startswith(mark):
        return
    ranges = []
    at = offset
    for pair in metadata[len(mark) :].split(" "):
        skipped, _, done = pair.partition("+")
        if not (skipped.isdecimal() and done.isdecimal() and int(done)):
            return
        first = at + int(skipped)
        at = first + int(done)
        ranges.append((first, at))
    yield from ranges
