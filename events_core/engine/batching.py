"""When a request to publish leaves, and with which messages; pure.

A request leaves at once while it finds a place; what gathers meanwhile is the next batch (P5).  So a lone send waits
for no timer, and a busy client fills its batches by itself.  Requests without a key have ``max_inflight`` places.
Requests with one have ``max_keys`` places of their own, because each key has only one request out at a time: with many
keys and few places, the time of a round trip would bound the rate.

A :class:`~events_core.engine.pace.Pace`, where there is one, also bounds the bytes that are out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from events_core.engine.driver import BrokerError
from events_core.engine.pace import Pace, Trip
from events_core.engine.turns import Turns
from events_core.errors import ErrorCode
from events_core.message import EventMessage

__all__ = ["AnyCall", "Batch", "Batcher", "Call", "Entry", "Line", "SingleCall", "Wakeable", "not_attempted"]


class Wakeable(Protocol):
    """Somebody who waits."""

    def wake(self) -> None:
        """There is news."""


WakeableT = TypeVar("WakeableT", bound=Wakeable)


class Entry:
    """One message on its way."""

    __slots__ = ("admitted", "deadline", "message", "result", "size")

    message: EventMessage
    size: int
    """In bytes."""
    admitted: bool
    """Whether it counts among what is in flight."""
    deadline: float
    """The ``time.monotonic()`` at which its call ends."""
    result: str | BrokerError | None
    """``None`` while somebody waits for it."""

    @property
    def call(self) -> AnyCall[Any]:
        """Return the call that it is sent with."""
        raise NotImplementedError

    def complete(self, result: str | BrokerError) -> bool:
        """Record its outcome, once; return whether it was the last of its call."""
        raise NotImplementedError

    def hindrance(self) -> BrokerError | None:
        """Return why it must not be sent, if an earlier message of its key failed in the same call (P3)."""
        return None


class SingleCall(Entry, Generic[WakeableT]):
    """One ``send_message``, and its message: one object instead of three for what is done most."""

    __slots__ = ("last_error", "waiter")

    def __init__(self, message: EventMessage, size: int, deadline: float, waiter: WakeableT) -> None:
        self.message = message
        self.size = size
        self.admitted = False
        self.result = None
        self.deadline = deadline
        self.last_error: BrokerError | None = None
        self.waiter = waiter
        """Who wants to know when nothing is pending."""

    @property
    def call(self) -> SingleCall[WakeableT]:
        return self

    @property
    def entries(self) -> Sequence[Entry]:
        """Its message."""
        return (self,)

    @property
    def pending(self) -> int:
        """How many messages have no outcome."""
        return 1 if self.result is None else 0

    def complete(self, result: str | BrokerError) -> bool:
        self.result = result
        return True

    def take_results(self) -> list[str | BrokerError]:
        """What became of its message, once nothing is pending."""
        assert self.result is not None
        return [self.result]


class Call(Generic[WakeableT]):
    """One ``send_messages``: what became of each of its messages."""

    __slots__ = ("deadline", "entries", "failed_keys", "last_error", "pending", "waiter")

    def __init__(self, deadline: float, waiter: WakeableT) -> None:
        self.entries: list[Entry] = []
        self.pending = 0
        self.deadline = deadline
        self.failed_keys: set[str] = set()
        self.last_error: BrokerError | None = None
        self.waiter = waiter
        """Who wants to know when nothing is pending."""

    def add(self, message: EventMessage, size: int) -> None:
        """One message more, of *size* bytes."""
        self.entries.append(_Part(self, message, size))
        self.pending += 1

    def take_results(self) -> list[str | BrokerError]:
        """What became of each message, once nothing is pending; to be asked once."""
        results = [entry.result for entry in self.entries if entry.result is not None]
        assert len(results) == len(self.entries)
        self.entries.clear()  # else each send would leave a cycle, and its messages, to the garbage collector
        return results


AnyCall: TypeAlias = Call[WakeableT] | SingleCall[WakeableT]


class _Part(Entry):
    """One message of several."""

    __slots__ = ("_call",)

    def __init__(self, call: Call[Any], message: EventMessage, size: int) -> None:
        self.message = message
        self.size = size
        self.admitted = False
        self.result = None
        self.deadline = call.deadline
        self._call = call

    @property
    def call(self) -> Call[Any]:
        return self._call

    def complete(self, result: str | BrokerError) -> bool:
        self.result = result
        call = self._call
        call.pending -= 1
        key = self.message.ordering_key
        if key is not None and isinstance(result, BrokerError):
            call.failed_keys.add(key)
        return not call.pending

    def hindrance(self) -> BrokerError | None:
        key = self.message.ordering_key
        if key is None or key not in self._call.failed_keys:
            return None
        return not_attempted(key)


def not_attempted(key: str) -> BrokerError:
    """Return the result of a message of *key* after one that failed in the same call (P3)."""
    return BrokerError(
        f"not attempted, because an earlier message of ordering key {key!r} failed in the same call",
        ErrorCode.NOT_ATTEMPTED,
        retryable=True,
    )


class Line(deque[Entry]):
    """Entries that wait their turn."""

    __slots__ = ("_given_up",)

    def __init__(self) -> None:
        super().__init__()
        self._given_up = 0

    def forget_given_up(self) -> None:
        """Nobody waits for one of them any more; they are dropped when they may be as many as the others."""
        self._given_up += 1
        if 2 * self._given_up > len(self):
            self._given_up = 0
            waiting = [entry for entry in self if entry.result is None]
            self.clear()
            self.extend(waiting)


class _Places:
    """The places for requests that may be out at once, and what waits for one."""

    __slots__ = ("claims", "free", "ready", "total")

    def __init__(self, total: int) -> None:
        self.total = self.free = total
        self.ready: deque[_Lane] = deque()
        self.claims: deque[tuple[Batch, Wakeable]] = deque()
        """Paused requests that would leave again, before those that have not left yet."""


class _Lane:
    """Entries that leave in order: of one key, or all."""

    __slots__ = ("entries", "exclusive", "failing", "key", "out", "places", "queued")

    def __init__(self, key: str | None, places: _Places, exclusive: bool) -> None:
        self.key = key
        self.places = places
        self.exclusive = exclusive
        self.entries = Line()
        self.out = 0
        self.failing = 0
        self.queued = False


class Batch:
    """Entries that leave in one request, or in several, one after the other, if the line is too narrow for one."""

    __slots__ = ("began", "entries", "failing", "lane", "size", "trip")

    def __init__(self, lane: _Lane, entries: list[Entry], size: int, began: float) -> None:
        self.lane = lane
        self.entries = entries
        self.size = size
        """In bytes."""
        self.began = began
        self.failing = False
        self.trip: Trip | None = None
        """Its request, where there is a pace."""


class Batcher:
    """Gathers entries into requests.

    :param max_keys: how many requests with a key may be out; ``None`` where they share ``max_inflight``.
    :param mixed_keys: whether one request may carry several keys; then requests leave one at a time.
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
        pace: Pace | None = None,
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._places = _Places(1 if mixed_keys else max_inflight)
        self._keyed_places = self._places if mixed_keys or max_keys is None else _Places(max_keys)
        self._turn = deque({id(each): each for each in (self._places, self._keyed_places)}.values())
        """In the order of their turns, so that requests of one kind do not use up all the bytes."""
        self._mixed = mixed_keys
        self._pace = pace
        self._lanes: dict[str | None, _Lane] = {}
        self._turns = Turns() if mixed_keys else None

    def add(self, entry: Entry) -> None:
        """Queue an entry behind those of its key."""
        key = None if self._mixed else entry.message.ordering_key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(
                key, self._places if key is None else self._keyed_places, exclusive=self._mixed or key is not None
            )
        lane.entries.append(entry)
        self._offer(lane)

    def forget(self, entry: Entry) -> None:
        """Let go of *entry*, for which nobody waits any more, whether it has left or not."""
        lane = self._lanes.get(None if self._mixed else entry.message.ordering_key)
        if lane is not None:
            lane.entries.forget_given_up()

    @property
    def is_ready(self) -> bool:
        """Whether a request may leave now."""
        places = self._places
        if not places.ready or places.free <= 0:
            places = self._keyed_places
            if not places.ready or places.free <= 0:
                return False
        return self._has_room

    @property
    def _has_room(self) -> bool:
        return self._pace is None or self._pace.has_room

    def next(self, now: float) -> Batch | None:
        """Return the next request that may leave, *now* in seconds of any clock; :meth:`release` must follow."""
        if not self._has_room:
            return None
        for places in tuple(self._turn):
            self._turn.rotate(-1)
            batch = self._next_at(places, now)
            if batch is not None:
                return batch
        return None

    def _next_at(self, places: _Places, now: float) -> Batch | None:
        while places.free > 0 and places.ready:
            lane = places.ready.popleft()
            lane.queued = False
            if lane.failing >= places.total:
                continue  # until one of them is over
            queued = len(lane.entries)
            entries, size = self._gather(lane, self._turns.take(queued, now) if self._turns else queued)
            if entries:
                places.free -= 1
                lane.out += 1
                self._offer(lane)
                batch = Batch(lane, entries, size, now)
                if self._pace is not None:
                    batch.trip = self._pace.leave(size, now)
                return batch
            self._forget(lane)
        return None

    def depart(self, batch: Batch, entries: list[Entry], now: float) -> list[Entry]:
        """Begin a request of *batch*; return those of *entries*, from the first on, that the line has room for."""
        pace = self._pace
        if pace is None:
            return entries
        count, size = len(entries), batch.size
        if size > pace.request_size:
            count, size = _fitting(entries, pace.request_size)
        if batch.trip is not None:
            pace.end(batch.trip)
        batch.trip = pace.leave(size, now)
        return entries[:count]

    def confirm(self, batch: Batch, now: float) -> None:
        """Take note that the broker has answered the request: its bytes are no longer out."""
        if self._pace is not None and batch.trip is not None:
            self._pace.confirm(batch.trip, now)
            batch.trip = None

    def release(self, batch: Batch, now: float) -> None:
        """End *batch*: its place is free, and its lane may leave again."""
        lane = batch.lane
        lane.out -= 1
        lane.failing -= batch.failing
        if self._turns:
            self._turns.over(len(batch.entries), batch.began, now, waiting=bool(lane.entries))
        self._vacate(batch)
        self._offer(lane)
        self._forget(lane)

    def pause(self, batch: Batch, now: float = 0.0, *, timed_out: bool = False) -> None:
        """Give the place of *batch* to another request while *batch* waits for its next try; its key stays taken.

        If as many requests without a key have paused as may be out, no other leaves: it would only fail as well.
        """
        batch.lane.failing += not batch.failing
        batch.failing = True
        if timed_out and self._pace is not None and batch.trip is not None:
            self._pace.time_out(batch.trip, now)
            batch.trip = None
        self._vacate(batch)

    def resume(self, batch: Batch, claim: Wakeable) -> None:
        """Let a paused request leave again: *claim* is woken when it has a place, before new requests get one."""
        batch.lane.places.claims.append((batch, claim))
        self._grant()

    def _vacate(self, batch: Batch) -> None:
        batch.lane.places.free += 1
        if self._pace is not None and batch.trip is not None:
            self._pace.end(batch.trip)
            batch.trip = None
        self._grant()

    def _grant(self) -> None:
        """Give places to paused requests."""
        for places in self._turn:
            while places.claims and places.free > 0 and self._has_room:
                batch, claim = places.claims.popleft()
                places.free -= 1
                if self._pace is not None:
                    batch.trip = self._pace.leave(min(batch.size, self._pace.request_size), batch.began)
                claim.wake()

    def _gather(self, lane: _Lane, enough: int) -> tuple[list[Entry], int]:
        """Take *enough* entries of *lane*, or a few more so that no call is divided; return them and their size."""
        largest = self._max_bytes if self._pace is None else min(self._max_bytes, self._pace.request_size)
        gathered: list[Entry] = []
        size = 0
        while lane.entries and len(gathered) < self._max_messages:
            entry = lane.entries[0]
            if gathered and size + entry.size > largest:
                break
            if len(gathered) >= enough and entry.call is not gathered[-1].call:
                break
            lane.entries.popleft()
            if entry.result is None:
                gathered.append(entry)
                size += entry.size
        return gathered, size

    def _offer(self, lane: _Lane) -> None:
        if lane.entries and not lane.queued and not (lane.exclusive and lane.out):
            lane.queued = True
            lane.places.ready.append(lane)

    def _forget(self, lane: _Lane) -> None:
        if not lane.entries and not lane.out:
            self._lanes.pop(lane.key, None)


def _fitting(entries: Sequence[Entry], largest: int) -> tuple[int, int]:
    """Return how many of *entries*, at least one, have *largest* bytes or fewer together, and their bytes."""
    size = entries[0].size
    for count, entry in enumerate(entries[1:], 1):
        if size + entry.size > largest:
            return count, size
        size += entry.size
    return len(entries), size
