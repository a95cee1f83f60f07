"""A way by which deliveries come in: a stream, or one pull after the other."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery
from events_gcp.pace import Pace

if TYPE_CHECKING:
    from events_gcp.api import Pulled

__all__ = ["DRAIN_TIMEOUT", "Inlet", "Pulls"]

DRAIN_TIMEOUT = 1.0
"""Seconds that the end of an inlet waits for what is on its way: half of what closing has for that and giving back."""

_LEAST_WAIT = 0.05
"""Seconds between two pulls that bring nothing, where the server does not wait for messages."""

_log = logging.getLogger("events_gcp")


class Inlet(ABC):
    """Reads one response after the other.

    What reads is never cancelled: Pub/Sub would go on answering, and what it answers would be lost until its lease is
    over.  So a read goes on when nobody waits for it, and the next one to come takes what it has found.
    """

    properties: Any = None
    """What Pub/Sub has told of the subscription, once it has."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Sequence[Delivery]] | None = None
        self._loop = asyncio.get_running_loop()
        self.began = self._loop.time()

    def reading(self, limit: int) -> asyncio.Task[Sequence[Delivery]]:
        """The read that is under way, begun if there is none; up to *limit* deliveries, where that can be said."""
        if self._task is None:
            self._task = self._loop.create_task(self._read(limit))
        return self._task

    def take(self) -> Sequence[Delivery]:
        """What the read has found that is done, if one is.

        :raises BrokerError: when it failed.
        """
        task = self._task
        if task is None or not task.done():
            return ()
        self._task = None
        if task.cancelled():
            raise BrokerError("the stream gave no sign of life", ErrorCode.UNAVAILABLE, retryable=True)
        return task.result()

    @abstractmethod
    async def _read(self, limit: int) -> Sequence[Delivery]:
        """Wait for one response."""

    @abstractmethod
    async def finish(self) -> Sequence[Delivery]:
        """End it; what had arrived and was not taken."""


class Pulls(Inlet):
    """One request for each batch.

    :param pull: waits for up to so many deliveries, for so many seconds.
    :param pace: says how many, and how long.
    :param asked: what this is for, for logs.
    """

    def __init__(self, pull: Callable[[int, float], Awaitable[Pulled]], pace: Pace, asked: str) -> None:
        super().__init__()
        self._pull = pull
        self._pace = pace
        self._asked = asked

    async def _read(self, limit: int) -> Sequence[Delivery]:
        began = self._loop.time()
        timeout = self._pace.timeout(began)
        pulled = await self._pull(self._pace.limit(limit), timeout)
        if pulled.was_cut_off:
            self._pace.was_cut_off(self._loop.time())
            _log.warning(
                "%s: an answer was not here after %g s and is given up; its messages come again when their leases are "
                "over, and the next pull asks for one message and waits longer",
                self._asked,
                timeout,
            )
        elif pulled.deliveries:
            self._pace.arrived(len(pulled.deliveries), pulled.seconds)
        else:
            await asyncio.sleep(began + _LEAST_WAIT - self._loop.time())
        return pulled.deliveries

    async def finish(self) -> Sequence[Delivery]:
        if self._task is None:
            return ()
        await asyncio.wait([self._task], timeout=DRAIN_TIMEOUT)
        try:
            return self.take()
        except BrokerError:
            return ()
        finally:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
