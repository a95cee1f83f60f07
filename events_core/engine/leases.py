"""Leases: renew what the application still holds, and give back what it holds for too long (R6)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from events_core.engine.closing import end_worker
from events_core.engine.driver import Delivery, Source
from events_core.engine.failure import UNFORESEEN, is_meant
from events_core.engine.home import Home
from events_core.engine.inbox import Inbox
from events_core.engine.settler import Settler
from events_core.engine.waiting import WaitingRoom

__all__ = ["LeaseKeeper"]

_log = logging.getLogger("events_core.receiver")


class LeaseKeeper:
    """A task at home that keeps the leases of one receiver's deliveries.

    It runs at home so that leases hold while the application's loop is blocked.  A lease is renewed when less than
    half of it is left, and the keeper looks six times within a lease.  So a renewal has a third of the lease for its
    answer, and one that fails is repeated in time.
    """

    def __init__(
        self,
        source: Source,
        inbox: Inbox,
        settler: Settler,
        *,
        home: Home,
        waiting: WaitingRoom,
        left: Callable[[], object],
    ) -> None:
        """Start the task; at home.

        :param waiting: the room of the receives, which wait for messages.
        :param left: closes the receiver when :attr:`Inbox.is_left` is set.
        """
        self._source = source
        self._inbox = inbox
        self._settler = settler
        self._waiting = waiting
        self._left = left
        self._is_stopped = False
        self._now = asyncio.get_running_loop().time  # time.monotonic, unless a test simulates the clock
        self._task = home.spawn(self._run(), f"keeping leases of {source.subscription!r}")

    async def stop(self, within: float) -> None:
        """Keep no lease any more; at home.  It takes *within* seconds at most."""
        # A flag too, because a library may swallow the cancellation.
        self._is_stopped = True
        await end_worker(self._task, within)

    async def _run(self) -> None:
        lease = self._source.lease
        pause = min(self._inbox.ledger.max_lease / 8, 5.0 if lease is None else lease / 6)
        while not self._is_stopped:
            await asyncio.sleep(pause)
            # The receives of closed loops would stay in memory until the next message, and that may take long.
            self._waiting.drop_the_dead()
            self._give_back_overdue()
            if self._inbox.is_left:
                self._inbox.is_left = False  # once; leases are kept until the close stops this task
                self._left()
            if lease is not None:
                await self._renew(lease)

    def _give_back_overdue(self) -> None:
        inbox = self._inbox
        with inbox.lock:
            held = inbox.ledger.held
            now = self._now()
            inbox.give_back_overdue(now)
            inbox.settlements.enqueue(inbox.ledger.outstayed(now))
            has_expired = inbox.ledger.held < held
        if has_expired:
            # An expired message may come again from this ledger after a delay.  A waiting receive does not know of that
            # delay yet, and would sleep past it.
            self._waiting.wake()
        self._settler.pump()

    async def _renew(self, lease: float) -> None:
        ledger = self._inbox.ledger
        with self._inbox.lock:
            deliveries = ledger.renewals(self._now() + lease / 2)
            ledger.renewing = {delivery.message_id for delivery in deliveries}
        if not deliveries:
            return
        try:
            await self._extend(deliveries, lease)
        finally:
            # Without the lock: a plain store, and the garbage collector may be what ends this coroutine.
            ledger.renewing = ()
        self._settler.pump()  # what goes back has waited for this

    async def _extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        asked = self._now()
        tokens = [delivery.token for delivery in deliveries]
        try:
            # More than that is left of each lease, so a renewal that is not answered can be repeated.
            async with asyncio.timeout(lease / 3):
                lost = await self._source.extend(deliveries)
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            _log.debug("%s: leases not renewed, trying again: %r", self._source.subscription, error)
            return
        for delivery in deliveries:
            delivery.lease_until = asked + lease  # from the time of asking: the broker's count began later, if at all
        if lost:
            self._lose(lost, deliveries, tokens)

    def _lose(self, lost: Collection[Delivery], deliveries: Sequence[Delivery], tokens: Sequence[object]) -> None:
        """Drop what the broker has taken back.

        A message that came again during the request has a newer token by now.  The broker's answer is about the older
        one, so the message stays.
        """
        current = {each for each, token in zip(deliveries, tokens, strict=True) if each.has_token(token)}
        over = [delivery for delivery in lost if delivery in current]
        if not over:
            return
        _log.info("%s: the broker took back %d deliveries before their time", self._source.subscription, len(over))
        with self._inbox.lock:
            self._inbox.settlements.enqueue(self._inbox.ledger.lose(over))
        self._settler.pump()
        self._settler.progressed()
