"""Sending through an inline driver: each message is stored at once, in the caller's thread.

Such a driver has nothing to gather, retry or wait for.  Only a large send takes time: it is stored in parts, and gives
way to other tasks between them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from events_core.engine.driver import BrokerError, Driver
from events_core.engine.home import Home, step
from events_core.engine.publisher import Connect, Publisher, Results, parts, unconfirmed
from events_core.engine.sends import not_attempted
from events_core.message import EventMessage

__all__ = ["InlinePublisher"]


class InlinePublisher(Publisher):
    """The sending side of a client whose driver is inline."""

    def __init__(self, driver: Driver[Any], home: Home) -> None:
        super().__init__(driver, home)
        # One object for each large send that has begun.  It is discarded without the lock, which is atomic.
        self._storing: set[object] = set()
        self._is_flushed = False

    async def _send(self, messages: Sequence[EventMessage], connect: Connect) -> Results:
        sizes = [self._check.size(index, message) for index, message in enumerate(messages)]
        if not self._opened and (unreached := await self._unreached(connect)) is not None:
            return [unreached] * len(messages)
        if self.closed or self._bounds.refuses:
            self._refuse(sizes)
        return self._store(messages)

    async def _send_gently(self, messages: Sequence[EventMessage], connect: Connect) -> Results:
        # The turn lasts until all is stored, because the place of a message is where it is stored.
        async with self.order.turn():
            sizes = await self._sizes(messages)
            if not self._opened and (unreached := await self._unreached(connect)) is not None:
                return [unreached] * len(messages)
            loop, storing = asyncio.get_running_loop(), object()
            with self._lock:
                self._refuse(sizes)
                self._storing.add(storing)
            try:
                return await self._store_gently(messages)
            finally:
                self._storing.discard(storing)
                # If the loop is closed, this is the garbage collector, which must not take the lock.
                if not loop.is_closed():
                    with self._lock:
                        self._wake_drained()

    async def _unreached(self, connect: Connect) -> BrokerError | None:
        """Connect; return the failure if that failed."""
        try:
            await connect(time.monotonic() + self._send_timeout)
        except BrokerError as error:
            return error
        return None

    def _refuse(self, sizes: Sequence[int]) -> None:
        self._refuse_if_closed()
        if self._bounds.refuses:
            self._bounds.check(len(sizes), sum(sizes))

    def _store(self, messages: Sequence[EventMessage]) -> Results:
        try:
            results = step(self._driver.publish(messages))
        except BrokerError as error:
            return [error] * len(messages)
        self._look_once()
        return results

    async def _store_gently(self, messages: Sequence[EventMessage]) -> Results:
        results: list[str | BrokerError] = []
        failed_keys: set[str] = set()
        for part in parts(messages):
            if self._is_flushed:
                results += [unconfirmed()] * len(part)
            elif failed_keys:
                results += [self._store_unless_hindered(message, failed_keys) for message in part]
            else:
                stored = self._store(part)
                results += stored
                failed_keys.update(_failed_keys(part, stored))
            await asyncio.sleep(0)
        return results

    def _store_unless_hindered(self, message: EventMessage, failed_keys: set[str]) -> str | BrokerError:
        """Store one message, unless an earlier one of its key has failed (P3)."""
        key = message.ordering_key
        if key in failed_keys:
            return not_attempted(key)
        stored = self._store([message])
        failed_keys.update(_failed_keys([message], stored))
        return stored[0]

    @property
    def is_busy(self) -> bool:
        return bool(self._storing)

    def _end_all(self) -> None:
        self._is_flushed = True


def _failed_keys(messages: Iterable[EventMessage], results: Iterable[str | BrokerError]) -> Iterator[str]:
    for message, result in zip(messages, results, strict=True):
        if isinstance(result, BrokerError) and message.ordering_key is not None:
            yield message.ordering_key
