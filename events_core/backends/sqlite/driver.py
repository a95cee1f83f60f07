"""The SQLite backend on the engine: one connection for each client, used on the loop of the client's own thread."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar, TypeVar

import attrs

from events_core import ConfigurationError, ErrorCode, EventMessage
from events_core.backends.sqlite.forks import await_calls, forget_calls
from events_core.backends.sqlite.options import SQLiteOptions, capabilities_of
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.subscription import Subscription
from events_core.backends.sqlite.translation import Locked, Lost, translated
from events_core.backends.sqlite.watch import Watch
from events_core.engine import BrokerError, Delivery, Driver, Settlement, Source, uptime

__all__ = ["SQLiteDriver"]

T = TypeVar("T")
_log = logging.getLogger("events_core.sqlite")

LOCK_WAIT = 5.0
"""Seconds to wait for other connections' transactions, at most, before the engine is told."""
UPKEEP = 10.0
"""Most seconds between two rounds of upkeep, and between two looks whether there is something to receive."""
SWEEP_PAUSE = 0.005
"""Seconds between two steps of a sweep, about as long as a step takes: other processes write meanwhile."""


class SQLiteDriver(Driver[SQLiteOptions]):
    """A file and a topic in it."""

    blocking: ClassVar[bool] = True
    mixed_keys: ClassVar[bool] = True
    max_batch_bytes = 16 * 2**20

    def __init__(self, topic_name: str, project_id: str, options: SQLiteOptions) -> None:
        _check(options.path)
        super().__init__(topic_name, project_id, attrs.evolve(options, path=_absolute(options.path)))
        self.capabilities = capabilities_of(options)
        self.sources: set[SQLiteSource] = set()
        self.watch = Watch(self._version)
        self._calling = threading.RLock()  # see forks.py
        self._store: Store | None = None
        self._failed: Store | None = None
        self._known = False  # whether there has been something else than an empty file
        self._upkeep: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def store(self) -> Store:
        """The open file."""
        if self._store is None:
            raise BrokerError(f"the file {self.options.path!r} is not open", ErrorCode.CLOSED)
        return self._store

    async def open(self) -> None:
        await_calls(self._calling)
        with _saying_what_for():
            await self.run(lambda store: None)
        self._upkeep = [asyncio.create_task(self._repeat(work)) for work in (self._renew, self._sweep)]

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        results = await self.write(lambda store: store.publish(messages), self.options.send_timeout)
        # A turn for others of this loop, else they wait while there is something to send.  Not before: senders that
        # have just been told of the last batch would keep this thread from writing the next one.
        await asyncio.sleep(0)
        return results

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> SQLiteSource:
        joined = await self.run(lambda store: Subscription(store, subscription), self.options.connect_timeout)
        source = SQLiteSource(self, joined, wake)
        self.sources.add(source)
        return source

    async def has_subscription(self) -> bool:
        return await self.run(lambda store: store.is_heard())

    async def keep_dead_letters(self, subscription: str) -> bool:
        return await self.write(lambda store: store.keep_dead_letters(subscription), self.options.connect_timeout)

    async def delete_subscription(self, subscription: str) -> None:
        await self.write(lambda store: store.delete_subscription(subscription), self.options.connect_timeout)

    async def ping(self) -> None:
        with _saying_what_for():
            await self.run(lambda store: store.ping())

    async def close(self) -> None:
        self._closed = True
        self.watch.stop()
        for task in self._upkeep:
            task.cancel()
        try:
            self._let_go()
            if self._store is not None:
                with self._calling, translated(self.options.path, create=False):
                    self._store.close()
        finally:
            forget_calls(self._calling)

    async def write(self, work: Callable[[Store], T], timeout: float = math.inf) -> T:
        """Do *work*, one transaction, and wake this client's own receivers."""
        result = await self.run(work, timeout)
        self.watch.stir()
        with self._calling, suppress(sqlite3.Error):
            self.store.bound_log()
        return result

    async def run(self, work: Callable[[Store], T], timeout: float = math.inf) -> T:
        """Do *work*, again while another connection holds the lock; once done it does not suspend.

        :param timeout: of whoever waits for it; half of it is left to tell them of the lock.
        """
        give_up = time.monotonic() + min(LOCK_WAIT, timeout / 2)
        while True:
            try:
                with translated(self.options.path, create=self.options.create == "all"):
                    return self._do(work)
            except Lost as lost:
                self._drop(lost)
                raise
            except Locked:
                if time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(0)  # SQLite itself has slept meanwhile

    def _do(self, work: Callable[[Store], T]) -> T:
        with self._calling:
            store = self._current()
            result = work(store)
            store.place.check()  # else it may be in a file that nobody finds again
        return result

    def _current(self) -> Store:
        """The file that is at the path now, opened again where that was lost."""
        if self._closed:
            raise BrokerError(f"the file {self.options.path!r} has been closed", ErrorCode.CLOSED)
        try:
            if self._store is not None:
                self._store.place.check()
        except Lost as lost:
            _log.warning("%r: %s", self.topic_name, lost)
            self._drop(lost)
        return self._store or self._reopen()

    def _reopen(self) -> Store:
        if self._failed is not None and not self._failed.place.is_current:
            self._let_go()
        self._known = self._known and os.path.exists(self.options.path)  # a missing one may be made anew
        self._store = Store(self.project_id, self.topic_name, self.options, restored=self._known)
        self._known = True
        self._let_go()
        for source in self.sources:
            with suppress(BrokerError, sqlite3.Error):  # which its next use meets
                source.on(self._store)  # at once: what is sent from now on is received
        self.watch.restart()
        return self._store

    def _drop(self, lost: Lost) -> None:
        """Give up the connection; whatever comes next opens the file again.

        One that failed is kept until then: closing the last one of all would have SQLite recover the log, with what was
        written and could not be synced, and was not confirmed.
        """
        self._failed, self._store = self._store or self._failed, None
        if lost.has_changed:
            self._known = True
            for source in self.sources:
                source.forget()
        if lost.has_changed or lost.is_in_the_way:
            self._let_go()

    def _let_go(self) -> None:
        """Close a connection that failed."""
        store, self._failed = self._failed, None
        if store is not None:
            with self._calling, suppress(sqlite3.Error):
                store.close()

    def _version(self) -> int:
        """A number that changes with the file, negative while nobody knows."""
        with self._calling:
            store = self._store
            return store.version() if store is not None and store.place.is_current else -1

    async def _repeat(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        pause = min(UPKEEP, self.options.session_timeout / 4)
        while True:
            await asyncio.sleep(pause)
            try:
                await work()
            except BrokerError as error:
                _log.debug("%r: upkeep failed, trying again: %s", self.topic_name, error)
            except Exception:
                _log.exception("%r: upkeep failed, trying again", self.topic_name)

    async def _renew(self) -> None:
        """Keep the leases of this client's receivers, whatever becomes of one of them."""
        for source in tuple(self.sources):
            try:
                await source.renew()
            except BrokerError as error:
                _log.debug("%r: the session of %r was not renewed: %s", self.topic_name, source.subscription, error)

    async def _sweep(self) -> None:
        """Keep the file small."""
        more = True
        while more:
            more = await self.run(lambda store: store.sweep())
            await asyncio.sleep(SWEEP_PAUSE)


def _check(path: str) -> None:
    """Raise for a *path* that can be no file of SQLite's."""
    if path == ":memory:":
        raise ConfigurationError("the option 'path' must name a file; for ':memory:' there is the backend 'memory'")
    if "\0" in path:
        raise ConfigurationError(f"the option 'path' is {path!r}, and a file's name has no NUL; choose another")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"the option 'path' is {path!r}, which cannot be written in UTF-8; choose another"
        ) from None


def _absolute(path: str) -> str:
    """Return *path* made absolute, so that a change of directory before the first use leads to no other file."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"the option 'path' is {path!r}, and the working directory, where that would be, has been deleted; give an "
            "absolute path"
        ) from error


@contextmanager
def _saying_what_for() -> Iterator[None]:
    """Raise what was waited for when the wait is cancelled: so the engine ends a time that it alone knows."""
    try:
        yield
    except asyncio.CancelledError as cancelled:
        if isinstance(cancelled.__context__, Locked):
            raise cancelled.__context__ from cancelled.__context__.__cause__
        raise


class SQLiteSource(Source):
    """A session on a subscription."""

    prefetch = 200
    safe_until: float

    def __init__(self, driver: SQLiteDriver, subscription: Subscription, wake: Callable[[], None]) -> None:
        self.subscription = subscription.name
        self.capabilities = driver.capabilities
        self._driver = driver
        self._subscription = subscription
        self._session = subscription.session
        self._wake = wake
        self.safe_until = subscription.safe_until
        self._has_failed = False  # whether the last fetch did

    def on(self, store: Store) -> Subscription:
        """This session on *store*, joined again where the file was opened again."""
        current = self._subscription.on(store)
        if current is not self._subscription:
            self._subscription = current
            self._tell()
        return self._subscription

    def forget(self) -> None:
        """Take what is leased for lost."""
        self._subscription.forget()
        self._tell()

    def _take(self, store: Store, limit: int) -> list[Delivery]:
        deliveries = self.on(store).take(limit)
        self._tell()  # before they arrive: what has gone with an older session must not meet them
        return deliveries

    def _tell(self) -> None:
        """Tell the engine what has become of the session: it was renewed, or it lapsed and there is a new one."""
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
        while True:
            wait = await self._driver.run(lambda store: self.on(store).next_due()) - time.time()
            if wait > 0:
                if self._has_failed:  # tell the engine that the outage is over
                    self._has_failed = False
                    return ()
                await self._driver.watch.changed(min(wait, UPKEEP))
                continue
            deliveries = await self._driver.write(lambda store: self._take(store, limit))
            self._subscription.log_buried()
            if deliveries:
                return deliveries
            await asyncio.sleep(0)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        results = await self._driver.write(lambda store: self.on(store).settle(settlements))
        self._subscription.log_buried()
        return results

    async def withheld(self) -> Collection[str]:
        return await self._driver.run(lambda store: self.on(store).withheld())

    async def renew(self) -> None:
        """Keep what is leased."""
        await self._driver.run(lambda store: self.on(store).renew())
        self._tell()

    async def close(self) -> None:
        self._driver.sources.discard(self)
        await self._driver.write(lambda store: self.on(store).leave())
