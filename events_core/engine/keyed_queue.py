"""A queue that keeps order per key; pure, fed with ``now``.

Rules, for all that happens here:

1. Items without a key are independent of each other.
2. A key is *busy* while items of it that were popped are neither released nor restored; none of its others is popped.
3. One pop may take a run of a key; a run stops before an item that is not due.
4. Restored items go back to their place: before everything of their key that was pushed after them.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

__all__ = ["KeyedQueue", "Queued"]


class Queued(Protocol):
    """What can stand in the queue; ``order`` and ``due`` belong to the queue."""

    @property
    def ordering_key(self) -> str | None: ...

    order: int
    due: float


ItemT = TypeVar("ItemT", bound=Queued)


class _Lane(Generic[ItemT]):
    """The items of one key."""

    __slots__ = ("busy", "delayed_to", "queued", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[ItemT] = deque()
        self.busy = 0
        self.queued = False
        self.delayed_to = 0.0
        """The due time of its newest place among the delayed; 0 for none."""


class KeyedQueue(Generic[ItemT]):
    """First in, first out, in order per key."""

    def __init__(self) -> None:
        self._ready: deque[ItemT | _Lane[ItemT]] = deque()
        self._lanes: dict[str, _Lane[ItemT]] = {}
        self._delayed: list[tuple[float, int, ItemT | _Lane[ItemT]]] = []
        self._order = itertools.count(1)
        self._size = 0
        self.blocked_size = 0
        """Items that wait behind busy ones of their key."""
        self.keeps_order = True
        """Whether keys count; otherwise no item has one.  Changes only while nothing waits or is busy."""

    def __len__(self) -> int:
        """Items that wait, whether ready or not."""
        return self._size

    def push(self, item: ItemT) -> None:
        """Append an item, ready at once."""
        item.order = next(self._order)
        self._size += 1
        key = item.ordering_key
        if key is None or not self.keeps_order:
            self._ready.append(item)
            return
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        lane.waiting.append(item)
        self.blocked_size += lane.busy > 0
        self._offer(lane)

    def pop(self, limit: int, now: float) -> list[ItemT]:
        """Take up to *limit* items; their keys become busy."""
        self._promote(now)
        taken: list[ItemT] = []
        ready = self._ready
        while ready and len(taken) < limit:
            head = ready.popleft()
            if isinstance(head, _Lane):
                head.queued = False
                waiting = head.waiting
                while waiting and len(taken) < limit and waiting[0].due <= now:
                    item = waiting.popleft()
                    item.due = 0.0
                    head.busy += 1
                    taken.append(item)
                if head.busy:
                    self.blocked_size += len(waiting)
                else:
                    self._offer(head)
            else:
                taken.append(head)
        self._size -= len(taken)
        return taken

    def release(self, item: ItemT) -> None:
        """A popped item is done with."""
        key = item.ordering_key
        if key is not None and self.keeps_order:
            self._idle(key, self._lanes[key])

    def restore(self, items: Sequence[ItemT], due: float = 0.0) -> None:
        """Put popped items of one key, or one without, back; the first is not ready before *due*."""
        items[0].due = due
        self._size += len(items)
        key = items[0].ordering_key
        if key is None or not self.keeps_order:
            for item in items:
                self._delay(item.due, item) if item.due else self._ready.appendleft(item)
            return
        lane = self._lanes[key]
        if lane.waiting and lane.waiting[0].order < items[-1].order:
            lane.waiting = deque(sorted([*items, *lane.waiting], key=_order))
        else:
            lane.waiting.extendleft(reversed(items))
        self.blocked_size += len(items)
        for _ in items:
            self._idle(key, lane)

    def remove(self, items: Iterable[ItemT]) -> None:
        """Take waiting items out, wherever they stand; slow, for rare events."""
        for item in items:
            self._size -= 1
            key = item.ordering_key
            if key is not None and self.keeps_order:
                lane = self._lanes[key]
                lane.waiting.remove(item)
                self.blocked_size -= lane.busy > 0
                self._offer(lane)
                self._forget(key, lane)
            elif item.due:
                self._delayed = [entry for entry in self._delayed if entry[2] is not item]
                heapq.heapify(self._delayed)
            else:
                self._ready.remove(item)

    def waiting(self, key: str) -> list[ItemT]:
        """Return the waiting items of *key*, in order."""
        lane = self._lanes.get(key)
        return list(lane.waiting) if lane else []

    def first(self, key: str) -> ItemT | None:
        """Return the first waiting item of *key*."""
        lane = self._lanes.get(key)
        return lane.waiting[0] if lane and lane.waiting else None

    def blocked(self) -> Iterator[str]:
        """Busy keys of which items wait."""
        return (key for key, lane in self._lanes.items() if lane.busy and lane.waiting)

    def ready(self, now: float) -> bool:
        """Whether a pop would take anything."""
        self._promote(now)
        return bool(self._ready)

    def next_due(self) -> float | None:
        """When an item that is not ready becomes so by time alone."""
        return self._delayed[0][0] if self._delayed else None

    def _idle(self, key: str, lane: _Lane[ItemT]) -> None:
        lane.busy -= 1
        if not lane.busy:
            self.blocked_size -= len(lane.waiting)
            self._offer(lane)
            self._forget(key, lane)

    def _forget(self, key: str, lane: _Lane[ItemT]) -> None:
        if not lane.busy and not lane.waiting:
            del self._lanes[key]

    def _offer(self, lane: _Lane[ItemT]) -> None:
        """Queue a lane that is idle: now, or when its head is due."""
        if lane.busy or lane.queued or not lane.waiting:
            return
        due = lane.waiting[0].due
        if not due:
            lane.queued = True
            self._ready.append(lane)
        elif lane.delayed_to != due:  # otherwise each message that is pushed behind the head would add a place
            lane.delayed_to = due
            self._delay(due, lane)

    def _delay(self, due: float, what: ItemT | _Lane[ItemT]) -> None:
        heapq.heappush(self._delayed, (due, next(self._order), what))

    def _promote(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            due, _, what = heapq.heappop(self._delayed)
            if not isinstance(what, _Lane):
                what.due = 0.0
                self._ready.append(what)
            else:
                self._promote_lane(what, due, now)

    def _promote_lane(self, lane: _Lane[ItemT], due: float, now: float) -> None:
        if lane.delayed_to == due:
            lane.delayed_to = 0.0
        if lane.waiting and lane.waiting[0].due <= now:
            lane.waiting[0].due = 0.0
        self._offer(lane)


def _order(item: Queued) -> int:
    return item.order
