"""The sends of one client, from their acceptance to their completion; pure, under the lock of its owner.

Each entry of a send goes this way::

    queue      it waits for room behind earlier ones (P6), or is admitted at once
    admitted   it counts as in flight, and waits in the batcher for a request (P5)
    out        a request carries it
    complete   it has its result, and no longer counts

An entry may complete at any point of this way, if its send ends: because its time is up, or its caller was cancelled.
The entry then stays where it is and is skipped there.  So ending a send costs the same, wherever its entries are.

The outbox starts nothing.  After each call that may make a batch ready (:meth:`Outbox.queue`, :meth:`Outbox.complete`,
:meth:`Outbox.end`), the owner lets leave what may leave.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from events_core.engine.batching import Batch, Batcher
from events_core.engine.bounds import Bounds
from events_core.engine.driver import BrokerError
from events_core.engine.sends import AnySend, Entry, EntryQueue
from events_core.errors import ErrorCode

__all__ = ["Outbox"]


class Outbox:
    """The sends of one client that are not complete.

    :param send_timeout: seconds that each send has; for errors.
    """

    def __init__(self, batcher: Batcher, bounds: Bounds, send_timeout: float) -> None:
        self.batcher = batcher
        self._bounds = bounds
        self._max_messages = bounds.max_messages
        self._max_bytes = bounds.max_bytes
        self._send_timeout = send_timeout
        self._arriving = EntryQueue()
        self.sends: dict[AnySend[Any], None] = {}
        """Sends that are not complete, in the order of acceptance: nearly the order of their deadlines."""
        self.messages = 0
        """Messages in flight."""
        self._bytes = 0
        self.opened = False
        """True once the driver is open; before that nothing leaves."""
        self.unreached: BrokerError | None = None
        """The reason why the driver is not open yet."""

    @property
    def is_ready(self) -> bool:
        """Return whether a batch may leave now; may be called without the lock (:attr:`Batcher.is_ready`)."""
        return self.opened and self.batcher.is_ready

    def accept(self, send: AnySend[Any]) -> None:
        """Take in a send that has been checked.  Its entries can be queued then.

        :raises PublishError: ``EXHAUSTED`` if it is beyond the bounds, and the option says that it must not wait.
        """
        if self._bounds.refuses:
            entries = send.entries
            self._bounds.check(
                len(entries),
                sum(entry.size for entry in entries),
                in_flight=(self.messages, self._bytes),
                has_queue=bool(self._arriving),
            )
        self.sends[send] = None

    def queue(self, entries: Iterable[Entry]) -> None:
        """Give *entries* their place, behind all that were queued before."""
        for entry in entries:
            # Behind the queue even if there is room for this one: a small message must not overtake a large one.
            if self._arriving or not self._admit(entry):
                self._arriving.append(entry)

    def _admit(self, entry: Entry) -> bool:
        """Admit *entry* if there is room.  One that is larger than the bound is admitted when nothing is in flight."""
        if self.messages and (self.messages >= self._max_messages or self._bytes + entry.size > self._max_bytes):
            return False
        entry.admitted = True
        self.messages += 1
        self._bytes += entry.size
        self.batcher.add(entry)
        return True

    def complete(self, entry: Entry, result: str | BrokerError) -> None:
        """Record the result of *entry*, unless it has one; wake the caller of its send if that is complete now."""
        if entry.result is not None:
            return
        if entry.admitted:
            self.messages -= 1
            self._bytes -= entry.size
        if entry.complete(result):
            send = entry.send
            self.sends.pop(send, None)
            send.waiter.wake()
        # Also if this entry was not admitted: it stands in the queue itself, and must not hold up those behind it.
        arriving = self._arriving
        while arriving and (arriving[0].result is not None or self._admit(arriving[0])):
            arriving.popleft()

    def end(self, send: AnySend[Any], error: BrokerError) -> None:
        """Complete what is left of *send* with *error*.

        What has not left does not leave any more.  What has left may be stored.
        """
        for entry in send.entries:
            self.complete(entry, error)
            if entry.admitted:
                self.batcher.give_up(entry)
            else:
                self._arriving.give_up()

    def oldest(self, limit: int) -> list[AnySend[Any]]:
        """Return the *limit* sends that were accepted first."""
        return [*itertools.islice(self.sends, limit)]

    def depart(self, batch: Batch, entries: Iterable[Entry], now: float) -> Sequence[Entry]:
        """Begin a request of *batch*, and return those of *entries* that it carries.

        The others are complete now, or follow in another request.
        """
        sendable = self._sendable(entries, now)
        return self.batcher.depart(batch, sendable, now) if sendable else sendable

    def _sendable(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        sendable = []
        for entry in entries:
            if entry.result is not None:
                continue
            # The home's timer may be late by one turn of the loop.  A message must not leave after its deadline (P7).
            if entry.deadline <= now:
                self.complete(entry, self.timed_out(entry.send.last_error))
            elif (hindrance := entry.hindrance()) is not None:
                self.complete(entry, hindrance)
            else:
                sendable.append(entry)
        return sendable

    def timed_out(self, last: BaseException | None) -> BrokerError:
        """Return the failure of a send whose time is up.

        :param last: the last failure of its requests, if any.
        """
        within = f"within send_timeout={self._send_timeout:g} s; the message"
        # Whether the message may be stored is what the caller must know to decide about sending it again.
        if self.opened:
            text = f"no confirmation {within} may be stored or not"
        else:
            text = f"no connection {within} was not sent"
            last = self.unreached
        if last and str(last):
            text = f"{text}; last: {last}"
        error = BrokerError(text, ErrorCode.TIMEOUT, retryable=True)
        error.__cause__ = last.__cause__ if isinstance(last, BrokerError) else last
        return error
