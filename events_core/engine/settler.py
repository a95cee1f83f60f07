"""Telling the broker what became of deliveries: one request at a time, with what gathered meanwhile (S1, S4, S5)."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from events_core.engine.backoff import Backoff
from events_core.engine.closing import cancelled
from events_core.engine.driver import BrokerError, Outcome, Settlement, Source
from events_core.engine.failure import UNFORESEEN, internal
from events_core.engine.home import Home, step
from events_core.engine.ledger import Begun, Ledger
from events_core.engine.link import Link, Pauses
from events_core.engine.waiting import Waiter
from events_core.errors import ErrorCode
from events_core.message import ReceivedMessage

__all__ = ["Settler"]


class Ticket:
    """One caller that waits for several settlements."""

    __slots__ = ("awaited", "failed", "pending", "waiter")

    def __init__(self, begun: Begun) -> None:
        self.awaited = begun.awaited
        self.pending = 0
        self.failed = begun.refused
        self.waiter: Waiter | None = None

    def wait(self) -> None:
        """Be told of the end of each settlement."""
        for settlement in self.awaited:
            if self not in settlement._tickets:
                settlement._tickets += (self,)
                self.pending += 1

    def done(self, message_id: str, error: BrokerError | None) -> None:
        """One of them has ended."""
        if error is not None:
            self.failed[message_id] = error
        self.pending -= 1
        if not self.pending and self.waiter is not None:
            self.waiter.wake()


class Settler:
    """The settlements of one receiver; *lock* is the receiver's and guards its ledger too."""

    def __init__(
        self,
        source: Source,
        ledger: Ledger,
        home: Home,
        link: Link,
        lock: threading.Lock,
        *,
        limit: int,
        timeout: float,
    ) -> None:
        self._source = source
        self._ledger = ledger
        self._home = home
        self._link = link
        self._lock = lock
        self._limit = limit
        self._timeout = timeout
        self._queue: deque[Settlement] = deque()
        self._out: Sequence[Settlement] = ()
        self._deferred: list[Settlement] = []
        self._retrying: asyncio.TimerHandle | None = None
        """The one timer that ends the pause of what is deferred."""
        self._patience = Backoff(maximum=1.0)
        self._busy = False
        self._name = f"settling for {source.subscription!r}"
        self._running: asyncio.Task[None] | None = None
        self._stopped = False
        self._last_error: BrokerError | None = None
        self.abandoned: deque[ReceivedMessage] = deque()
        """Messages whose processing the garbage collector has ended, in any thread; appended without the lock."""
        self.on_progress: Callable[[], None] = lambda: None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._queue and not self._deferred and not self._busy

    def enqueue(self, settlements: Iterable[Settlement]) -> None:
        """Send *settlements* with the next request, in order.  Under the lock."""
        for settlement in settlements:
            settlement.delivery._settlement = settlement
            self._queue.append(settlement)

    def give_back_overdue(self, now: float) -> None:
        """Give back what is past its deadline (R6), and what was abandoned.  Under the lock."""
        while self.abandoned:
            self.enqueue(self._ledger.begin([self.abandoned.popleft()], Outcome.RETURN, None, now).asked)
        self.enqueue(self._ledger.expire(now))

    def settle(self, begun: Begun) -> Ticket:
        """Let the broker be told what was *begun*; inline it has been on return.  Under the lock."""
        ticket = Ticket(begun)
        if not self._home.inline:
            self.enqueue(begun.asked)
            ticket.wait()
        elif begun.asked:
            self._settle_inline(begun.asked, ticket.failed)
        return ticket

    def _settle_inline(self, settlements: Sequence[Settlement], failed: dict[str, BrokerError]) -> None:
        try:
            results = step(self._source.settle(settlements))
        except BrokerError as error:
            results = [error] * len(settlements)
        behind: list[Settlement] = []
        for settlement, result in zip(settlements, results, strict=True):
            behind += self._ledger.finish(settlement, result)
            told = _told(settlement, result)
            if told is not None and settlement.outcome is not Outcome.RETURN:
                failed[settlement.delivery.message_id] = told
        if behind:
            self._settle_inline(behind, failed)

    def pump(self) -> None:
        """Let the next request leave, unless one is out.  Without the lock."""
        if self._queue and not self._busy:
            self._home.wake(self._start)

    async def finished(self, ticket: Ticket) -> None:
        """Wait for *ticket* until its time is up; what is unsettled by then stays held (S5)."""
        self.pump()
        if not ticket.pending:
            return
        with self._lock:
            waiter = ticket.waiter = Waiter() if ticket.pending else None
        if waiter is None:
            return
        await waiter.wait_within(self._timeout)
        with self._lock:
            if ticket.pending:
                self._give_up(ticket)

    def _give_up(self, ticket: Ticket) -> None:
        last = f"; last: {self._last_error}" if self._last_error is not None else ""
        timed_out = BrokerError(
            f"no confirmation within ack_timeout={self._timeout:g} s; the message is still held, settle it again{last}",
            ErrorCode.TIMEOUT,
            retryable=True,
        )
        for settlement in ticket.awaited:
            if ticket not in settlement._tickets:
                continue
            others = tuple(other for other in settlement._tickets if other is not ticket)
            if others or settlement.delivery._settlement is not settlement:
                settlement._tickets = others
                ticket.done(settlement.delivery.message_id, timed_out)
            else:
                settlement._given_up = True
                self._end(settlement, timed_out)

    async def stop(self, within: float) -> None:
        """Ask for nothing more, and cancel the request that is out, for *within* seconds at most; at home."""
        self._stopped = True
        await cancelled([self._running], within)

    def close(self) -> None:
        """Ask for nothing more; whoever still waits is told so (C2)."""
        closed = BrokerError(
            "the receiver was closed before the broker confirmed; the message is settled, or comes again",
            ErrorCode.CLOSED,
        )
        with self._lock:
            for settlement in (*self._out, *self._queue, *self._deferred):
                settlement._given_up = True
                self._end(settlement, closed)

    def _start(self) -> None:
        with self._lock:
            if self._busy or not self._queue:
                return
            self._busy = True
        self._running = self._home.spawn(self._run(), self._name)

    async def _run(self) -> None:
        pauses = self._link.pauses(Backoff(maximum=min(10.0, self._timeout / 4)))
        try:
            batch = self._next()
            if not batch:
                self.on_progress()  # all that was queued had been given up
            while batch:
                try:
                    results = await self._request(batch)
                except BrokerError as error:
                    if not await self._failed(batch, error, pauses):
                        pauses.reset()
                else:
                    pauses.reset()
                    self._link.up()
                    self._last_error = None
                    self._finish(batch, results)
                batch = self._next()
                self.on_progress()
        except BaseException:
            self._busy = False
            raise

    async def _failed(self, batch: Sequence[Settlement], error: BrokerError, pauses: Pauses) -> bool:
        """Record that a request failed as a whole.  Return whether to ask again, after the next of *pauses*."""
        if not error.retryable:
            self._finish(batch, [error] * len(batch))
            return False
        self._link.down(error)
        self._last_error = error
        with self._lock:
            for settlement in batch:
                settlement.delivery._is_out = False
                self._ledger.came_again(settlement.delivery)
            self._queue.extendleft(reversed(batch))
        await pauses.next()
        return True

    def _next(self) -> list[Settlement]:
        with self._lock:
            batch: list[Settlement] = []
            while self._queue and not self._stopped and len(batch) < self._limit:
                settlement = self._queue.popleft()
                if not settlement._given_up:
                    settlement.delivery._is_out = True
                    batch.append(settlement)
            self._busy = bool(batch)
            self._out = batch
            return batch

    async def _request(self, batch: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        if self._home.inline:
            return await self._source.settle(batch)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._source.settle(batch)
        except TimeoutError as error:
            raise BrokerError("the broker did not answer", ErrorCode.TIMEOUT, retryable=True) from error
        except BrokerError:
            raise
        except UNFORESEEN as error:
            raise internal(error) from error

    def _finish(self, batch: Sequence[Settlement], results: Sequence[BrokerError | None]) -> None:
        """Record the answers; what failed for a while is deferred."""
        with self._lock:
            for settlement, error in zip(batch, results, strict=True):
                delivery = settlement.delivery
                delivery._is_out = False
                if delivery._newer_token is not None and self._must_repeat(settlement, error):
                    if not settlement._given_up:
                        self._queue.append(settlement)
                elif error is not None and error.retryable:
                    self._deferred.append(settlement)
                else:
                    self._end(settlement, error)
            if not self._deferred:
                self._patience.reset()
            elif self._retrying is None:
                self._retrying = asyncio.get_running_loop().call_later(next(self._patience), self._retry)

    def _must_repeat(self, settlement: Settlement, error: BrokerError | None) -> bool:
        """Return whether the newer token of a message that came again decides; it takes the same outcome (S2)."""
        delivery = settlement.delivery
        self._ledger.came_again(delivery)
        if not self._ledger.is_last(settlement):
            return False
        if error is None:
            delivery._was_acknowledged = True
            if settlement.outcome is not Outcome.ACK:  # dead-lettered: there is no second letter of the newer copy
                self._queue.append(Settlement(delivery, Outcome.ACK))
                return False
            # Where nobody asks again after a timeout, a late success is the last word.
            return not settlement._given_up or delivery._settlement is not None
        return error.code is ErrorCode.EXPIRED

    def _retry(self) -> None:
        """Ask for what was deferred with the next request, behind what may have hindered it."""
        with self._lock:
            self._retrying = None
            self._queue += self._deferred
            self._deferred.clear()
        self._start()

    def _end(self, settlement: Settlement, error: BrokerError | None) -> None:
        delivery = settlement.delivery
        if error is not None and error.code is ErrorCode.EXPIRED and delivery._was_acknowledged:
            error = None  # the message is gone, and so is the copy that had come again
        newer = delivery._settlement
        if newer is settlement or newer is None:
            behind = self._ledger.finish(settlement, error)
            if behind:
                self.enqueue(behind)
        elif error is None and newer.outcome is settlement.outcome:
            newer._given_up = True  # what was given up and asked for again has happened
            self._end(newer, None)
        told = _told(settlement, error)
        for ticket in settlement._tickets:
            ticket.done(delivery.message_id, told)
        settlement._tickets = ()


def _told(settlement: Settlement, error: BrokerError | None) -> BrokerError | None:
    """What callers learn of *error*: giving back what the broker has taken back already is a no-op (S3)."""
    gives_back = settlement.outcome is Outcome.NACK or settlement.outcome is Outcome.RETURN
    return None if error is not None and error.code is ErrorCode.EXPIRED and gives_back else error
