"""Batching: which entries leave in one request, and when.

This module does no I/O.  The publisher that owns the outbox holds its lock for every call, except for
:attr:`Batcher.is_ready`.

A request leaves at once if a *place* is free; entries that arrive while all places are taken are the next batch (P5).
So a single send waits for no timer, and the batches of a busy client fill by themselves.

A *lane* is a queue of entries that must leave in order: those of one key, or those without a key.  Requests without a
key have ``max_inflight`` places.  Requests with a key have ``max_keys`` places of their own, because each key has only
one request out at a time.  With many keys and few places, the time of a round trip would bound the rate.

With few places, batches gather many entries.  But small batches need more requests at once for the same rate.  So a
batch may also leave in one of ``max_full`` places if it is full: waiting would add nothing to it.

Usually a batch comes from one lane.  If the broker takes several keys in a request but only one message of each
(``one_of_each_key``), a batch takes the first entry of every lane with a key that is ready, until it is full.  All
these lanes are out with it.

A batch goes through these calls, in this order::

    next      it takes a place and leaves its lane
    depart    its request begins
    confirm   the broker has answered; its bytes are no longer out
    release   it is over; the place is free

A request that failed for a while does two more steps before it departs again.  :meth:`Batcher.pause` gives its place to
others, and :meth:`Batcher.resume` waits for a place.

A :class:`~events_core.engine.pace.Pace`, if there is one, also bounds the bytes that are out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from events_core.engine.halves import Halves
from events_core.engine.pace import Pace, Trip
from events_core.engine.sends import Entry, EntryQueue
from events_core.engine.wakeable import Wakeable

__all__ = ["Batch", "Batcher"]


class _Places:
    """The places for requests that may be out at once, and the lanes and batches that wait for one."""

    __slots__ = ("claims", "free", "ready", "spare", "total")

    def __init__(self, total: int, spare: int = 0) -> None:
        self.total = self.free = total
        """``free`` is below 0 while more requests are out, in the places for full ones."""
        self.spare = spare
        """Additional places, for full requests only."""
        self.ready: deque[_Lane] = deque()
        self.claims: deque[tuple[Batch, Wakeable]] = deque()
        """Paused batches that may try again.  They get a place before lanes do: they are older."""


class _Lane:
    """A queue of entries that leave in order: those of one key, or all."""

    __slots__ = ("entries", "exclusive", "failing", "key", "out", "places", "queued")

    def __init__(self, key: str | None, places: _Places, exclusive: bool) -> None:
        self.key = key
        self.places = places
        self.exclusive = exclusive
        """True if only one of its requests may be out, to keep the order."""
        self.entries = EntryQueue()
        self.out = 0
        self.failing = 0
        """Batches of it that have paused and not completed yet."""
        self.queued = False
        """True while it waits in ``places.ready``."""


class Batch:
    """Entries that leave in one request, or in several, one after the other, if the network is too slow for one."""

    __slots__ = ("began", "entries", "failing", "lanes", "places", "size", "trip")

    def __init__(self, lanes: Sequence[_Lane], entries: list[Entry], size: int, began: float) -> None:
        self.lanes = lanes
        self.places = lanes[0].places
        self.entries = entries
        self.size = size
        """In bytes."""
        self.began = began
        self.failing = False
        self.trip: Trip | None = None
        """Its request that is out, if there is a pace."""


class Batcher:
    """The lanes of one client, which gather entries into batches.

    :param max_messages: most entries of one batch.
    :param max_bytes: most bytes of one batch; a larger entry leaves alone.
    :param max_inflight: most requests that are out.
    :param max_keys: most requests with a key that are out; ``None`` if they share ``max_inflight``.
    :param max_full: most requests that are out if all but ``max_inflight`` of them have ``max_messages``; ``None`` for
        ``max_inflight``.  Requests that have ``max_keys`` do not count.
    :param mixed_keys: True if one request may carry several keys; then requests leave one at a time.
    :param one_of_each_key: True if one request may carry several keys, but only one message of each.
    :param pace: bounds the bytes that are out.
    """

    def __init__(
        self,
        *,
        max_messages: int,
        max_bytes: int | None,
        max_inflight: int,
        mixed_keys: bool,
        max_keys: int | None = None,
        max_full: int | None = None,
        one_of_each_key: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._places = _Places(1) if mixed_keys else _Places(max_inflight, (max_full or max_inflight) - max_inflight)
        shared = mixed_keys or one_of_each_key or max_keys is None
        self._keyed_places = self._places if shared else _Places(max_keys or 1)
        self._kinds = deque({id(each): each for each in (self._places, self._keyed_places)}.values())
        """Both kinds of places, by turns, so that requests of one kind do not use up all the bytes of the pace."""
        self._mixed = mixed_keys
        self._one_of_each = one_of_each_key
        self._pace = pace
        self._lanes: dict[str | None, _Lane] = {}
        self._halves = Halves() if mixed_keys else None

    def add(self, entry: Entry) -> None:
        """Queue an entry behind those of its key."""
        lane = self._lane_of(None if self._mixed else entry.message.ordering_key)
        lane.entries.append(entry)
        self._offer(lane)

    def add_all(self, entries: Sequence[Entry]) -> None:
        """Queue *entries*, each behind those of its key."""
        if not self._mixed:
            for entry in entries:
                self.add(entry)
            return
        lane = self._lane_of(None)
        lane.entries.extend(entries)
        self._offer(lane)

    def _lane_of(self, key: str | None) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(
                key, self._places if key is None else self._keyed_places, exclusive=self._mixed or key is not None
            )
        return lane

    def give_up(self, entry: Entry) -> None:
        """Take note that the caller no longer waits for *entry*, whether it has left or not."""
        lane = self._lanes.get(None if self._mixed else entry.message.ordering_key)
        if lane is not None:
            lane.entries.give_up()

    @property
    def is_ready(self) -> bool:
        """Return whether a batch may leave now.

        The only method that may be called without the lock.  It changes nothing, and a wrong answer does no harm: the
        owner looks again under the lock before a batch leaves, and whenever one may have become ready.
        """
        # Written out twice, because this runs for each send.
        places = self._places
        if not places.ready or (places.free <= 0 and (places.free <= -places.spare or not self._is_full(places))):
            places = self._keyed_places
            if not places.ready or (places.free <= 0 and (places.free <= -places.spare or not self._is_full(places))):
                return False
        return self._has_room

    def _is_full(self, places: _Places) -> bool:
        """Return whether the next batch would be full, if nothing of it had been given up; without the lock too."""
        if not self._one_of_each:
            try:
                return len(places.ready[0].entries) >= self._max_messages
            except IndexError:  # another thread has taken the last lane since
                return False
        lane = self._lanes.get(None)
        others = len(lane.entries) - 1 if lane is not None and lane.queued else 0
        return len(places.ready) + others >= self._max_messages

    @property
    def _has_room(self) -> bool:
        return self._pace is None or self._pace.has_room

    def next(self, now: float) -> Batch | None:
        """Return the next batch that may leave, if any; :meth:`release` must follow.

        :param now: seconds of any clock, the same in all methods.
        """
        if not self._has_room:
            return None
        # The other kind is asked first next time, whether or not a batch leaves now.
        for places in tuple(self._kinds):
            self._kinds.rotate(-1)
            batch = self._next_at(places, now)
            if batch is not None:
                return batch
        return None

    def _next_at(self, places: _Places, now: float) -> Batch | None:
        while places.ready and (places.free > 0 or (places.free > -places.spare and self._is_full(places))):
            lane = places.ready.popleft()
            lane.queued = False
            if lane.failing >= places.total:
                # All its batches fail, so another one would fail too.  release() of one of them offers the lane again.
                continue
            queued = len(lane.entries)
            entries, size = self._gather(lane, self._halves.take(queued, now) if self._halves else queued)
            lanes = [lane]
            if self._one_of_each and entries:
                size = self._add_lanes(places, lanes, entries, size)
            if entries:
                return self._leave(Batch(lanes, entries, size, now), now)
            # All its entries had been given up.
            self._drop_if_empty(lane)
        return None

    def _leave(self, batch: Batch, now: float) -> Batch:
        batch.places.free -= 1
        for lane in batch.lanes:
            lane.out += 1
            # A lane without a key may have several batches out.  It goes behind the others that are ready.
            self._offer(lane)
        if self._pace is not None:
            batch.trip = self._pace.leave(batch.size, now)
        return batch

    def _add_lanes(self, places: _Places, lanes: list[_Lane], entries: list[Entry], size: int) -> int:
        """Fill up a batch from other lanes that are ready; return its size.

        :param lanes: the lanes that have given *entries*; both grow.
        """
        while places.ready and len(entries) < self._max_messages:
            lane = places.ready[0]
            more, added = self._gather(lane, len(lane.entries), entries, size)
            if not more and lane.entries:
                break  # its next entry does not fit
            places.ready.popleft()
            lane.queued = False
            if more:
                lanes.append(lane)
                entries += more
                size += added
            else:
                self._drop_if_empty(lane)
        return size

    def depart(self, batch: Batch, entries: list[Entry], now: float) -> list[Entry]:
        """Begin a request of *batch*; return the first of *entries*, as many as one request of the pace may carry."""
        pace = self._pace
        if pace is None:
            return entries
        count, size = len(entries), batch.size
        # The pace may allow less than when the batch was gathered.  Then the rest of it follows in another request.
        if size > pace.request_size:
            count, size = _fitting(entries, pace.request_size)
        if batch.trip is not None:
            pace.end(batch.trip)
        batch.trip = pace.leave(size, now)
        return entries[:count]

    def confirm(self, batch: Batch, now: float) -> None:
        """Take note that the broker has answered the request of *batch*: its bytes are no longer out."""
        if self._pace is not None and batch.trip is not None:
            self._pace.confirm(batch.trip, now)
            batch.trip = None

    def release(self, batch: Batch, now: float) -> None:
        """End *batch*: free its place, and let its lane leave again."""
        if self._halves:
            self._halves.over(len(batch.entries), batch.began, now, waiting=bool(batch.lanes[0].entries))
        self._vacate(batch)
        self._let_go(batch, batch.lanes)

    def shed(self, batch: Batch) -> None:
        """Let the keys of *batch* leave again of which no entry is sent again, so that it delays only the others."""
        if not self._one_of_each:
            return
        keys = {entry.message.ordering_key for entry in batch.entries if entry.result is None}
        over = [lane for lane in batch.lanes if lane.key not in keys]
        batch.lanes = [lane for lane in batch.lanes if lane.key in keys]
        self._let_go(batch, over)

    def _let_go(self, batch: Batch, lanes: Sequence[_Lane]) -> None:
        for lane in lanes:
            lane.out -= 1
            lane.failing -= batch.failing
            self._offer(lane)
            self._drop_if_empty(lane)

    def pause(self, batch: Batch, now: float = 0.0, *, timed_out: bool = False) -> None:
        """Give the place of *batch* to another while *batch* waits for its next try; its key stays taken.

        If as many batches without a key have paused as may be out, no other leaves, because it would fail as well.

        :param timed_out: True if the request got no answer in time; the pace then carries less.
        """
        # A batch counts once, however often it pauses.
        for lane in batch.lanes:
            lane.failing += not batch.failing
        batch.failing = True
        if timed_out and self._pace is not None and batch.trip is not None:
            self._pace.time_out(batch.trip, now)
            batch.trip = None
        self._vacate(batch)

    def resume(self, batch: Batch, claim: Wakeable) -> None:
        """Wake *claim* when the paused *batch* has a place again; it gets one before batches that have not left yet."""
        batch.places.claims.append((batch, claim))
        self._grant()

    def _vacate(self, batch: Batch) -> None:
        batch.places.free += 1
        if self._pace is not None and batch.trip is not None:
            self._pace.end(batch.trip)
            batch.trip = None
        self._grant()

    def _grant(self) -> None:
        """Give free places to paused batches."""
        for places in self._kinds:
            while places.claims and places.free > 0 and self._has_room:
                batch, claim = places.claims.popleft()
                places.free -= 1
                if self._pace is not None:
                    batch.trip = self._pace.leave(min(batch.size, self._pace.request_size), batch.began)
                claim.wake()

    def _gather(
        self, lane: _Lane, enough: int, before: Sequence[Entry] = (), before_size: int = 0
    ) -> tuple[list[Entry], int]:
        """Take *enough* entries of *lane*, or more so that no send is divided; return them and their bytes together.

        :param before: entries of *before_size* bytes that are in the batch already.
        """
        largest = self._max_bytes if self._pace is None else min(self._max_bytes, self._pace.request_size)
        queue = lane.entries
        most = 1 if self._one_of_each and lane.key is not None else self._max_messages - len(before)
        # Usually all of it leaves: one send, or less than enough.  Then nothing is asked of each entry.
        if queue and len(queue) <= most and (len(queue) <= enough or queue[0].send is queue[-1].send):
            gathered = [entry for entry in queue if entry.result is None]
            size = sum([entry.size for entry in gathered])
            if before_size + size <= largest:
                queue.clear()
                return gathered, size
        gathered, size = [], 0
        while queue and len(gathered) < most:
            entry = queue[0]
            if (gathered or before) and before_size + size + entry.size > largest:
                break
            # A divided send would complete later, and its results are awaited together.
            if len(gathered) >= enough and entry.send is not gathered[-1].send:
                break
            queue.popleft()
            if entry.result is None:
                gathered.append(entry)
                size += entry.size
        return gathered, size

    def _offer(self, lane: _Lane) -> None:
        """Let *lane* wait for a place, if it has something to send and may send it."""
        if lane.entries and not lane.queued and not (lane.exclusive and lane.out):
            lane.queued = True
            lane.places.ready.append(lane)

    def _drop_if_empty(self, lane: _Lane) -> None:
        # There is a lane for each key, and a program may use any number of keys.
        if not lane.entries and not lane.out:
            self._lanes.pop(lane.key, None)


def _fitting(entries: Sequence[Entry], largest: int) -> tuple[int, int]:
    """Return how many of *entries*, at least one, have at most *largest* bytes together, and these bytes."""
    size = entries[0].size
    for count, entry in enumerate(entries[1:], 1):
        if size + entry.size > largest:
            return count, size
        size += entry.size
    return len(entries), size
