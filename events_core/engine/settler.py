"""Settling: tell the broker the outcome of deliveries, one request at a time (S1, S4, S5).

:class:`Settlements` decides what a request carries; this module sends it.  ``inbox.py`` opens with the rules of the
lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from events_core.engine.backoff import Backoff
from events_core.engine.closing import cancel_all
from events_core.engine.driver import BrokerError, Outcome, Settlement, Source
from events_core.engine.failure import UNFORESEEN, internal
from events_core.engine.home import Home, step
from events_core.engine.inbox import Inbox
from events_core.engine.ledger import Begun
from events_core.engine.link import Link, Pauses
from events_core.engine.settlements import Ticket, error_for_callers
from events_core.engine.waiting import Waiter, give_way
from events_core.errors import ErrorCode
from events_core.message import ReceivedMessage

__all__ = ["InlineSettler", "Settler"]

_ACK = Outcome.ACK  # reading a member from its class takes ten times as long (CPython 3.11)


class Settler:
    """Sends the settlements of one receiver from home, and lets callers wait for them."""

    def __init__(
        self,
        source: Source,
        inbox: Inbox,
        *,
        home: Home,
        link: Link,
        limit: int,
        timeout: float,
        progressed: Callable[[], None],
    ) -> None:
        """Begin with nothing under way.

        :param limit: the largest number of settlements in one request.
        :param timeout: seconds that a caller waits, and that a request may take.
        :param progressed: called, without the lock, when settlements have ended.
        """
        self._source = source
        self._inbox = inbox
        self._settlements = inbox.settlements
        self._lock = inbox.lock
        self._home = home
        self._link = link
        self._limit = limit
        self._timeout = timeout
        self.progressed = progressed
        self._retrying: asyncio.TimerHandle | None = None
        """The one timer that ends the pause of what is deferred.  Only home touches it."""
        self._delaying: asyncio.TimerHandle | None = None
        """The one timer of the delays that the broker cannot keep.  Only home touches it."""
        self._now = asyncio.get_running_loop().time  # time.monotonic, unless a test simulates the clock
        self._takes_notes = type(source).acknowledge_at_once is not Source.acknowledge_at_once
        self._retry_pauses = Backoff(maximum=1.0)
        self._gathered: asyncio.Future[None] | None = None
        """Ends the wait for further settlements.  Only home touches it."""
        self._name = f"settling for {source.subscription!r}"
        self._running: asyncio.Task[None] | None = None
        self._last_error: BrokerError | None = None

    # In a caller's thread

    def begin(
        self,
        targets: Sequence[ReceivedMessage | str],
        outcome: Outcome,
        delay: float | None,
        now: float,
        reason: str,
        ticket: Ticket | None = None,
    ) -> Ticket:
        """Begin to settle *targets*, and let the broker be told.  Under the lock.

        :returns: the caller's ticket for it, which is *ticket* if the call has begun others before.
        """
        failed: dict[str, BrokerError] = {}
        left = self._acknowledge_at_once(targets, failed) if outcome is _ACK else targets
        begun = self._inbox.ledger.begin(left, outcome, delay, now, reason)
        begun.refused.update(failed)
        if ticket is None:
            ticket = Ticket(begun)
        else:
            ticket.extend(begun)
        ticket.is_noted |= left is not targets
        self._tell(begun, ticket)
        return ticket

    def _acknowledge_at_once(
        self, targets: Sequence[ReceivedMessage | str], failed: dict[str, BrokerError]
    ) -> Sequence[ReceivedMessage | str]:
        """Acknowledge those of *targets* of which the source takes a note.

        :param failed: takes the errors, by message id.
        :returns: the other ones: *targets* itself if the source takes no note of any.
        """
        if not self._takes_notes or self._settlements.is_stopped:
            return targets
        ledger = self._inbox.ledger
        deliveries, others = ledger.begin_at_once(targets)
        results = self._source.acknowledge_at_once(deliveries) if deliveries else None
        if results is None:
            ledger.hold_again(deliveries)
            return targets
        if len(results) != len(deliveries):
            results = [_miscounted(results, deliveries)] * len(deliveries)
        lost = {delivery: error for delivery, error in zip(deliveries, results, strict=True) if error is not None}
        self._settlements.enqueue(ledger.finish_at_once(deliveries, lost))
        failed.update((delivery.message_id, error) for delivery, error in lost.items())
        return others

    def _tell(self, begun: Begun, ticket: Ticket) -> None:
        self._settlements.enqueue(begun.to_send)
        ticket.register(begun.awaited)

    def pump(self) -> None:
        """Let the next request leave, unless one is out.  Call it after each use of the lock, without the lock."""
        # Called for each message.  So look at the queue itself first: it is nearly always empty, or a request is out.
        if not self._settlements.queued:
            return
        if self._settlements.may_leave:
            self._home.wake(self._start)
        elif self._settlements.is_waiting and self._settlements.is_worth_it:
            self._home.wake(self._end_waiting)

    async def finished(self, ticket: Ticket) -> None:
        """Wait for *ticket* until its time is up; what is not settled by then stays held (S5)."""
        self.pump()
        if ticket.is_noted or not ticket.pending:
            # The source has answered at once, or the ledger has done all by itself.  That makes room, or fills the
            # buffer.
            self.progressed()
        if ticket.is_noted:
            await give_way()
        if not ticket.pending:
            return
        # Under the lock, so that the last settlement either has ended before, or finds the waiter.
        with self._lock:
            waiter = ticket.waiter = Waiter() if ticket.pending else None
        if waiter is None:
            return
        await waiter.wait(self._timeout)
        with self._lock:
            if ticket.pending:
                self._settlements.give_up(ticket, self._timed_out())

    def _timed_out(self) -> BrokerError:
        last = f"; last: {self._last_error}" if self._last_error is not None else ""
        return BrokerError(
            f"no confirmation within ack_timeout={self._timeout:g} s; the message is still held, settle it again{last}",
            ErrorCode.TIMEOUT,
            retryable=True,
        )

    def close(self) -> None:
        """Ask for nothing more, and tell the callers that still wait (C2).  In any thread, without the lock."""
        closed = BrokerError(
            "the receiver was closed before the broker confirmed; the message is settled, or comes again",
            ErrorCode.CLOSED,
        )
        with self._lock:
            self._settlements.give_all_up(closed)

    # At home

    async def stop(self, within: float) -> None:
        """Let no request leave any more, and cancel the one that is out, for *within* seconds at most."""
        if self._delaying is not None:
            self._delaying.cancel()
        with self._lock:
            self._settlements.stop()
        await cancel_all([self._running], within)

    def _start(self) -> None:
        with self._lock:
            if not self._settlements.claim():
                return
        self._running = self._home.spawn(self._run(), self._name)

    async def _run(self) -> None:
        # A caller waits as long as a request may take.  So pauses stay short of that, to leave time for a second try.
        pauses = self._link.pauses(Backoff(maximum=min(10.0, self._timeout / 4)))
        try:
            batch = await self._next()
            if not batch:
                self.progressed()  # all that was queued had been given up
            while batch:
                try:
                    results = await self._request(batch)
                except BrokerError as error:
                    await self._failed(batch, error, pauses)
                else:
                    # Errors alone are no sign of life: a driver may know without asking that a session is lost.
                    if None in results:
                        self._link.up()
                    self._last_error = None
                    pauses.reset()
                    self._answered(results)
                batch = await self._next()
                self.progressed()
        except BaseException:
            # Without the lock: a plain store, and the garbage collector may be what ends this coroutine.
            self._settlements.abort()
            raise

    async def _next(self) -> list[Settlement]:
        """Wait until the next request is worth it; return its settlements, or nothing if there are none."""
        while True:
            with self._lock:
                seconds = self._settlements.wait(self._now())
                batch = [] if seconds else self._settlements.next(self._limit, self._now())
            if not seconds:
                self._set_timer()
                return batch
            self.progressed()
            self._gathered = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._gathered], timeout=seconds)

    def _end_waiting(self) -> None:
        self._settlements.is_waiting = False
        if self._gathered is not None and not self._gathered.done():
            self._gathered.set_result(None)

    def _set_timer(self) -> None:
        """Let :meth:`_end_delays` be called when the first delay is over."""
        due = self._inbox.ledger.delays.next_due()
        if due is None or (self._delaying is not None and self._delaying.when() <= due):
            return
        if self._delaying is not None:
            self._delaying.cancel()
        self._delaying = asyncio.get_running_loop().call_at(due, self._end_delays)

    def _end_delays(self) -> None:
        self._delaying = None
        with self._lock:
            self._settlements.enqueue(self._inbox.ledger.delays.end(self._now()))
        self._set_timer()
        self._start()

    async def _request(self, batch: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        try:
            async with self._home.timeout(self._timeout):
                results = await self._source.settle(batch)
        except TimeoutError as error:
            raise BrokerError("the broker did not answer", ErrorCode.TIMEOUT, retryable=True) from error
        except BrokerError:
            raise
        except UNFORESEEN as error:
            raise internal(error) from error
        if len(results) != len(batch):
            raise _miscounted(results, batch)
        return results

    async def _failed(self, batch: Sequence[Settlement], error: BrokerError, pauses: Pauses) -> None:
        """Record that the request failed as a whole; if it is worth another try, wait before that."""
        if not error.retryable:
            pauses.reset()
            self._answered([error] * len(batch))
            return
        self._link.down(error)
        self._last_error = error
        with self._lock:
            self._settlements.put_back()
        await pauses.next()

    def _answered(self, results: Sequence[BrokerError | None]) -> None:
        with self._lock:
            self._settlements.answered(results)
        if not self._settlements.has_deferred:
            self._retry_pauses.reset()
        elif self._retrying is None:
            self._retrying = asyncio.get_running_loop().call_later(next(self._retry_pauses), self._retry)

    def _retry(self) -> None:
        with self._lock:
            self._retrying = None
            self._settlements.retry()
        self._start()


class InlineSettler(Settler):
    """Settles in the caller's thread.  When :meth:`begin` returns, the broker has answered."""

    def _tell(self, begun: Begun, ticket: Ticket) -> None:
        if begun.to_send:
            self._settle_now(begun.to_send, ticket.failed)

    def _settle_now(self, settlements: Sequence[Settlement], failed: dict[str, BrokerError]) -> None:
        try:
            results = step(self._source.settle(settlements))
            if len(results) != len(settlements):
                raise _miscounted(results, settlements)
        except BrokerError as error:
            results = [error] * len(settlements)
        behind: list[Settlement] = []
        for settlement, result in zip(settlements, results, strict=True):
            behind += self._inbox.ledger.finish(settlement, result)
            if result is None:
                continue
            failure = error_for_callers(settlement, result)
            if failure is not None and settlement.outcome is not Outcome.RETURN:
                failed[settlement.delivery.message_id] = failure
        # Later deliveries of their keys, which must go back too (R10).
        if behind:
            self._settle_now(behind, failed)

    def pump(self) -> None:
        if self._settlements.queued:  # rarely: only what goes back when the receiver closes, or when it expires
            super().pump()
        self._source.unlocked()

    async def finished(self, ticket: Ticket) -> None:
        self.pump()
        self.progressed()


def _miscounted(results: Sequence[BrokerError | None], asked: Sequence[object]) -> BrokerError:
    """Return the failure of a request whose results cannot be told apart, because there are too few or too many."""
    return BrokerError(
        f"the backend answered for {len(results)} of {len(asked)} settlements; they may be applied or not",
        ErrorCode.INTERNAL,
    )
