"""Sending through a driver on a thread: sends are gathered into requests, retried, and ended in time.

Who does what, and where:

* The caller's thread checks the messages, queues them in the outbox and waits for their results.
* Home takes batches out of the outbox, sends them, and completes their entries.
* ``_lock`` guards the outbox.  Nothing is awaited, no driver is called and no log is written under it.

The home looks for batches that may leave when a caller wakes it (:meth:`BatchingPublisher.pump`).

Waking a thread takes longer than most of what a send does.  So a send that is alone goes a shorter way, if the driver
can (``Driver.hand_over``).  The caller's thread takes the batch itself and begins its request, and a thread of the
driver completes it.  The home is not woken.  It takes over a request that fails or takes more than a moment
(:meth:`BatchingPublisher._take_over`).

Two timers end each send at its deadline (P7).  The home has one, because the loop of the caller may be blocked or
closed.  The loop of the caller has the other one, because a home may hang.  The first of them decides: it ends the
send, of which nothing leaves afterwards.  The second one finds nothing left to end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Sequence
from functools import partial
from secrets import token_hex
from typing import Any, TypeGuard

from events_core.engine.backoff import Backoff
from events_core.engine.batching import Batch, Batcher
from events_core.engine.driver import BrokerError, Driver, Publishing
from events_core.engine.failure import UNFORESEEN, internal
from events_core.engine.home import Home
from events_core.engine.link import Link, Pauses
from events_core.engine.outbox import Outbox
from events_core.engine.pace import Pace
from events_core.engine.publisher import Connect, Publisher, Results, parts, unconfirmed
from events_core.engine.sends import AnySend, Entry, Send, SingleSend
from events_core.engine.waiting import LoopTimers, Waiter
from events_core.errors import ErrorCode
from events_core.message import EventMessage

__all__ = ["BatchingPublisher"]

_ID_BYTES = 16
"""Random bytes of a message's id."""
_ENDED_AT_ONCE = 1000
"""Sends that a loop ends at their deadline before it turns to other things."""


class BatchingPublisher(Publisher):
    """The sending side of a client whose driver runs on a thread."""

    def __init__(self, driver: Driver[Any], home: Home, link: Link) -> None:
        super().__init__(driver, home)
        self._link = link
        # A driver that blocks has no network that could be too slow.
        pace = None if driver.blocking else Pace(1 if driver.mixed_keys else driver.publish_max_inflight)
        batcher = Batcher(
            max_messages=driver.max_batch_messages,
            max_bytes=driver.max_batch_bytes,
            max_inflight=driver.publish_max_inflight,
            mixed_keys=driver.mixed_keys,
            max_keys=driver.publish_max_keys,
            max_full=driver.publish_max_full,
            one_of_each_key=driver.one_of_each_key,
            pace=pace,
        )
        self._outbox = Outbox(batcher, self._bounds, self._send_timeout)
        self._handed_over: set[Batch] = set()
        """Batches whose requests callers have begun.  The first one who takes a batch out of it goes on with it."""
        self._is_pumping = False  # read and set without the lock; see pump()
        self._timers = LoopTimers(self._end_overdue)

    # In the caller's thread

    def _send(self, messages: Sequence[EventMessage], connect: Connect) -> Coroutine[Any, Any, Results]:
        send = self._checked(messages)
        with self._lock:
            self._refuse_if_closed()
            self._outbox.accept(send)
            self._outbox.queue(send.entries)
            batch = self._lone_batch() if len(self._outbox.sends) == 1 else None
        if batch is not None:
            self._hand_over(batch)
        if self._opened:
            self._timers.ensure(send.waiter.loop)
            return self._results(send)
        return self._connect_and_wait(send, connect)

    def _lone_batch(self) -> Batch | None:
        """Return the batch of the only send, if this thread should begin its request.  Under the lock.

        Not the first request of all, and none after an outage: home looks for subscriptions then, or probes the broker.
        """
        if not self._driver.hands_over or self._driver.wants_ids or not self._has_looked or not self._link.is_up:
            return None
        batch = self._outbox.batcher.next(time.monotonic())
        # There is none if a send was given up whose request is still out.
        if batch is not None:
            self._handed_over.add(batch)
        return batch

    def _hand_over(self, batch: Batch) -> None:
        try:
            messages = [entry.message for entry in batch.entries]
            is_out = self._driver.hand_over(messages, partial(self._report, batch))
        except BaseException:  # a signal handler may raise at any point
            # Some of the messages may be out.  If home sent them again, they would come after their successors.
            self._report(batch, _interrupted)
            raise
        if not is_out:
            self._report(batch, None)

    def _checked(self, messages: Sequence[EventMessage]) -> AnySend[Waiter]:
        deadline = time.monotonic() + self._send_timeout
        size = self._check.size
        if len(messages) == 1:
            return SingleSend(messages[0], size(0, messages[0]), deadline, Waiter())
        send = Send(deadline, Waiter())
        send.add(messages, [size(index, message) for index, message in enumerate(messages)])
        return send

    async def _send_gently(self, messages: Sequence[EventMessage], connect: Connect) -> Results:
        async with self.order.turn():
            send = await self._submit_gently(messages)
        if self._opened:
            return await self._results(send, is_timed=True)
        return await self._connect_and_wait(send, connect)

    async def _submit_gently(self, messages: Sequence[EventMessage]) -> AnySend[Waiter]:
        sizes = await self._sizes(messages)
        send = Send(time.monotonic() + self._send_timeout, Waiter())
        for checked, of_checked in zip(parts(messages), parts(sizes), strict=True):
            await asyncio.sleep(0)
            send.add(checked, of_checked)
        with self._lock:
            self._refuse_if_closed()
            self._outbox.accept(send)
        try:
            for part in parts(send.entries):
                with self._lock:
                    if not send.pending:
                        break  # its time is up, or the client was closed
                    self._outbox.queue(part)
                self.pump()
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._end(send, self._outbox.timed_out(None))
            raise
        return send

    async def _connect_and_wait(self, send: AnySend[Waiter], connect: Connect) -> Results:
        try:
            await connect(send.deadline)
        # Not GeneratorExit: then the garbage collector runs this, and may not take the lock.
        except (Exception, asyncio.CancelledError) as error:
            reason = error if isinstance(error, BrokerError) else BrokerError("cancelled", ErrorCode.CLOSED)
            self._end(send, reason)
            if not isinstance(error, BrokerError):
                raise
        return await self._results(send, is_timed=True)

    async def _results(self, send: AnySend[Waiter], *, is_timed: bool = False) -> Results:
        """Wait until *send* is complete, at the latest when its time is up, and return its results.

        :param is_timed: True to use a timer of its own.  The loop has one for sends that wait for nothing before they
            are accepted, so they end in the order of acceptance.
        """
        self.pump()
        try:
            if is_timed:
                await send.waiter.wait(send.deadline - time.monotonic())
            else:
                await send.waiter
        # Not GeneratorExit: then the garbage collector runs this, and may not take the lock.  The home ends the send.
        except asyncio.CancelledError:
            self._end(send, self._outbox.timed_out(send.last_error))
            raise
        if send.pending:
            self._end(send, self._outbox.timed_out(send.last_error))
        return send.take_results()

    def _end(self, send: AnySend[Waiter], error: BrokerError) -> None:
        """End *send* with *error*, because its caller no longer waits; in any thread."""
        with self._lock:
            self._outbox.end(send, error)
            self._wake_if_drained()
        self.pump()  # there is room for others now

    def pump(self) -> None:
        """Wake the home if something may leave; in any thread.

        Without a lock.  If the flag is set, the home has not begun to look yet, so it finds what this thread has
        queued.  If two threads both find it unset, the home looks twice, which does no harm.  If nothing is ready,
        the thread that makes something ready pumps too.
        """
        if not self._is_pumping and self._outbox.is_ready:
            self._is_pumping = True
            self._home.wake(self._pump)

    # In any thread

    def _report(self, batch: Batch, found: Sequence[str] | Publishing | None) -> None:
        """Complete *batch*, which a caller has handed over, or leave it to home.

        :param found: the ids of its messages, which are stored; or a function that waits for its request; or ``None``
            if there is no request.
        """
        with self._lock:
            if batch not in self._handed_over:
                return  # the client was closed, or a KeyboardInterrupt came while the batch was handed over
            self._handed_over.remove(batch)
        if found is None or callable(found):
            self._home.wake(partial(self._take_over, batch, found))
            return
        self._link.up()
        entries = batch.entries
        results = found if len(found) == len(entries) else [_miscounted(found, entries)] * len(entries)
        with self._lock:
            now = time.monotonic()
            self._outbox.batcher.confirm(batch, now)
            is_complete = self._outbox.record_all(entries, results)
            self._outbox.batcher.release(batch, now)
            self._wake_if_drained()
        self.pump()  # others may have come since
        if is_complete:
            # Last, and without the lock: this thread may have to wait here until the caller has sent its next message.
            entries[0].send.waiter.wake()

    def _end_overdue(self) -> float | None:
        """End sends whose time is up, a few at a time; return when to look again, or ``None`` if no send is left."""
        with self._lock:
            oldest = self._outbox.oldest(_ENDED_AT_ONCE)
        now = time.monotonic()
        for send in oldest:
            if send.deadline > now:
                return send.deadline
            self._end(send, self._outbox.timed_out(send.last_error))
        return now if oldest else None

    # At home

    def _take_over(self, batch: Batch, begun: Publishing | None) -> None:
        """Send *batch*, which a caller has taken, or wait for its request if that has *begun*."""
        self.watch()
        self._home.spawn(self._run(batch, begun))

    def _pump(self) -> None:
        self._is_pumping = False  # before looking: what comes from now on wakes the home again
        self.watch()
        while batch := self._next():
            self._home.spawn(self._run(batch))

    def watch(self) -> None:
        self._timers.ensure(asyncio.get_running_loop())

    def unreached(self, error: BrokerError) -> None:
        self._outbox.unreached = error

    def open(self) -> None:
        super().open()
        self._outbox.opened = True
        self.pump()

    def _next(self) -> Batch | None:
        with self._lock:
            return self._outbox.batcher.next(time.monotonic())

    async def _run(self, batch: Batch, begun: Publishing | None = None) -> None:
        """Send *batch*, then the batches that may leave at its end, so that the broker works while callers wake up.

        :param begun: waits for the first request of *batch*, if that is out already.
        """
        following: Batch | None = batch
        try:
            while following is not None:
                batch = following
                try:
                    await self._publish(batch, batch.entries, begun)
                finally:
                    with self._lock:
                        self._outbox.batcher.release(batch, time.monotonic())
                begun = None
                following = self._next()
                self.pump()  # a large request that is over may make room for several
        finally:
            self._pump()

    async def _publish(self, batch: Batch, entries: Sequence[Entry], begun: Publishing | None = None) -> None:
        """Send *entries* of *batch* until all of them are complete."""
        pauses = self._link.pauses(Backoff(maximum=10.0))
        while sendable := entries if begun else self._depart(batch, entries):
            request, begun = begun, None
            try:
                results = await self._request(sendable, request)
            except BrokerError as error:
                if error.retryable:
                    self._link.down(error)
                    await self._pause(batch, pauses, sendable, error)
                elif error.code is ErrorCode.INVALID and len(sendable) > 1:
                    # One caller's bad message must not fail another's.  So halve until only the offenders fail (P3).
                    await self._publish(batch, sendable[: len(sendable) // 2])
                    await self._publish(batch, sendable[len(sendable) // 2 :])
                else:
                    self._complete(sendable, [error] * len(sendable))
            else:
                self._link.up()
                self._look_once()
                retried = self._complete(sendable, results, batch)
                # Nothing is left if the time has run out, or the callers were cancelled, since then.
                if retried is not None and (left := [entry for entry in sendable if entry.result is None]):
                    with self._lock:
                        self._outbox.batcher.shed(batch)
                    await self._pause(batch, pauses, left, retried)

    def _depart(self, batch: Batch, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return those of *entries* that leave in the next request; the others are complete, or follow."""
        with self._lock:
            departing = self._outbox.depart(batch, entries, time.monotonic())
            self._wake_if_drained()
        self.pump()  # those that are complete leave room for others, which must not wait for this request
        return departing

    async def _request(self, entries: Sequence[Entry], begun: Publishing | None) -> Results:
        """Send one request, or wait for the one that has *begun*.

        :raises BrokerError: for every failure of the driver.
        """
        try:
            # Usually the last entry was accepted last.  Entries of several keys come in another order.
            latest = (
                max([entry.deadline for entry in entries]) if self._driver.one_of_each_key else entries[-1].deadline
            )
            async with asyncio.timeout(latest - time.monotonic()):
                results = await (begun() if begun else self._ask(entries))
        except TimeoutError as error:
            raise self._outbox.timed_out(error) from error
        except BrokerError:
            raise
        except UNFORESEEN as error:
            raise internal(error) from error
        if len(results) != len(entries):
            raise _miscounted(results, entries)
        return results

    def _ask(self, entries: Sequence[Entry]) -> Awaitable[Results]:
        messages = [entry.message for entry in entries]
        if not self._driver.wants_ids:
            return self._driver.publish(messages)
        if not all(entry.unique for entry in entries):  # at their first request: a send that was given up needs none
            # The system call costs more than all the rest, so there is one for all.
            digits = token_hex(_ID_BYTES * len(entries))
            for place, entry in enumerate(entries):
                start = 2 * _ID_BYTES * place
                entry.unique = entry.unique or digits[start : start + 2 * _ID_BYTES]
        return self._driver.publish_with_ids(messages, [entry.unique for entry in entries])

    def _complete(
        self, entries: Sequence[Entry], results: Results, confirmed: Batch | None = None
    ) -> BrokerError | None:
        """Record *results*, and return a failure that lets its entry leave again, if there is any.

        A driver does not attempt messages behind a failed one of their key (P3).  It does not know which call a message
        is of.  So a message that was not attempted leaves again, unless the failed one is of its own call.

        :param confirmed: the batch that the broker has answered.
        """
        retried: BrokerError | None = None
        is_over = True
        # Nearly always all results are ids, and this looks at each.
        if confirmed is not None and (failures := [each for each in results if each.__class__ is not str]):
            if self._driver.retries_results:
                retried = next(filter(_is_retryable, failures), None)
            # If a driver has attempted none of them, it would get the same messages without end.
            is_over = retried is None and not 0 < sum(map(_is_unattempted, failures)) < len(results)
        with self._lock:
            if confirmed is not None:
                self._outbox.batcher.confirm(confirmed, time.monotonic())
            if is_over:
                self._outbox.complete_all(entries, results)
            else:
                for entry, result in zip(entries, results, strict=True):
                    if retried is not None and _is_retryable(result):
                        continue
                    if _is_unattempted(result) and entry.hindrance() is None:
                        continue
                    self._outbox.complete(entry, result)
            self._wake_if_drained()
        self.pump()  # there is room for others now
        return retried

    async def _pause(self, batch: Batch, pauses: Pauses, entries: Sequence[Entry], error: BrokerError) -> None:
        """Wait before the next try, but no longer than anybody waits for its result."""
        for entry in entries:
            # A failure before a request without an answer says more than that there was no answer in time.
            if entry.send.last_error is None or error.code is not ErrorCode.TIMEOUT:
                entry.send.last_error = error
        with self._lock:
            self._outbox.batcher.pause(batch, time.monotonic(), timed_out=error.code is ErrorCode.TIMEOUT)
        self._pump()
        left = max(entry.deadline for entry in entries) - time.monotonic()
        await pauses.next(max(0.0, left))
        place = Waiter()
        with self._lock:
            self._outbox.batcher.resume(batch, place)
        await place

    # Closing (closing.py)

    @property
    def is_busy(self) -> bool:
        return bool(self._outbox.sends)

    def _wake_if_drained(self) -> None:
        """Let a flush go on if no send is left.  Under the lock."""
        if self._drained is not None and not self._outbox.sends:
            self._drained.wake()

    def _end_all(self) -> None:
        with self._lock:
            self._handed_over.clear()  # what is reported from now on comes too late
        for send in list(self._outbox.sends):
            self._end(send, unconfirmed())


async def _interrupted() -> Results:
    """End a request of which nobody knows how far it came.  Its caller has the exception."""
    raise BrokerError("interrupted; the message may be stored or not", ErrorCode.INTERNAL)


def _miscounted(results: Results, entries: Sequence[Entry]) -> BrokerError:
    return BrokerError(
        f"the backend answered for {len(results)} of {len(entries)} messages; they may be stored or not",
        ErrorCode.INTERNAL,
    )


def _is_retryable(result: str | BrokerError) -> TypeGuard[BrokerError]:
    return isinstance(result, BrokerError) and result.retryable


def _is_unattempted(result: str | BrokerError) -> bool:
    return isinstance(result, BrokerError) and result.code is ErrorCode.NOT_ATTEMPTED
