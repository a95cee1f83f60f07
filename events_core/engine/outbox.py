"""The sends of one client, from their acceptance to their completion.  This module does no I/O.

:class:`~events_core.engine.batching_publisher.BatchingPublisher` owns the outbox and holds its own lock for each call
that changes it.  Each entry of a send goes this way::

    queue      it waits for room behind earlier ones (P6), or is admitted at once
    admitted   it counts as in flight, and waits in the batcher for a request (P5)
    out        a request carries it
    complete   it has its result, and no longer counts

A send may end early, because its time is up or its caller was cancelled.  Its entries then complete at once, at
whatever point of this way they are.  Each stays in its queue or batch and is skipped there.  So ending a send costs the
same wherever its entries are.

The outbox starts no request.  Three methods may make a batch ready: :meth:`Outbox.queue`, :meth:`Outbox.complete` and
:meth:`Outbox.end`.  After each of them the owner wakes the home, which takes the ready batches and sends them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from events_core.engine.batching import Batch, Batcher
from events_core.engine.bounds import Bounds
from events_core.engine.driver import BrokerError
from events_core.engine.sends import AnySend, Entry, EntryQueue, Send, SingleSend
from events_core.errors import ErrorCode

__all__ = ["Outbox"]


class Outbox:
    """The sends of one client that are not complete.

    :param send_timeout: seconds that each send has; the text of a ``TIMEOUT`` error names them.
    """

    def __init__(self, batcher: Batcher, bounds: Bounds, send_timeout: float) -> None:
        self.batcher = batcher
        self._bounds = bounds
        self._max_messages = bounds.max_messages
        self._max_bytes = bounds.max_bytes
        self._send_timeout = send_timeout
        self._arriving = EntryQueue()
        self.sends: dict[AnySend[Any], None] = {}
        """Sends that are not complete, in the order of acceptance.  That is nearly the order of their deadlines."""
        self.messages = 0
        """Messages in flight."""
        self._bytes = 0
        self.opened = False
        """True once the driver is open; before that nothing leaves."""
        self.unreached: BrokerError | None = None
        """The last failure to connect.  It becomes the cause of a timeout before the driver is open."""

    @property
    def is_ready(self) -> bool:
        """Return whether a batch may leave now; may be called without the lock (:attr:`Batcher.is_ready`)."""
        return self.opened and self.batcher.is_ready

    def accept(self, send: AnySend[Any]) -> None:
        """Register a send that has been checked, so that its entries can be queued.

        :raises PublishError: ``EXHAUSTED`` if it is beyond the bounds, and the options say that it must not wait.
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

    def queue(self, entries: Sequence[Entry]) -> None:
        """Queue *entries* behind all that were queued before, or admit them at once."""
        if len(entries) > 1 and self._admit_all(entries):
            return
        for entry in entries:
            # Behind the queue even if there is room for this one: a small message must not overtake a large one.
            if self._arriving or not self._admit(entry):
                self._arriving.append(entry)

    def _admit_all(self, entries: Sequence[Entry]) -> bool:
        """Admit *entries* if there is room for all of them; return whether there was.

        The same as :meth:`_admit` for each, at half the cost.
        """
        size = sum([entry.size for entry in entries])
        if self._arriving or self.messages + len(entries) > self._max_messages or self._bytes + size > self._max_bytes:
            return False
        for entry in entries:
            entry.admitted = True
        self.messages += len(entries)
        self._bytes += size
        self.batcher.add_all(entries)
        return True

    def _admit(self, entry: Entry) -> bool:
        """Admit *entry* if there is room; return whether there was.

        An entry that is larger than the bound is admitted when nothing else is in flight.
        """
        if self.messages and (self.messages >= self._max_messages or self._bytes + entry.size > self._max_bytes):
            return False
        entry.admitted = True
        self.messages += 1
        self._bytes += entry.size
        self.batcher.add(entry)
        return True

    def complete(self, entry: Entry, result: str | BrokerError) -> None:
        """Record the result of *entry*, unless it has one.  If that completes its send, wake the caller."""
        if self.record(entry, result):
            entry.send.waiter.wake()

    def record(self, entry: Entry, result: str | BrokerError) -> bool:
        """Record the result of *entry*, unless it has one.  Return whether the caller must be woken."""
        if entry.result is not None:
            return False
        if entry.admitted:
            self.messages -= 1
            self._bytes -= entry.size
        is_complete = entry.complete(result)
        if is_complete:
            self.sends.pop(entry.send, None)
        # Do this even if the entry was not admitted.  Then it is itself in the queue, perhaps at the front, where it
        # would hold up the others.
        if self._arriving:
            self._admit_waiting()
        return is_complete

    def complete_all(self, entries: Sequence[Entry], results: Sequence[str | BrokerError]) -> None:
        """Record the results of admitted *entries*, except of those that have one; wake the callers."""
        send = _whole_send(entries)
        if send is None:
            self._complete_each(entries, results)
        else:
            self._record_whole(send, results)
            send.waiter.wake()

    def record_all(self, entries: Sequence[Entry], results: Sequence[str | BrokerError]) -> bool:
        """Record the results of admitted *entries* of one send, except of those that have one.

        Return whether the caller must be woken.
        """
        send = _whole_send(entries)
        if send is None:
            return any(self.record(entry, result) for entry, result in zip(entries, results, strict=True))
        self._record_whole(send, results)
        return True

    def _record_whole(self, send: Send[Any], results: Sequence[str | BrokerError]) -> None:
        """Do for all entries of *send* what :meth:`record` does for each, at a fifth of the cost."""
        self.messages -= len(send.entries)
        self._bytes -= sum([entry.size for entry in send.entries])
        send.complete_all(results)
        self.sends.pop(send, None)
        self._admit_waiting()

    def _complete_each(self, entries: Sequence[Entry], results: Sequence[str | BrokerError]) -> None:
        for entry, result in zip(entries, results, strict=True):
            if entry.result is not None:
                continue
            if not isinstance(entry, SingleSend):
                self.complete(entry, result)
                continue
            # The same as complete(), written out: this runs for each message that is sent alone.
            self.messages -= 1
            self._bytes -= entry.size
            entry.result = result
            self.sends.pop(entry, None)
            entry.waiter.wake()
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        arriving = self._arriving
        while arriving and (arriving[0].result is not None or self._admit(arriving[0])):
            arriving.popleft()

    def end(self, send: AnySend[Any], error: BrokerError) -> None:
        """Complete the rest of *send* with *error*.

        Entries that no request carries yet are never sent.  Those in a request may be stored.
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

    def depart(self, batch: Batch, entries: Sequence[Entry], now: float) -> Sequence[Entry]:
        """Begin a request of *batch*, and return those of *entries* that it carries.

        Each of the others is complete now, or leaves in a later request.
        """
        sendable = self._sendable(entries, now)
        return self.batcher.depart(batch, sendable, now) if sendable else sendable

    def _sendable(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        send = _whole_send(entries)
        if send is not None and send.deadline > now and not send.failed_keys:
            return [*entries]
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
        # The caller sends the message again or not, depending on whether it may be stored.  So the text must say that.
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


def _whole_send(entries: Sequence[Entry]) -> Send[Any] | None:
    """Return the send of several messages that consists of *entries*, if none of them has a result yet.

    Most requests carry one such send, and then much can be done for all entries at once.
    """
    send = entries[0].send if entries else None
    # Comparing the lists is quick, because an entry only equals itself.
    if isinstance(send, Send) and send.pending == len(entries) and send.entries == entries:
        return send
    return None
