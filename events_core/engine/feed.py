"""Where a receiver's deliveries come from: straight from an inline source, or fetched ahead by a task at home."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from events_core.engine.backoff import Backoff
from events_core.engine.clock import uptime
from events_core.engine.closing import cancelled
from events_core.engine.driver import BrokerError, Delivery, Source
from events_core.engine.failure import UNFORESEEN, internal, is_meant
from events_core.engine.home import Home, step
from events_core.engine.ledger import Ledger
from events_core.engine.link import Link
from events_core.engine.settler import Settler
from events_core.engine.waiting import WaitingRoom

__all__ = ["Feed", "InlineFeed", "PrefetchingFeed"]

_log = logging.getLogger("events_core.receiver")


class Feed(ABC):
    """Fills a ledger; its methods are called under the receiver's lock, but for the coroutines."""

    def __init__(self, source: Source, ledger: Ledger) -> None:
        self._source = source
        self._ledger = ledger
        self.last_message = math.nan
        self.last_alive = math.nan
        self.reconnects = 0

    @abstractmethod
    def take(self, limit: int, now: float) -> Sequence[Delivery]:
        """Hand out up to *limit* deliveries.

        :raises BrokerError: what retrying cannot mend, where nothing is at hand; the next call tries again.
        """

    @abstractmethod
    def may_have_more(self, now: float) -> bool:
        """Whether another :meth:`take` may find something now."""

    @abstractmethod
    def next_due(self) -> float | None:
        """When :meth:`take` may find something by time alone."""

    def refill(self) -> None:
        """There may be room again."""

    async def stop_fetching(self, within: float) -> None:
        """Fetch nothing more; at home.  It takes *within* seconds at most, and may be called again."""

    async def stop(self, within: float) -> None:
        """Let go of leases too; at home, after :meth:`stop_fetching`."""


class InlineFeed(Feed):
    """Nothing is fetched ahead: a message goes to the call that takes it."""

    def take(self, limit: int, now: float) -> Sequence[Delivery]:
        room = min(limit, self._ledger.room(None))
        if room < 1:
            return []
        deliveries = step(self._source.fetch(room))
        self.last_alive = now
        if deliveries:
            self.last_message = now
            self._ledger.hold(deliveries, now)
        return deliveries

    def may_have_more(self, now: float) -> bool:
        return True

    def next_due(self) -> float | None:
        # Nobody else looks at the clock.  A full receiver waits for its own deliveries alone.
        expires = self._ledger.next_deadline()
        due = self._source.next_due() if self._ledger.room(None) else None
        return min((each for each in (expires, due) if each is not None), default=None)


class PrefetchingFeed(Feed):
    """A task fetches while there is room, another keeps the leases of what it fetched."""

    def __init__(
        self,
        source: Source,
        ledger: Ledger,
        settler: Settler,
        home: Home,
        link: Link,
        lock: threading.Lock,
        waiting: WaitingRoom,
        max_lease_duration: float,
        outage: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Start; at home.

        :param outage: entered for the length of each.
        """
        super().__init__(source, ledger)
        self._settler = settler
        self._home = home
        self._link = link
        self._lock = lock
        self._waiting = waiting
        self._max_lease = max_lease_duration
        self._failure: BrokerError | None = None
        self._outage = outage
        self._starving = False
        self._stopping = False
        self._stopped = False
        self._go_on = asyncio.Event()
        source._tell_lost = self._lose
        self._now = asyncio.get_running_loop().time  # time.monotonic, but for a loop with a clock of its own
        self._fetching = home.spawn(self._fetch_until_stopped(), f"fetching from {source.subscription!r}")
        self._keeping = home.spawn(self._keep_leases(), f"keeping leases of {source.subscription!r}")

    def take(self, limit: int, now: float) -> Sequence[Delivery]:
        taken = self._ledger.take(limit, now) if self._is_safe() else []
        if not taken and self._failure is not None:
            failure, self._failure = self._failure, None
            self._home.wake(self._go_on.set)
            raise failure
        self.refill()
        return taken

    def may_have_more(self, now: float) -> bool:
        return self._ledger.ready(now)

    def next_due(self) -> float | None:
        return self._ledger.next_due() if self._is_safe() else None  # otherwise the driver wakes receives

    def _is_safe(self) -> bool:
        """Return whether the broker still keeps for this receiver what is buffered, as far as the source can tell."""
        until = self._source.safe_until
        return until is None or uptime() < until

    def _lose(self, is_lost: Callable[[Delivery], bool]) -> None:
        """Hand out nothing more of what the source has lost; from any thread, without the lock."""
        with self._lock:
            self._settler.enqueue(self._ledger.lose_buffered(is_lost))
            self.refill()
        self._settler.pump()

    def refill(self) -> None:
        if self._starving and self._ledger.room(self._source.prefetch) > 0:
            self._starving = False
            self._home.wake(self._go_on.set)

    # At home

    async def _fetch_until_stopped(self) -> None:
        while not self._stopping:  # a cancellation may get lost in the driver
            try:
                self._arrived(await self._fetch())
            except BrokerError as error:
                await self._fail(error)
            except UNFORESEEN as error:
                failure = internal(error)
                _log.exception("%s: the backend failed to fetch", self._source.subscription)
                await self._fail(failure)

    async def _fetch(self) -> Sequence[Delivery]:
        try:
            return await self._source.fetch(await self._room())
        except BrokerError as error:
            if not error.retryable:
                raise
            lost = error
        with self._outage():
            deliveries = await self._reconnect(lost)
        self.reconnects += 1
        return deliveries

    async def _reconnect(self, lost: BrokerError) -> Sequence[Delivery]:
        """Try again until the broker answers, or says what retrying cannot mend (F1)."""
        pauses = self._link.pauses(Backoff())
        while not self._stopping:
            self._link.down(lost)
            await pauses.next()
            try:
                return await self._source.fetch(await self._room())
            except BrokerError as error:
                if not error.retryable:
                    raise
                lost = error
        return ()

    async def _room(self) -> int:
        """Wait until there is room; how much."""
        while True:
            with self._lock:
                room = self._ledger.room(self._source.prefetch)
                self._starving = room < 1
                self._go_on.clear()
            if room > 0:
                return room
            await self._go_on.wait()

    def _arrived(self, deliveries: Sequence[Delivery]) -> None:
        now = self.last_alive = self._now()
        self._link.up()
        if not deliveries:
            return
        self.last_message = now
        with self._lock:
            self._ledger.keep_order(self._source.capabilities.ordering != "none")
            self._ledger.arrive(deliveries, now, math.inf if self._source.lease is None else now + self._source.lease)
        self._waiting.wake()

    async def _fail(self, error: BrokerError) -> None:
        """Let a receive raise *error*; go on when one has."""
        with self._lock:
            self._failure = error
            self._go_on.clear()
        self._waiting.wake_all()
        await self._go_on.wait()

    async def _keep_leases(self) -> None:
        """Renew what the broker would deliver again, give back what is held too long (R6)."""
        lease = self._source.lease
        pause = min(self._max_lease / 8, 5.0 if lease is None else lease / 6)
        while not self._stopped:
            await asyncio.sleep(pause)
            now = self._now()
            self._waiting.drop_the_dead()
            with self._lock:
                held = self._ledger.held
                self._settler.give_back_overdue(now)
                has_expired = self._ledger.held < held
                renewals = self._ledger.renewals(now + lease / 2) if lease is not None else []
            if has_expired:
                self._waiting.wake()  # it may come again here after a delay that no waiting receive knows of
            self._settler.pump()
            if renewals and lease is not None:
                await self._renew(renewals, lease)

    async def _renew(self, deliveries: Sequence[Delivery], lease: float) -> None:
        asked = self._now()
        tokens = [delivery.token for delivery in deliveries]
        try:
            async with asyncio.timeout(lease / 3):  # what is asked for has more than that left, and is asked for again
                lost = await self._source.extend(deliveries)
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            _log.debug("%s: leases not renewed, trying again: %r", self._source.subscription, error)
            return
        for delivery in deliveries:
            delivery.lease_until = asked + lease
        if lost:  # except for messages that came again meanwhile: only their older tokens are over
            current = {each for each, token in zip(deliveries, tokens, strict=True) if each.has_token(token)}
            lost = [delivery for delivery in lost if delivery in current]
        if lost:
            _log.info("%s: the broker took back %d deliveries before their time", self._source.subscription, len(lost))
            with self._lock:
                self._settler.enqueue(self._ledger.lose(lost))
            self._settler.pump()
            self._settler.on_progress()

    async def stop_fetching(self, within: float) -> None:
        if not self._stopping:
            self._stopping = True
            await self._end(self._fetching, within)

    async def stop(self, within: float) -> None:
        self._stopped = True
        await self._end(self._keeping, within)

    async def _end(self, task: asyncio.Task[None] | None, within: float) -> None:
        await cancelled([task], within)
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            _log.error("%s had died: %r", task.get_name(), task.exception())
