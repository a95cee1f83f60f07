"""One StreamingPull.

Closing a stream means to close our half and to read to the end.  The emulator keeps a cancelled stream alive, and
delivers into it until the lease of each message runs out.

A connection may die without a sign.  So the stream sends a ping now and then, and ends itself if nothing comes after a
ping.  It does so only if the server has answered a ping before, which the emulator never does.

A stream reads one response ahead.  The age of what comes while the receiver is full is then known.

Two tasks use the call: the read of :class:`~events_gcp.inlet.Inlet`, and ``_talking``, which alone writes to it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc.aio  # type: ignore[import-untyped]

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery
from events_gcp.codec import decode
from events_gcp.errors import readable, translated
from events_gcp.inlet import DRAIN_TIMEOUT, Inlet

if TYPE_CHECKING:
    from events_gcp.channels import Channel

__all__ = ["Stream"]

PING_INTERVAL = 30.0
"""Seconds between two pings, as in Google's clients for Go and Java."""
PONG_TIMEOUT = 15.0
"""Seconds after a ping within which a server that answers pings must have sent something."""


class Stream(Inlet):
    """A stream of responses."""

    def __init__(self, channel: Channel, call: Any, first: Any, asked: str) -> None:
        """Send the *first* request.

        :param channel: the channel of *call*.
        :param asked: the request in words, for errors.
        """
        super().__init__()
        channel.streams += 1
        self._channel = channel
        self._call = call
        self._asked = asked
        self._ending = asyncio.Event()
        self._answers_pings = False
        self._reading_since = math.inf
        self._heard = self._loop.time()
        self._talking = self._loop.create_task(self._talk(first))

    async def _talk(self, first: Any) -> None:
        # A write fails when the stream has ended.  The read then says why.
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.write(first)
            while not await self._ends_within(PING_INTERVAL):
                pinged = self._loop.time()
                await self._call.write(type(first)())
                if self._answers_pings and not await self._ends_within(PONG_TIMEOUT) and self._is_silent_since(pinged):
                    self._call.cancel()
                    return
            await self._call.done_writing()

    async def _ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        return self._ending.is_set()

    def _is_silent_since(self, instant: float) -> bool:
        # If there is no read, an answer may lie unread in the connection.  Then the server is not silent.
        return self._heard < instant and self._reading_since < instant

    def take(self) -> Sequence[Delivery]:
        taken = super().take()
        self._begin(0)
        return taken

    async def _read(self, limit: int) -> Sequence[Delivery]:
        while True:
            self._reading_since = self._loop.time()
            with translated(self._asked):
                response = readable(await self._call.read())
            self._heard, self._reading_since = self._loop.time(), math.inf
            if response is grpc.aio.EOF:
                raise BrokerError(f"{self._asked}: the stream ended", ErrorCode.UNAVAILABLE, retryable=True)
            if response.HasField("subscription_properties"):
                self.properties = response.subscription_properties
            if response.received_messages:
                return decode(response.received_messages)
            self._answers_pings = True  # a response without messages answers a ping
            if self._is_awaited:  # a sign of life; if nobody waits for it, it must not hide the age of what follows
                return ()

    async def finish(self, unread: list[Delivery]) -> None:
        self._ending.set()
        try:
            # Until the end; after a timeout, the rest comes again when its leases run out.
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT):
                    while True:
                        await asyncio.wait([self.reading(0)])
                        unread += self.take()
        finally:
            self._call.cancel()
            await asyncio.gather(*filter(None, [self._talking, self._task]), return_exceptions=True)
            self._channel.streams -= 1
            self._call = None  # gRPC's thread ends with the last of its objects
