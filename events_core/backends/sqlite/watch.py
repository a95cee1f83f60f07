"""Learning that the file has changed: at once where this client changed it, by looking often where others did."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable

__all__ = ["Watch"]

IDLE_POLL = 0.025
"""Seconds between two looks.  Half of it delays a message from another process; each look costs about 0.2 ms of CPU,
nearly all of it for waking up."""
BUSY_POLL = 0.008
"""The same, while this client has worked within :data:`BUSY`: others' upkeep alone makes nobody busy."""
BUSY = 1.0


class Watch:
    """Wakes those who wait for a change.  On one event loop.

    :param version: a number that changes with the file; looking at it must be cheap.
    """

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self._seen = -1
        self._waiters: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._busy_until = 0.0

    async def changed(self, timeout: float) -> None:
        """Return when the file has changed since the last look, or after *timeout* seconds; may return for nothing."""
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
        """This client has changed the file."""
        self._busy_until = asyncio.get_running_loop().time() + BUSY
        self._wake()

    def restart(self) -> None:
        """The versions are those of another connection from now on: one may equal the last of the old one by chance."""
        self._seen = -1
        self.stir()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self) -> None:
        """Look no more."""
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
            version = -1  # whoever waits meets the error, and raises it
        if version < 0 or version != self._seen:
            self._seen = version
            self._wake()
        self._arm()
