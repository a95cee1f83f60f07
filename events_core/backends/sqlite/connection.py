"""The client's connection to its file: opens it, opens it again when it is lost, and waits for locks.

Who calls whom: the driver and its sources pass a function to :meth:`FileConnection.run` or
:meth:`FileConnection.write`.  These call it with an open :class:`~events_core.backends.sqlite.store.Store`, and the
function does one transaction there.  Everything here runs on the loop of the client's own thread.  Therefore no
transaction of this client meets another one, and the fields below need no lock.

There is one lock all the same, ``_calling``.  It is held during each call of SQLite, and a fork in another thread waits
for it (``forks.py``).

A connection is in one of three states:

* open: ``_store`` is set;
* failed: ``_failed`` is set.  SQLite still has the file open, but nothing is done there any more;
* closed: neither is set.

The next :meth:`FileConnection.run` after a failure opens the file again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from events_core import ErrorCode
from events_core.backends.sqlite.errors import Locked, Lost, translated
from events_core.backends.sqlite.forks import await_calls, forget_calls
from events_core.backends.sqlite.opening import open_file
from events_core.backends.sqlite.options import SQLiteOptions
from events_core.backends.sqlite.place import Place
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.watch import Watch
from events_core.engine import BrokerError

__all__ = ["FileConnection", "Receiver"]

T = TypeVar("T")
_log = logging.getLogger("events_core.sqlite")

LOCK_WAIT = 5.0
"""Seconds for which an operation waits for the locks of other connections, at most."""


class Receiver(Protocol):
    """A receiver of this client, whose session is in the open file."""

    subscription: str

    def on(self, store: Store) -> object:
        """Go on with *store*: the file was opened again."""

    def forget(self) -> None:
        """Give up everything that was leased: the next file may be another one, or an older copy."""

    async def renew(self) -> None:
        """Renew the session."""


class _Steps(Generic[T]):
    """Work that holds *lock* while it runs, and not while it waits: a fork must not wait for what takes long."""

    def __init__(self, work: Awaitable[T], lock: threading.RLock) -> None:
        self._work = work.__await__()
        self._lock = lock

    def __await__(self) -> Generator[Any, Any, T]:
        work = self._work
        step: Callable[[], Any] = partial(work.send, None)
        while True:
            with self._lock:
                try:
                    awaited = step()
                except StopIteration as end:
                    result: T = end.value
                    return result
            try:
                step = partial(work.send, (yield awaited))
            except GeneratorExit:  # perhaps of the garbage collector, in a thread that may not wait for a lock
                raise
            except BaseException as error:
                step = partial(work.throw, error)


class FileConnection:
    """A connection to the file at ``options.path`` that outlives failures of the file."""

    def __init__(self, project_id: str, topic_name: str, options: SQLiteOptions) -> None:
        self.receivers: set[Receiver] = set()
        self.watch = Watch(self._version)
        self._project_id = project_id
        self._topic_name = topic_name
        self._options = options
        self._calling = threading.RLock()
        self._store: Store | None = None
        self._failed: Store | None = None
        self._had_content = False  # then an empty file at the path is about to be restored
        self._is_closed = False

    @property
    def store(self) -> Store:
        """The open file.

        :raises BrokerError: ``CLOSED`` while it is not open.
        """
        if self._store is None:
            raise BrokerError(f"the file {self._options.path!r} is not open", ErrorCode.CLOSED)
        return self._store

    async def open(self) -> None:
        """Open the file; when this call is cancelled while the file is locked, raise the lock's error."""
        await_calls(self._calling)
        await self.run(lambda store: None, tells_lock=True)

    def close(self) -> None:
        """Close the file, and refuse all later operations.

        :raises BrokerError: when SQLite fails to close it.
        """
        self._is_closed = True
        self.watch.stop()
        try:
            self._close_failed()
            if self._store is not None:
                with self._calling, translated(self._options.path, create=False):
                    self._store.close()
        finally:
            forget_calls(self._calling)

    async def write(self, work: Callable[[Store], T], timeout: float = math.inf) -> T:
        """Do *work* as :meth:`run` does, then wake the receivers of this client."""
        result = await self.run(work, timeout)
        self.watch.stir()
        with self._calling, suppress(sqlite3.Error):
            self.store.bound_log()
        return result

    async def run(self, work: Callable[[Store], T], timeout: float = math.inf, *, tells_lock: bool = False) -> T:
        """Do *work*, one transaction; try again while another connection holds the lock.

        After the transaction is committed this method does not suspend, so a cancellation cannot hide that it was.

        :param timeout: the caller's own time in seconds.  At most half of it is spent here, so that the caller still
            learns of the lock.
        :param tells_lock: when the call is cancelled because of a lock, raise the error of the lock instead.  For
            callers whose time only the engine knows; the engine then reports what the call has waited for.
        :raises BrokerError: when SQLite failed, or the lock was held too long.
        """
        give_up = time.monotonic() + min(LOCK_WAIT, timeout / 2)
        while True:
            try:
                with translated(self._options.path, create=self._options.create == "all"):
                    return self._do(work)
            except Lost as lost:
                self._drop(lost)
                raise
            except Locked as locked:
                if time.monotonic() >= give_up:
                    raise
                in_the_way = locked
            try:
                await asyncio.sleep(0)  # no longer: SQLite has just slept in its own wait for the lock
            except asyncio.CancelledError:
                if tells_lock:
                    raise in_the_way from in_the_way.__cause__
                raise

    async def run_native(self, work: Callable[[sqlite3.Connection], Awaitable[T]]) -> T:
        """Await *work* with a connection of its own to the file, which is closed afterwards.

        So *work* has its own transactions, and meets this client's as those of another process: by the locks on the
        file.

        :raises BrokerError: when the file cannot be opened.
        """
        # So that this client has the file and the log open that are at the path now.  SQLite shares one index among the
        # connections of a process: the new connection would get the index of a log that is gone.
        await self.run(lambda store: None)
        place, connection = self._open_native()
        try:
            result = await _Steps(work(connection), self._calling)
        except GeneratorExit:  # perhaps of the garbage collector, in a thread that may not wait for a lock
            raise
        except BaseException:
            self._close_native(place, connection)
            raise
        self._close_native(place, connection)
        return result

    def _open_native(self) -> tuple[Place, sqlite3.Connection]:
        # With a place of its own.  If the log is removed during the work, this client must not open the file again
        # before: it would get the old index.
        place = Place(self._options.path)
        try:
            with self._calling, translated(self._options.path, create=False):
                connection = open_file(self._options.path, create=False, durability=self._options.durability)
                try:
                    place.opened()
                except BaseException:
                    connection.close()
                    raise
        except BaseException:
            place.closed()
            raise
        return place, connection

    def _close_native(self, place: Place, connection: sqlite3.Connection) -> None:
        with self._calling, suppress(sqlite3.Error):  # for example, the work has closed it
            place.close(connection)
        place.closed()

    def _do(self, work: Callable[[Store], T]) -> T:
        with self._calling:
            store = self._current()
            result = work(store)
            # If the file has just lost its name, the transaction is in a file that no process will open again.
            # Raising here keeps it from being confirmed.
            store.place.check()
        return result

    def _current(self) -> Store:
        """Return the file that is at the path now; open it again if it was lost."""
        if self._is_closed:
            raise BrokerError(f"the file {self._options.path!r} has been closed", ErrorCode.CLOSED)
        try:
            if self._store is not None:
                self._store.place.check()
        except Lost as lost:
            _log.warning("%r: %s", self._topic_name, lost)
            self._drop(lost)
        return self._store or self._reopen()

    def _reopen(self) -> Store:
        if self._failed is not None and not self._failed.place.is_current:
            self._close_failed()
        # If the file is gone altogether, the client may create a new one.
        self._had_content = self._had_content and os.path.exists(self._options.path)
        self._store = Store(self._project_id, self._topic_name, self._options, restored=self._had_content)
        self._had_content = True
        self._close_failed()
        # They join again at once, so that they receive everything that is sent from now on.  If one of them fails,
        # its own next call meets the same error and reports it.
        for receiver in self.receivers:
            with suppress(BrokerError, sqlite3.Error):
                receiver.on(self._store)
        self.watch.restart()
        return self._store

    def _drop(self, lost: Lost) -> None:
        """Use this connection no more; the next operation opens the file again."""
        # The failed connection usually stays open until the next one is.  If it is the last one of all processes,
        # closing it makes SQLite recover the log.  The log may then bring back a transaction that could not be synced
        # and was reported as failed.
        self._failed, self._store = self._store or self._failed, None
        if lost.has_changed:
            self._had_content = True
            for receiver in self.receivers:
                receiver.forget()
        if lost.has_changed or lost.is_in_the_way:
            self._close_failed()

    def _close_failed(self) -> None:
        store, self._failed = self._failed, None
        if store is not None:
            with self._calling, suppress(sqlite3.Error):
                store.close()

    def _version(self) -> int:
        """Return a number that changes with the file; negative while there is no usable file."""
        with self._calling:
            store = self._store
            return store.version() if store is not None and store.place.is_current else -1
