"""The receiver's side: waits for messages in the file, and tells the engine what becomes of the session.

The SQL is in :mod:`~events_core.backends.sqlite.subscription`.  Everything here runs on the loop of the client's
thread; so :attr:`SQLiteSource.safe_until`, which the engine reads in other threads, is written by one thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

from events_core import Capabilities
from events_core.backends.sqlite.connection import FileConnection
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.subscription import Subscription
from events_core.engine import BrokerError, Delivery, Outcome, Settlement, Source, uptime

__all__ = ["LONGEST_WAIT", "SQLiteSource"]

LONGEST_WAIT = 10.0
"""Seconds after which a waiting source looks into the file, although nothing has changed there."""


class SQLiteSource(Source):
    """A session on a subscription, as the engine sees it."""

    prefetch = 200
    safe_until: float

    def __init__(
        self, file: FileConnection, capabilities: Capabilities, subscription: Subscription, wake: Callable[[], None]
    ) -> None:
        self.subscription = subscription.name
        self.capabilities = capabilities
        self.safe_until = subscription.safe_until
        self._file = file
        self._subscription = subscription
        self._session = subscription.session
        self._wake = wake
        self._has_failed = False  # whether the last fetch did
        self._untold: Sequence[Delivery] = ()
        """Messages that are leased and not with the engine: the log was removed before the lease was confirmed."""
        file.receivers.add(self)

    def on(self, store: Store) -> Subscription:
        """Return this session on *store*; join again if the file was opened again."""
        current = self._subscription.on(store)
        if current is not self._subscription:
            self._subscription = current
            self._tell()
        return self._subscription

    def forget(self) -> None:
        """Give up everything that is leased."""
        self._subscription.forget()
        self._tell()

    def _take(self, store: Store, limit: int) -> list[Delivery]:
        self._untold = deliveries = self.on(store).take(limit)
        # Before the engine gets them: otherwise the loss of an older session would hit these deliveries too.
        self._tell()
        return deliveries

    def _tell(self) -> None:
        """Tell the engine that the session was renewed, or that it lapsed and a new one began."""
        session, was_unsafe = self._subscription.session, uptime() >= self.safe_until
        if session != self._session:
            self._session = session
            self.lost(lambda delivery: delivery.token != session)
        self.safe_until = self._subscription.safe_until
        if was_unsafe:
            self._wake()

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        try:
            return await self._fetch(limit)
        except BrokerError:
            self._has_failed = True
            raise

    async def _fetch(self, limit: int) -> Sequence[Delivery]:
        if self._untold:
            # Those whose lease did not reach the file, or is over, are left alone.
            await self.settle([Settlement(delivery, Outcome.RETURN) for delivery in self._untold])
            self._untold = ()
        while True:
            wait = await self._file.run(lambda store: self.on(store).next_due()) - time.time()
            if wait > 0:
                if self._has_failed:
                    # Returning nothing tells the engine that the outage is over.
                    self._has_failed = False
                    return ()
                await self._file.watch.changed(min(wait, LONGEST_WAIT))
                continue
            deliveries = await self._file.write(lambda store: self._take(store, limit))
            self._untold = ()
            self._subscription.letters.write()
            if deliveries:
                return deliveries
            await asyncio.sleep(0)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        results = await self._file.write(lambda store: self.on(store).settle(settlements))
        self._subscription.letters.write()
        return results

    async def withheld(self) -> Collection[str]:
        return await self._file.run(lambda store: self.on(store).withheld())

    async def renew(self) -> None:
        """Keep everything that is leased."""
        await self._file.run(self._renew)
        self._tell()

    def _renew(self, store: Store) -> None:
        # The receiver may have closed while this waited for a lock.  Then renewing would let it join again.
        if self in self._file.receivers:
            self.on(store).renew()

    async def close(self) -> None:
        self._file.receivers.discard(self)
        await self._file.write(lambda store: self.on(store).leave())
