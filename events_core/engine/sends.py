"""A send of the application, and the messages that it carries.  This module does no I/O.

A *send* is one ``send_message`` or ``send_messages``.  It carries an *entry* for each message.  Each entry gets a
result, once; with the last result the send is complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from events_core.engine.driver import BrokerError
from events_core.engine.wakeable import Wakeable
from events_core.errors import ErrorCode
from events_core.message import EventMessage

__all__ = ["AnySend", "Entry", "EntryQueue", "Send", "SingleSend", "not_attempted"]


WakeableT = TypeVar("WakeableT", bound=Wakeable)


class Entry:
    """One message of a send."""

    __slots__ = ("admitted", "deadline", "message", "result", "size", "unique")

    message: EventMessage
    size: int
    """In bytes."""
    admitted: bool
    """True if it counts as in flight (P6)."""
    deadline: float
    """The ``time.monotonic()`` at which its send ends."""
    result: str | BrokerError | None
    """The message's id or the failure; ``None`` while the send waits for it."""
    unique: str
    """An id that stays the same in all its requests, if the driver wants one; otherwise ``""``."""

    @property
    def send(self) -> AnySend[Any]:
        """Return the send that carries it."""
        raise NotImplementedError

    def complete(self, result: str | BrokerError) -> bool:
        """Record its *result*, once; return whether that completes the send."""
        raise NotImplementedError

    def hindrance(self) -> BrokerError | None:
        """Return why it must not be sent, if an earlier message of its key failed in the same send (P3)."""
        return None


class SingleSend(Entry, Generic[WakeableT]):
    """One ``send_message``, which is its own only entry.

    One object instead of three, because this is the most frequent kind.
    """

    __slots__ = ("last_error", "waiter")

    def __init__(self, message: EventMessage, size: int, deadline: float, waiter: WakeableT) -> None:
        self.message = message
        self.size = size
        self.admitted = False
        self.result = None
        self.unique = ""
        self.deadline = deadline
        self.last_error: BrokerError | None = None
        self.waiter = waiter
        """The caller; woken when the send is complete."""

    @property
    def send(self) -> SingleSend[WakeableT]:
        return self

    @property
    def entries(self) -> Sequence[Entry]:
        """Return its only entry."""
        return (self,)

    @property
    def pending(self) -> int:
        """Return the number of entries without a result."""
        return 1 if self.result is None else 0

    def complete(self, result: str | BrokerError) -> bool:
        self.result = result
        return True

    def take_results(self) -> list[str | BrokerError]:
        """Return the result of its message; call it when the send is complete."""
        assert self.result is not None
        return [self.result]


class Send(Generic[WakeableT]):
    """One ``send_messages``."""

    __slots__ = ("deadline", "entries", "failed_keys", "last_error", "pending", "waiter")

    def __init__(self, deadline: float, waiter: WakeableT) -> None:
        self.entries: list[Entry] = []
        self.pending = 0
        self.deadline = deadline
        self.failed_keys: set[str] = set()
        self.last_error: BrokerError | None = None
        self.waiter = waiter
        """The caller; woken when the send is complete."""

    def add(self, messages: Iterable[EventMessage], sizes: Iterable[int]) -> None:
        """Add an entry for each of *messages*, with its bytes."""
        self.entries += [_Part(self, message, size) for message, size in zip(messages, sizes, strict=True)]
        self.pending = len(self.entries)

    def complete_all(self, results: Iterable[str | BrokerError]) -> None:
        """Record the result of each message; none of them has one yet."""
        for entry, result in zip(self.entries, results, strict=True):
            entry.result = result
        self.pending = 0

    def take_results(self) -> list[str | BrokerError]:
        """Return the result of each message, in order; call it once, when the send is complete."""
        results = [entry.result for entry in self.entries if entry.result is not None]
        assert len(results) == len(self.entries)
        # Send and entries refer to each other.  Without this, each send would leave a cycle, and its messages, to the
        # garbage collector.
        self.entries.clear()
        return results


AnySend: TypeAlias = Send[WakeableT] | SingleSend[WakeableT]


class _Part(Entry):
    """One entry of several."""

    __slots__ = ("_send",)

    def __init__(self, send: Send[Any], message: EventMessage, size: int) -> None:
        self.message = message
        self.size = size
        self.admitted = False
        self.result = None
        self.unique = ""
        self.deadline = send.deadline
        self._send = send

    @property
    def send(self) -> Send[Any]:
        return self._send

    def complete(self, result: str | BrokerError) -> bool:
        self.result = result
        send = self._send
        send.pending -= 1
        key = self.message.ordering_key
        if key is not None and isinstance(result, BrokerError):
            send.failed_keys.add(key)
        return not send.pending

    def hindrance(self) -> BrokerError | None:
        key = self.message.ordering_key
        if key is None or key not in self._send.failed_keys:
            return None
        return not_attempted(key)


def not_attempted(key: str) -> BrokerError:
    """Return the result of a message of *key* after one that failed in the same send (P3)."""
    return BrokerError(
        f"not attempted, because an earlier message of ordering key {key!r} failed in the same call",
        ErrorCode.NOT_ATTEMPTED,
        retryable=True,
    )


class EntryQueue(deque[Entry]):
    """Entries that wait, in order.

    An entry that has its result already is not removed from the middle, which would be slow.  It is skipped when it
    comes to the front, and :meth:`give_up` bounds how many such entries there are.
    """

    __slots__ = ("_given_up",)

    def __init__(self) -> None:
        super().__init__()
        self._given_up = 0

    def give_up(self) -> None:
        """Count an entry that got its result while it waited; drop all of them if they may be half of the queue."""
        self._given_up += 1
        if 2 * self._given_up > len(self):
            self._given_up = 0
            waiting = [entry for entry in self if entry.result is None]
            self.clear()
            self.extend(waiting)
