"""Noticing that the file has changed: at once after this client's own writes, by polling for those of others."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable

__all__ = ["Watch"]

# SQLite does not report changes by other processes, so a waiting receiver has to look.  Half of the pause between two
# looks delays a message from another process, on average.  A look costs about 0.2 ms of CPU, nearly all for waking up.
IDLE_POLL = 0.025
"""Seconds between two looks."""
BUSY_POLL = 0.008
"""Seconds between two looks while the client is busy."""
BUSY = 1.0
"""Seconds for which a client counts as busy after it has changed the file.  Changes by others do not count, because the
upkeep of idle clients changes the file too."""


class Watch:
    """A wake-up call for receivers that wait for a change of the file.  Use it on one event loop.

    :param version: returns a number that changes with the file; it must be cheap.
    """

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self._seen = -1
        self._waiters: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._busy_until = 0.0

    async def changed(self, timeout: float) -> None:
        """Wait until the file has changed since the last look, at most *timeout* seconds.

        It may also return although nothing has changed.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        self._arm()
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    def stir(self) -> None:
        """Wake all waiters: this client has changed the file."""
        self._busy_until = asyncio.get_running_loop().time() + BUSY
        self._wake()

    def restart(self) -> None:
        """Wake all waiters, and forget the last version: the file was opened again."""
        # Versions are those of one connection.  The first one of a new connection may equal the last one of the old.
        self._seen = -1
        self.stir()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is None and self._waiters:
            loop = asyncio.get_running_loop()
            pause = BUSY_POLL if loop.time() < self._busy_until else IDLE_POLL
            self._timer = loop.call_later(pause, self._look)

    def _look(self) -> None:
        self._timer = None
        try:
            version = self._version()
        except sqlite3.Error:
            version = -1  # the waiters wake up, meet the same error and report it
        if version < 0 or version != self._seen:
            self._seen = version
            self._wake()
        self._arm()
