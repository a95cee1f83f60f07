"""Feeds, which bring deliveries from a source into the ledger.

The feed of an inline driver fetches in each receive.  The feed of every other driver has a task at home that fetches
ahead of the receives.  ``inbox.py`` opens with the rules of the lock.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from events_core.engine.backoff import Backoff
from events_core.engine.clock import uptime
from events_core.engine.closing import cancel_all, end_worker
from events_core.engine.driver import BrokerError, Delivery, Source
from events_core.engine.failure import UNFORESEEN, internal, is_meant
from events_core.engine.home import step
from events_core.engine.inbox import Inbox
from events_core.engine.leases import LeaseKeeper
from events_core.engine.settler import Settler
from events_core.engine.surroundings import Surroundings
from events_core.engine.waiting import WaitingRoom

__all__ = ["Feed", "InlineFeed", "PrefetchingFeed"]

_log = logging.getLogger("events_core.receiver")


class Feed(ABC):
    """The path of deliveries from a source into the ledger, and on to the calls that receive."""

    def __init__(self, source: Source, inbox: Inbox) -> None:
        self._source = source
        self._ledger = inbox.ledger
        self.last_message = math.nan
        """The time of the last message that arrived; NaN before the first."""
        self.last_alive = math.nan
        """The time of the broker's last answer; NaN before the first."""
        self.reconnects = 0

    # Under the lock

    @abstractmethod
    def take(self, limit: int, now: float) -> Sequence[Delivery]:
        """Hand out up to *limit* deliveries.

        :raises BrokerError: if no delivery is ready, and the source has failed with an error that retrying cannot fix.
            The next call tries again.
        """

    @abstractmethod
    def may_have_more(self, now: float) -> bool:
        """Return whether another :meth:`take` may find something now."""

    @abstractmethod
    def next_due(self) -> float | None:
        """Return the time at which :meth:`take` may find something without a wake-up; ``None`` if there is none."""

    # In any thread, without the lock

    def fetch_again(self) -> None:
        """Fetch again if settlements that have ended made room for it."""

    # At home, without the lock

    async def stop_fetching(self, within: float) -> None:
        """Fetch nothing more.  It takes *within* seconds at most, and may be called again."""

    def finish_fetching(self) -> None:
        """Begin to wait for requests that are still out; call it after :meth:`stop_fetching`, perhaps again."""

    @property
    def has_finished(self) -> bool:
        """Return whether no such request is out."""
        return True

    async def stop(self, within: float) -> None:
        """Stop keeping leases; call it after :meth:`stop_fetching`.  It takes *within* seconds at most."""


class InlineFeed(Feed):
    """A feed that fetches nothing ahead: a message goes to the call that takes it."""

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
        # No task watches the clock here, so each receive must know how long it may sleep.  Without room, nothing that
        # falls due at the source can be fetched.  Then only the expiry of a delivery that is here can make room.
        expires = self._ledger.next_deadline()
        due = self._source.next_due() if self._ledger.room(None) else None
        return min((each for each in (expires, due) if each is not None), default=None)


class PrefetchingFeed(Feed):
    """A feed with a task that fetches while there is room, and a keeper for the leases of what it fetched."""

    def __init__(
        self,
        source: Source,
        inbox: Inbox,
        settler: Settler,
        *,
        waiting: WaitingRoom,
        surroundings: Surroundings,
        left: Callable[[], object],
    ) -> None:
        """Start both tasks; at home.

        :param waiting: the waiting room of the receives.
        :param left: closes the receiver when :attr:`Inbox.is_left` is set; called at home.
        """
        super().__init__(source, inbox)
        self._settlements = inbox.settlements
        self._settler = settler
        self._lock = inbox.lock
        self._home = home = surroundings.home
        self._link = surroundings.link
        self._observed = surroundings.observed
        self._waiting = waiting
        self._failure: BrokerError | None = None
        """The error that has stopped fetching, until a receive has raised it.  The lock guards it and ``_starving``."""
        self._starving = False
        """Whether fetching waits for room."""
        self._stopping = False
        self._finishing: asyncio.Task[None] | None = None
        self._go_on = asyncio.Event()
        source._tell_lost = self._drop
        self._now = asyncio.get_running_loop().time  # time.monotonic, unless a test simulates the clock
        self._fetching = home.spawn(self._fetch_until_stopped(), f"fetching from {source.subscription!r}")
        self._leases = LeaseKeeper(
            source,
            inbox,
            settler,
            home=home,
            waiting=waiting,
            left=left,
        )

    # Under the lock

    def take(self, limit: int, now: float) -> Sequence[Delivery]:
        # Check at every hand-out, not in a task: when a stopped process goes on, this may run before any task does.
        taken = self._ledger.take(limit, now) if self._is_safe() else []
        if not taken and self._failure is not None:
            failure, self._failure = self._failure, None
            self._home.wake(self._go_on.set)
            raise failure
        self._refill()
        return taken

    def may_have_more(self, now: float) -> bool:
        return self._ledger.ready(now)

    def next_due(self) -> float | None:
        # If it is not safe, the driver wakes the receives when it has renewed the session.
        return self._ledger.next_due() if self._is_safe() else None

    def _is_safe(self) -> bool:
        """Return whether buffered messages may be handed out: the broker still keeps them for this receiver."""
        until = self._source.safe_until
        return until is None or uptime() < until

    def _refill(self) -> None:
        if self._starving and self._ledger.room(self._source.prefetch) > 0:
            self._starving = False
            self._home.wake(self._go_on.set)

    # In any thread, without the lock

    def fetch_again(self) -> None:
        with self._lock:
            self._refill()

    def _drop(self, is_meant: Callable[[Delivery], bool], is_loss: bool) -> Sequence[Delivery]:
        """Drop deliveries from the buffer before this call returns, and return them.

        :param is_loss: True to mark those that are handed out too.
        """
        with self._lock:  # all at once: nothing may be handed out in between
            if is_loss:
                self._ledger.mark_lost(is_meant)
            dropped = self._ledger.find_buffered(is_meant)
            self._settlements.enqueue(self._ledger.lose(dropped))
            self._refill()
        self._settler.pump()
        return dropped

    # At home

    async def _fetch_until_stopped(self) -> None:
        while not self._stopping:  # a flag too, because a library may swallow the cancellation
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
        with self._observed("reconnect", subscription=self._source.subscription):
            deliveries = await self._reconnect(lost)
        self.reconnects += 1
        return deliveries

    async def _reconnect(self, lost: BrokerError) -> Sequence[Delivery]:
        """Fetch again and again until the broker answers, or fails with an error that retrying cannot fix (F1)."""
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
        """Wait until there is room; return the number of deliveries to fetch."""
        while True:
            with self._lock:
                room = self._ledger.room(self._source.prefetch)
                # Both changes under the lock: a thread that makes room after this sees _starving and sets the event.
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
            # Asked each time, because some sources learn it only from the first messages.
            self._ledger.keep_order(self._source.capabilities.ordering != "none")
            self._ledger.arrive(deliveries, now, math.inf if self._source.lease is None else now + self._source.lease)
        self._waiting.wake()

    async def _fail(self, error: BrokerError) -> None:
        """Let a receive raise *error*, and wait until one has."""
        # If fetching went on, it would ask the broker again and again, in vain.
        with self._lock:
            self._failure = error
            self._go_on.clear()
        self._waiting.wake_all()
        await self._go_on.wait()

    async def stop_fetching(self, within: float) -> None:
        if not self._stopping:
            self._stopping = True
            await end_worker(self._fetching, within)

    def finish_fetching(self) -> None:
        if self._finishing is not None:
            return
        name = f"the last requests to fetch from {self._source.subscription!r}"
        self._finishing = self._home.spawn(self._finish(), name)
        if self._finishing is not None:
            self._finishing.add_done_callback(lambda _: self._settler.progressed())  # the close waits for it

    async def _finish(self) -> None:
        try:
            await self._source.finish_fetching()
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            _log.debug("%s: the last requests to fetch failed: %r", self._source.subscription, error)

    @property
    def has_finished(self) -> bool:
        return self._finishing is None or self._finishing.done()

    async def stop(self, within: float) -> None:
        await cancel_all([self._finishing], within)
        await self._leases.stop(within)
