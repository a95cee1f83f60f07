"""Telling the broker what became of deliveries: one request at a time, with what gathered meanwhile (S1, S4, S5)."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from events_core.engine.backoff import Backoff
from events_core.engine.driver import BrokerError, Outcome, Settlement, Source
from events_core.engine.home import Home, step
from events_core.engine.ledger import Ledger
from events_core.engine.link import Link
from events_core.engine.waiting import Waiter
from events_core.errors import ErrorCode

__all__ = ["Errand", "Settler", "Ticket"]


class Ticket:
    """One caller that waits for several settlements."""

    __slots__ = ("errands", "failed", "pending", "settlements", "waiter")

    def __init__(self) -> None:
        self.settlements: list[Settlement] = []
        self.errands: list[Errand] = []
        self.pending = 0
        self.failed: dict[str, BrokerError] = {}
        self.waiter: Waiter | None = None

    def join(self, errand: object) -> None:
        """Wait for *errand* too, if there is one."""
        if isinstance(errand, Errand) and self not in errand.tickets:
            errand.tickets.append(self)
            self.errands.append(errand)
            self.pending += 1

    def done(self, message_id: str, error: BrokerError | None) -> None:
        """One of them has ended."""
        if error is not None:
            self.failed[message_id] = error
        self.pending -= 1
        if not self.pending and self.waiter is not None:
            self.waiter.wake()


class Errand:
    """One settlement on its way to the broker."""

    __slots__ = ("given_up", "settlement", "tickets", "token")

    def __init__(self, settlement: Settlement) -> None:
        self.settlement = settlement
        self.tickets: list[Ticket] = []
        self.given_up = False
        self.token: object = None

    @property
    def is_outdated(self) -> bool:
        """Whether the message came again meanwhile: that delivery takes the same outcome (S2)."""
        return self.settlement.outcome is Outcome.ACK and self.settlement.delivery.token is not self.token


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
        self._queue: deque[Errand] = deque()
        self._deferred: list[Errand] = []
        self._patience = Backoff(maximum=1.0)
        self._busy = False
        self._last_error: BrokerError | None = None
        self.on_progress: Callable[[], None] = lambda: None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._queue and not self._deferred and not self._busy

    def enqueue(self, settlements: Iterable[Settlement]) -> None:
        """Send *settlements* with the next request, in order.  Under the lock."""
        for settlement in settlements:
            errand = Errand(settlement)
            settlement.delivery.errand = errand
            self._queue.append(errand)

    def settle_inline(self, ticket: Ticket) -> None:
        """Settle at once: an inline source has nothing to gather or wait for.  Under the lock."""
        if not ticket.settlements:
            return
        try:
            results = step(self._source.settle(ticket.settlements))
        except BrokerError as error:
            results = [error] * len(ticket.settlements)
        later: list[Settlement] = []
        for settlement, result in zip(ticket.settlements, results, strict=True):
            later += self._ledger.finish(settlement, result)
            if result is not None and settlement.outcome is not Outcome.RETURN:
                ticket.failed[settlement.delivery.message_id] = result
        if later:
            step(self._source.settle(later))

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
        for errand in ticket.errands:
            if errand.settlement.delivery.errand is errand and ticket in errand.tickets:
                errand.given_up = True
                self._end(errand, timed_out)

    def _start(self) -> None:
        with self._lock:
            if self._busy or not self._queue:
                return
            self._busy = True
        self._home.spawn(self._run())

    async def _run(self) -> None:
        backoff = Backoff(maximum=min(10.0, self._timeout / 4))
        try:
            while batch := self._next():
                try:
                    results = await self._request(batch)
                except BrokerError as error:
                    if not await self._failed(batch, error, next(backoff)):
                        backoff.reset()
                else:
                    backoff.reset()
                    self._link.up()
                    self._last_error = None
                    self._finish(batch, results)
                self.on_progress()
        except BaseException:
            self._busy = False
            raise
        self.on_progress()

    async def _failed(self, batch: Sequence[Errand], error: BrokerError, pause: float) -> bool:
        """Record that a request failed as a whole; whether to ask again, for which *pause* has passed."""
        if not error.retryable:
            self._finish(batch, [error] * len(batch))
            return False
        self._link.down(error)
        self._last_error = error
        with self._lock:
            self._queue.extendleft(reversed(batch))
        await asyncio.sleep(pause)
        return True

    def _next(self) -> list[Errand]:
        with self._lock:
            if self._queue:
                self._resume()
            batch: list[Errand] = []
            while self._queue and len(batch) < self._limit:
                errand = self._queue.popleft()
                errand.token = errand.settlement.delivery.token
                if not errand.given_up:
                    batch.append(errand)
            self._busy = bool(batch)
            return batch

    async def _request(self, batch: Sequence[Errand]) -> Sequence[BrokerError | None]:
        settlements = [errand.settlement for errand in batch]
        if self._home.inline:
            return await self._source.settle(settlements)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._source.settle(settlements)
        except TimeoutError as error:
            raise BrokerError("the broker did not answer", ErrorCode.TIMEOUT, retryable=True) from error
        except (BrokerError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise BrokerError(f"the backend failed: {error!r}", ErrorCode.INTERNAL) from error

    def _finish(self, batch: Sequence[Errand], results: Sequence[BrokerError | None]) -> None:
        """Record the answers; what failed for a while is deferred."""
        with self._lock:
            for errand, error in zip(batch, results, strict=True):
                if errand.is_outdated and (error is None or error.code is ErrorCode.EXPIRED):
                    self._queue.append(errand)
                elif error is not None and error.retryable:
                    self._deferred.append(errand)
                else:
                    self._end(errand, error)
            if not self._deferred:
                self._patience.reset()
            elif not self._queue:
                asyncio.get_running_loop().call_later(next(self._patience), self._retry)

    def _retry(self) -> None:
        with self._lock:
            self._resume()
        self._start()

    def _resume(self) -> None:
        """Ask for what was deferred with the next request, behind what may have hindered it.  Under the lock."""
        self._queue += self._deferred
        self._deferred.clear()

    def _end(self, errand: Errand, error: BrokerError | None) -> None:
        delivery = errand.settlement.delivery
        newer = delivery.errand
        if newer in (errand, None):
            delivery.errand = None
            self.enqueue(self._ledger.finish(errand.settlement, error))
        elif error is None and isinstance(newer, Errand) and newer.settlement.outcome is errand.settlement.outcome:
            newer.given_up = True  # what was given up and asked for again has happened
            self._end(newer, None)
        for ticket in errand.tickets:
            ticket.done(delivery.message_id, error)
        errand.tickets.clear()
