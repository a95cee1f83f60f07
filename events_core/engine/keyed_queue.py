"""A queue that keeps the order of each key.  It reads no clock: callers pass the time as ``now``.

These rules always hold:

1. Items without a key are independent of each other.
2. A key is *busy* from the time one of its items is popped until all its popped items are released or restored.
   No item of a busy key is popped.
3. One pop may take several items of a key, which is a *run*.  A run stops before an item that is not due.
4. A restored item goes back to its place: before all items of its key that were pushed after it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

__all__ = ["KeyedQueue", "Queued"]


class Queued(Protocol):
    """An item of the queue.  Only the queue writes ``order`` and ``due``."""

    @property
    def ordering_key(self) -> str | None: ...

    order: int
    """The position in which the item was pushed.  It rises with each push and is kept when the item is restored."""
    due: float
    """The time before which the item is not popped; 0 for at once."""


ItemT = TypeVar("ItemT", bound=Queued)


class _Sequence(Generic[ItemT]):
    """The waiting items of one key, in order."""

    __slots__ = ("busy", "delayed_to", "queued", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[ItemT] = deque()
        self.busy = 0
        """The number of popped items that are neither released nor restored."""
        self.queued = False
        """Whether the sequence stands in the queue's ``_ready``, where it may stand only once."""
        self.delayed_to = 0.0
        """The due time of the newest entry that the sequence has in the queue's ``_delayed``; 0 for none."""


class KeyedQueue(Generic[ItemT]):
    """A first-in, first-out queue that keeps the order of each key.  It is not thread-safe: its owner locks."""

    def __init__(self) -> None:
        # A keyed item never stands here itself: its sequence does, so that a pop takes a run at once.
        self._ready: deque[ItemT | _Sequence[ItemT]] = deque()
        self._sequences: dict[str, _Sequence[ItemT]] = {}
        # A heap.  A sequence may have old entries here, whose time means nothing any more: removing them would cost a
        # search, so _promote_sequence ignores them when their time comes.
        self._delayed: list[tuple[float, int, ItemT | _Sequence[ItemT]]] = []
        self._order = itertools.count(1)
        self._size = 0
        self.blocked_size = 0
        """The number of waiting items whose key is busy."""
        self.keeps_order = True
        """Whether the queue looks at keys.  Change it only while no item waits and no key is busy."""

    def __len__(self) -> int:
        """Return the number of waiting items, ready or not."""
        return self._size

    def push(self, item: ItemT) -> None:
        """Append *item*; it is due at once."""
        item.order = next(self._order)
        self._size += 1
        key = item.ordering_key
        if key is None or not self.keeps_order:
            self._ready.append(item)
            return
        sequence = self._sequences.get(key)
        if sequence is None:
            sequence = self._sequences[key] = _Sequence()
        sequence.waiting.append(item)
        self.blocked_size += sequence.busy > 0
        self._offer(sequence)

    def pop(self, limit: int, now: float) -> list[ItemT]:
        """Take up to *limit* items that are due *now*; their keys become busy."""
        self._promote(now)
        taken: list[ItemT] = []
        ready = self._ready
        while ready and len(taken) < limit:
            head = ready.popleft()
            if isinstance(head, _Sequence):
                head.queued = False
                waiting = head.waiting
                while waiting and len(taken) < limit and waiting[0].due <= now:
                    item = waiting.popleft()
                    item.due = 0.0
                    head.busy += 1
                    taken.append(item)
                if head.busy:
                    self.blocked_size += len(waiting)
                else:  # the item that was ready has been removed, and the next one is not due
                    self._offer(head)
            else:
                taken.append(head)
        self._size -= len(taken)
        return taken

    def release(self, item: ItemT) -> None:
        """End the use of a popped item, which does not come back."""
        key = item.ordering_key
        if key is not None and self.keeps_order:
            self._idle(key, self._sequences[key])

    def restore(self, items: Sequence[ItemT], due: float = 0.0) -> None:
        """Put popped items back: some of one key, or one without a key.  The first is not popped before *due*."""
        items[0].due = due
        self._size += len(items)
        key = items[0].ordering_key
        if key is None or not self.keeps_order:
            for item in items:
                self._delay(item.due, item) if item.due else self._ready.appendleft(item)
            return
        sequence = self._sequences[key]
        # A run may come back in pieces, the later piece first; usually all of it comes back before anything that waits.
        if sequence.waiting and sequence.waiting[0].order < items[-1].order:
            sequence.waiting = deque(sorted([*items, *sequence.waiting], key=_order))
        else:
            sequence.waiting.extendleft(reversed(items))
        self.blocked_size += len(items)
        for _ in items:
            self._idle(key, sequence)

    def remove(self, items: Iterable[ItemT]) -> None:
        """Take waiting items out, wherever they stand.  This searches the queue, so use it for rare events."""
        for item in items:
            self._size -= 1
            key = item.ordering_key
            if key is not None and self.keeps_order:
                sequence = self._sequences[key]
                sequence.waiting.remove(item)
                self.blocked_size -= sequence.busy > 0
                self._offer(sequence)
                self._forget(key, sequence)
            elif item.due:
                self._delayed = [entry for entry in self._delayed if entry[2] is not item]
                heapq.heapify(self._delayed)
            else:
                self._ready.remove(item)

    def waiting(self, key: str) -> list[ItemT]:
        """Return the waiting items of *key*, in order."""
        sequence = self._sequences.get(key)
        return list(sequence.waiting) if sequence else []

    def first(self, key: str) -> ItemT | None:
        """Return the first waiting item of *key*; ``None`` if there is none."""
        sequence = self._sequences.get(key)
        return sequence.waiting[0] if sequence and sequence.waiting else None

    def blocked(self) -> Iterator[str]:
        """Return the busy keys of which items wait."""
        return (key for key, sequence in self._sequences.items() if sequence.busy and sequence.waiting)

    def ready(self, now: float) -> bool:
        """Return whether a pop would take anything *now*."""
        self._promote(now)
        return bool(self._ready)

    def next_due(self) -> float | None:
        """Return when the first delayed item may become ready by time alone; ``None`` if none is delayed."""
        return self._delayed[0][0] if self._delayed else None

    def _idle(self, key: str, sequence: _Sequence[ItemT]) -> None:
        sequence.busy -= 1
        if not sequence.busy:
            self.blocked_size -= len(sequence.waiting)
            self._offer(sequence)
            self._forget(key, sequence)

    def _forget(self, key: str, sequence: _Sequence[ItemT]) -> None:
        if not sequence.busy and not sequence.waiting:
            del self._sequences[key]

    def _offer(self, sequence: _Sequence[ItemT]) -> None:
        """Queue *sequence* if its key is not busy: at once, or for when its first item is due."""
        if sequence.busy or sequence.queued or not sequence.waiting:
            return
        due = sequence.waiting[0].due
        if not due:
            sequence.queued = True
            self._ready.append(sequence)
        elif sequence.delayed_to != due:  # otherwise each item that is pushed behind a delayed one would add an entry
            sequence.delayed_to = due
            self._delay(due, sequence)

    def _delay(self, due: float, what: ItemT | _Sequence[ItemT]) -> None:
        # The number breaks ties: items that are due at the same time need not be comparable.
        heapq.heappush(self._delayed, (due, next(self._order), what))

    def _promote(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            due, _, what = heapq.heappop(self._delayed)
            if not isinstance(what, _Sequence):
                what.due = 0.0
                self._ready.append(what)
            else:
                self._promote_sequence(what, due, now)

    def _promote_sequence(self, sequence: _Sequence[ItemT], due: float, now: float) -> None:
        if sequence.delayed_to == due:
            sequence.delayed_to = 0.0
        if sequence.waiting and sequence.waiting[0].due <= now:
            sequence.waiting[0].due = 0.0
        self._offer(sequence)


def _order(item: Queued) -> int:
    return item.order
