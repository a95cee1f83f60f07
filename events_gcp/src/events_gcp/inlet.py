"""One way in for deliveries: the base class of :class:`~events_gcp.stream.Stream` and :class:`~events_gcp.pulls.Pulls`.

A read is a task that is never cancelled while the inlet is open.  Pub/Sub would still answer a cancelled read, and the
messages in that answer would be lost until their leases run out.  So a read continues when no caller waits for it, and
a later call of :meth:`Inlet.take` returns its result.  :attr:`Inlet.unread_since` tells how old that result is.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery

__all__ = ["DRAIN_TIMEOUT", "Inlet"]

DRAIN_TIMEOUT = 0.6
"""Seconds that closing an inlet waits for deliveries on their way.  The shortest close of a receiver has 1 s for this
and for giving back, which comes after it."""


class Inlet(ABC):
    """A sequence of responses, read one after the other; used on the engine's I/O loop only."""

    properties: Any = None
    """What Pub/Sub has told about the subscription (``StreamingPullResponse.SubscriptionProperties``), if anything."""

    unread_since: float = math.inf
    """The time at which the read ended whose result was not taken yet."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Sequence[Delivery]] | None = None
        self._is_awaited = False
        """Whether a caller waits for the current read."""
        self._loop = asyncio.get_running_loop()

    def reading(self, limit: int) -> asyncio.Task[Sequence[Delivery]]:
        """Return the current read, and start one if there is none.

        :param limit: deliveries to ask for, where a read can say so.
        """
        self._is_awaited = True
        return self._begin(limit)

    def _begin(self, limit: int) -> asyncio.Task[Sequence[Delivery]]:
        if self._task is None:
            self._task = self._loop.create_task(self._timed_read(limit))
        return self._task

    async def _timed_read(self, limit: int) -> Sequence[Delivery]:
        try:
            return await self._read(limit)
        finally:
            self.unread_since = self._loop.time()

    def take(self) -> Sequence[Delivery]:
        """Return the result of the read if it is done, otherwise nothing.

        :raises BrokerError: if the read failed.
        """
        self._is_awaited = False
        task = self._task
        if task is None or not task.done():
            return ()
        # First, so that the next read can begin even if this one failed.
        self._task = None
        self.unread_since = math.inf
        if task.cancelled():  # gRPC cancels the reads of a stream that Stream has given up
            raise BrokerError("the stream gave no sign of life", ErrorCode.UNAVAILABLE, retryable=True)
        return task.result()

    @abstractmethod
    async def _read(self, limit: int) -> Sequence[Delivery]:
        """Wait for one response."""

    @abstractmethod
    async def finish(self, unread: list[Delivery]) -> None:
        """Close the inlet, and add the deliveries that had arrived and were not taken to *unread*.

        If it is cancelled, *unread* has what came until then.
        """
