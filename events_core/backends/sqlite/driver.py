"""The SQLite backend on the engine: one connection for each client, used on the loop of the client's own thread."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar, TypeVar

import attrs

from events_core import ErrorCode, EventMessage
from events_core.backends.sqlite.options import SQLiteOptions, capabilities_of
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.subscription import Subscription
from events_core.backends.sqlite.translation import is_locked, translated
from events_core.backends.sqlite.watch import Watch
from events_core.engine import BrokerError, Delivery, Driver, Settlement, Source

__all__ = ["SQLiteDriver"]

T = TypeVar("T")
_log = logging.getLogger("events_core.sqlite")

LOCK_WAIT = 5.0
"""Seconds to wait for other connections' transactions before the engine is told."""
UPKEEP = 10.0
"""Most seconds between two rounds of upkeep, and between two looks whether there is something to receive."""


class SQLiteDriver(Driver[SQLiteOptions]):
    """A file and a topic in it."""

    blocking: ClassVar[bool] = True
    mixed_keys: ClassVar[bool] = True
    max_batch_bytes = 16 * 2**20

    def __init__(self, topic_name: str, project_id: str, options: SQLiteOptions) -> None:
        # Absolute, so that a change of directory before the first use leads to no other file.
        super().__init__(topic_name, project_id, attrs.evolve(options, path=os.path.abspath(options.path)))
        self.capabilities = capabilities_of(options)
        self.sources: set[SQLiteSource] = set()
        self._store: Store | None = None
        self._upkeep: asyncio.Task[None] | None = None

    @property
    def store(self) -> Store:
        """The open file."""
        if self._store is None:
            raise BrokerError(f"the file {self.options.path!r} is not open", ErrorCode.CLOSED)
        return self._store

    async def open(self) -> None:
        self._store = await self.run(lambda: Store(self.project_id, self.topic_name, self.options))
        self.watch = Watch(self._store.version)
        self._upkeep = asyncio.create_task(self._keep_up())

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        return await self.write(lambda: self.store.publish(messages))

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> SQLiteSource:
        source = SQLiteSource(self, await self.run(lambda: Subscription(self.store, subscription)))
        self.sources.add(source)
        return source

    async def delete_subscription(self, subscription: str) -> None:
        await self.write(lambda: self.store.delete_subscription(subscription))

    async def ping(self) -> None:
        await self.run(lambda: self.store.ping())

    async def close(self) -> None:
        if self._store is None:
            return
        self.watch.stop()
        if self._upkeep is not None:
            self._upkeep.cancel()
        with translated(self.options.path):
            self._store.close()

    async def write(self, work: Callable[[], T]) -> T:
        """Do *work*, one transaction, and wake this client's own receivers."""
        result = await self.run(work)
        self.watch.stir()
        return result

    async def run(self, work: Callable[[], T]) -> T:
        """Do *work*, again while another connection holds the lock; once done it does not suspend."""
        give_up = time.monotonic() + LOCK_WAIT
        while True:
            with translated(self.options.path):
                try:
                    return work()
                except sqlite3.OperationalError as error:
                    if not is_locked(error) or time.monotonic() >= give_up:
                        raise
            await asyncio.sleep(0)  # SQLite itself has slept meanwhile

    async def _keep_up(self) -> None:
        """Keep the leases of this client's receivers, and the file small."""
        pause = min(UPKEEP, self.options.session_timeout / 4)
        while True:
            await asyncio.sleep(pause)
            for work in (*(source.renew for source in self.sources), self._sweep):
                try:
                    await work()
                except BrokerError as error:
                    _log.debug("%r: upkeep failed, trying again: %s", self.topic_name, error)
                except Exception:
                    _log.exception("%r: upkeep failed, trying again", self.topic_name)

    async def _sweep(self) -> None:
        more = True
        while more:
            more = await self.run(self.store.sweep)
            await asyncio.sleep(0)  # let others in


class SQLiteSource(Source):
    """A session on a subscription."""

    prefetch = 200

    def __init__(self, driver: SQLiteDriver, subscription: Subscription) -> None:
        self.subscription = subscription.name
        self.capabilities = driver.capabilities
        self._driver = driver
        self._subscription = subscription

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while True:
            wait = await self._driver.run(self._subscription.next_due) - time.time()
            if wait > 0:
                await self._driver.watch.changed(min(wait, UPKEEP))
                continue
            deliveries = await self._driver.write(lambda: self._subscription.take(limit))
            if deliveries:
                return deliveries
            await asyncio.sleep(0)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        return await self._driver.write(lambda: self._subscription.settle(settlements))

    async def withheld(self) -> Collection[str]:
        return await self._driver.run(self._subscription.withheld)

    async def renew(self) -> None:
        """Keep what is leased."""
        await self._driver.run(self._subscription.renew)

    async def close(self) -> None:
        self._driver.sources.discard(self)
        await self._driver.write(self._subscription.leave)
