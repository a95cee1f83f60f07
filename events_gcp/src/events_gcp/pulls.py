"""Pull requests, one after the other (``receive_mode=pull``)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from events_core.engine import BrokerError, Delivery
from events_gcp.inlet import DRAIN_TIMEOUT, Inlet
from events_gcp.pull_pace import PullPace

if TYPE_CHECKING:
    from events_gcp.api import Pulled

__all__ = ["Pulls"]

_MIN_INTERVAL = 0.05
"""Seconds between two pulls that bring nothing.  A server that answers without waiting must not cause a hot loop."""

_log = logging.getLogger("events_gcp")


class Pulls(Inlet):
    """One request for each batch.

    :param pull: waits for up to so many deliveries, for so many seconds.
    :param pace: the size and the deadline of each pull; all inlets of a receiver share it.
    :param subscription: its name, for the log.
    """

    def __init__(self, pull: Callable[[int, float], Awaitable[Pulled]], pace: PullPace, subscription: str) -> None:
        super().__init__()
        self._pull = pull
        self._pace = pace
        self._subscription = subscription

    async def _read(self, limit: int) -> Sequence[Delivery]:
        began = self._loop.time()
        timeout = self._pace.timeout(began)
        pulled = await self._pull(self._pace.limit(limit), timeout)
        if pulled.was_cut_off:
            self._pace.was_cut_off(self._loop.time())
            _log.warning(
                "%s: the answer to a pull did not arrive within %g s; its messages come again when their leases run "
                "out, and the next pull asks for one message and waits longer",
                self._subscription,
                timeout,
            )
        elif pulled.deliveries:
            self._pace.arrived(len(pulled.deliveries), pulled.seconds)
        else:
            await asyncio.sleep(began + _MIN_INTERVAL - self._loop.time())
        return pulled.deliveries

    async def finish(self, unread: list[Delivery]) -> None:
        if self._task is None:
            return
        try:
            await asyncio.wait([self._task], timeout=DRAIN_TIMEOUT)
            with suppress(BrokerError):
                unread += self.take()
        finally:
            if self._task is not None:  # no answer in time: its messages come again when their leases run out
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
