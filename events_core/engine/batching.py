"""When a request to publish leaves, and with which messages; pure.

A request leaves at once while fewer than ``max_inflight`` are out; what gathers meanwhile is the next batch (P5).  So
a lone send waits for no timer, and a busy client fills its batches by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from events_core.engine.driver import BrokerError
from events_core.engine.turns import Turns
from events_core.errors import ErrorCode
from events_core.message import EventMessage

__all__ = ["AnyCall", "Batch", "Batcher", "Call", "Entry", "Line", "SingleCall", "Wakeable"]


class Wakeable(Protocol):
    """Somebody who waits."""

    def wake(self) -> None:
        """There is news."""


WakeableT = TypeVar("WakeableT", bound=Wakeable)


class Entry:
    """One message on its way."""

    __slots__ = ("admitted", "message", "result", "size")

    message: EventMessage
    size: int
    """In bytes."""
    admitted: bool
    """Whether it counts among what is in flight."""
    result: str | BrokerError | None
    """``None`` while somebody waits for it."""

    @property
    def call(self) -> AnyCall[Any]:
        """What it is sent with."""
        raise NotImplementedError

    def settle(self, result: str | BrokerError) -> bool:
        """Record its outcome, once; whether it was the last of its call."""
        raise NotImplementedError

    def hindrance(self) -> BrokerError | None:
        """Why it must not be sent: an earlier message of its key failed in the same call (P3)."""
        return None


class SingleCall(Entry, Generic[WakeableT]):
    """One ``send_message``, and its message: one object instead of three for what is done most."""

    __slots__ = ("deadline", "last_error", "waiter")

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

    def settle(self, result: str | BrokerError) -> bool:
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
        self._call = call

    @property
    def call(self) -> Call[Any]:
        return self._call

    def settle(self, result: str | BrokerError) -> bool:
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


class _Lane:
    """Entries that leave in order: of one key, or all."""

    __slots__ = ("entries", "exclusive", "failing", "key", "out", "queued")

    def __init__(self, key: str | None, exclusive: bool) -> None:
        self.key = key
        self.exclusive = exclusive
        self.entries = Line()
        self.out = 0
        self.failing = 0
        self.queued = False


class Batch:
    """Entries of one request."""

    __slots__ = ("began", "entries", "failing", "lane")

    def __init__(self, lane: _Lane, entries: list[Entry], began: float) -> None:
        self.lane = lane
        self.entries = entries
        self.began = began
        self.failing = False


class Batcher:
    """Gathers entries into requests.

    :param mixed_keys: whether one request may carry several keys; then requests leave one at a time.
    """

    def __init__(self, *, max_messages: int, max_bytes: int | None, max_inflight: int, mixed_keys: bool) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._places = self._free = 1 if mixed_keys else max_inflight
        self._mixed = mixed_keys
        self._lanes: dict[str | None, _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._claims: deque[Wakeable] = deque()
        self._turns = Turns() if mixed_keys else None

    def add(self, entry: Entry) -> None:
        """Queue an entry behind those of its key."""
        key = None if self._mixed else entry.message.ordering_key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, exclusive=self._mixed or key is not None)
        lane.entries.append(entry)
        self._offer(lane)

    def forget(self, entry: Entry) -> None:
        """Nobody waits for *entry* any more, whether it has left or not."""
        lane = self._lanes.get(None if self._mixed else entry.message.ordering_key)
        if lane is not None:
            lane.entries.forget_given_up()

    @property
    def is_ready(self) -> bool:
        """Whether a request may leave now."""
        return self._free > 0 and bool(self._ready)

    def next(self, now: float) -> Batch | None:
        """The next request that may leave, *now* in seconds of any clock; :meth:`release` must follow."""
        while self._free > 0 and self._ready:
            lane = self._ready.popleft()
            lane.queued = False
            if lane.failing >= self._places:
                continue  # until one of them is over
            queued = len(lane.entries)
            entries = self._gather(lane, self._turns.take(queued, now) if self._turns else queued)
            if entries:
                self._free -= 1
                lane.out += 1
                self._offer(lane)
                return Batch(lane, entries, now)
            self._forget(lane)
        return None

    def release(self, batch: Batch, now: float) -> None:
        """The request is no longer out."""
        self._vacate()
        batch.lane.out -= 1
        batch.lane.failing -= batch.failing
        if self._turns:
            self._turns.over(len(batch.entries), batch.began, now, waiting=bool(batch.lane.entries))
        self._offer(batch.lane)
        self._forget(batch.lane)

    def pause(self, batch: Batch) -> None:
        """The request waits before it is tried again: its place goes to another, its key stays taken.

        Where as many without a key have paused as may be out, others would fail one by one: they gather.
        """
        batch.lane.failing += not batch.failing
        batch.failing = True
        self._vacate()

    def resume(self, claim: Wakeable) -> None:
        """A paused request would leave again; *claim* is woken when it has a place, before others get one."""
        if self._free > 0:
            self._free -= 1
            claim.wake()
        else:
            self._claims.append(claim)

    def _vacate(self) -> None:
        if self._claims:
            self._claims.popleft().wake()
        else:
            self._free += 1

    def _gather(self, lane: _Lane, enough: int) -> list[Entry]:
        """So many entries of *lane*, or a few more to divide no call."""
        gathered: list[Entry] = []
        size = 0
        while lane.entries and len(gathered) < self._max_messages:
            entry = lane.entries[0]
            size += entry.size
            if gathered and self._max_bytes is not None and size > self._max_bytes:
                break
            if len(gathered) >= enough and entry.call is not gathered[-1].call:
                break
            lane.entries.popleft()
            if entry.result is None:
                gathered.append(entry)
        return gathered

    def _offer(self, lane: _Lane) -> None:
        if lane.entries and not lane.queued and not (lane.exclusive and lane.out):
            lane.queued = True
            self._ready.append(lane)

    def _forget(self, lane: _Lane) -> None:
        if not lane.entries and not lane.out:
            self._lanes.pop(lane.key, None)
