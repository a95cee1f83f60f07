"""A way by which deliveries come in: a stream, or one pull after the other."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery

__all__ = ["DRAIN_TIMEOUT", "Inlet", "Pulls"]

DRAIN_TIMEOUT = 1.0
"""Seconds that the end of an inlet waits for what is on its way: half of what closing has for that and giving back."""


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

    :param pull: waits for up to so many deliveries, for some seconds.
    """

    def __init__(self, pull: Callable[[int], Awaitable[Sequence[Delivery]]]) -> None:
        super().__init__()
        self._pull = pull

    async def _read(self, limit: int) -> Sequence[Delivery]:
        return await self._pull(limit)

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
