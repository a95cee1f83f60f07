"""The client's side: publishes, creates and deletes, and keeps the file in order while the client is connected."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import ClassVar, TypeVar

import attrs

from events_core import ConfigurationError, EventMessage
from events_core.backends.sqlite.connection import FileConnection
from events_core.backends.sqlite.options import SQLiteOptions, capabilities_of
from events_core.backends.sqlite.source import SQLiteSource
from events_core.backends.sqlite.subscription import Subscription
from events_core.engine import BrokerError, Delivery, Driver

__all__ = ["SQLiteDriver"]

T = TypeVar("T")
_log = logging.getLogger("events_core.sqlite")

UPKEEP = 10.0
"""Seconds between two rounds of upkeep, at most."""
SWEEP_PAUSE = 0.005
"""Seconds between two steps of a sweep: about as long as a step takes, so that other processes can write."""


class SQLiteDriver(Driver[SQLiteOptions]):
    """A driver of one topic in a file."""

    blocking: ClassVar[bool] = True
    mixed_keys: ClassVar[bool] = True
    max_batch_bytes = 16 * 2**20

    def __init__(self, topic_name: str, project_id: str, options: SQLiteOptions) -> None:
        _check(options.path)
        super().__init__(topic_name, project_id, attrs.evolve(options, path=_absolute(options.path)))
        self.capabilities = capabilities_of(options)
        self.file = FileConnection(project_id, topic_name, self.options)
        self._upkeep: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await self.file.open()
        self._upkeep = [asyncio.create_task(self._repeat(work)) for work in (self._renew, self._sweep)]

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        results = await self.file.write(lambda store: store.publish(messages), self.options.send_timeout)
        # Give the other tasks of this loop a turn, since nothing above suspends while there is something to send.
        # After the write, not before it: if the senders of the last batch woke first, they would keep this thread from
        # writing the next one.
        await asyncio.sleep(0)
        return results

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> SQLiteSource:
        joined = await self.file.run(lambda store: Subscription(store, subscription), self.options.connect_timeout)
        return SQLiteSource(self.file, self.capabilities, joined, wake)

    async def has_subscription(self) -> bool:
        return await self.file.run(lambda store: store.is_heard())

    async def keep_dead_letters(self, subscription: str) -> bool:
        return await self.file.write(lambda store: store.keep_dead_letters(subscription), self.options.connect_timeout)

    async def delete_subscription(self, subscription: str) -> None:
        await self.file.write(lambda store: store.delete_subscription(subscription), self.options.connect_timeout)

    async def ping(self) -> None:
        await self.file.run(lambda store: store.ping(), tells_lock=True)

    async def run_native(self, work: Callable[[sqlite3.Connection], Awaitable[T]]) -> T:
        return await self.file.run_native(work)

    def native_message(self, delivery: Delivery) -> int:
        return int(delivery.message_id)

    async def close(self) -> None:
        for task in self._upkeep:
            task.cancel()
        self.file.close()

    async def _repeat(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        # Four times within a session timeout, so that a session survives three failures in a row.
        pause = min(UPKEEP, self.options.session_timeout / 4)
        while True:
            await asyncio.sleep(pause)
            try:
                await work()
            except BrokerError as error:
                # Only for debugging: if the outage matters, a send or a receive meets it and reports it.
                _log.debug("%r: upkeep failed, trying again: %s", self.topic_name, error)
            except Exception:
                _log.exception("%r: upkeep failed, trying again", self.topic_name)

    async def _renew(self) -> None:
        """Renew the session of each receiver, even if that fails for one of them."""
        for receiver in tuple(self.file.receivers):
            try:
                await receiver.renew()
            except BrokerError as error:
                _log.debug("%r: the session of %r was not renewed: %s", self.topic_name, receiver.subscription, error)

    async def _sweep(self) -> None:
        """Delete what is no longer needed, step by step."""
        more = True
        while more:
            more = await self.file.run(lambda store: store.sweep())
            await asyncio.sleep(SWEEP_PAUSE)


def _check(path: str) -> None:
    """Raise for a *path* that SQLite cannot use for a file."""
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
    """Return *path* as an absolute path, so that a later change of directory does not lead to another file."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"the option 'path' is {path!r}, relative to the working directory, which has been deleted; give an "
            "absolute path"
        ) from error
