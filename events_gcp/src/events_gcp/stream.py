"""One StreamingPull."""

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
"""Seconds between two pings, as Google's clients for Go and Java have it."""
PONG_TIMEOUT = 15.0
"""Seconds after a ping within which a server that answers pings must have said something."""


class Stream(Inlet):
    """A stream of responses.

    It is ended by closing our half and reading to the end: the emulator keeps a cancelled stream alive, and delivers
    into it until the lease runs out.

    A connection may die without a word.  So the stream is pinged, and given up when nothing comes after a ping; but
    only where a ping has been answered before, which the emulator never does.
    """

    def __init__(self, channel: Channel, call: Any, first: Any, asked: str) -> None:
        """Speak first.

        :param channel: what the *call* goes over.
        :param asked: what this is for, for errors.
        """
        super().__init__()
        channel.streams += 1
        self._channel = channel
        self._call = call
        self._asked = asked
        self._ending = asyncio.Event()
        self._answers_pings = False
        self._reading_since = math.inf
        self._heard = self.began
        self._talking = self._loop.create_task(self._talk(first))

    async def _talk(self, first: Any) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the stream is over, as reading it will tell
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
        return self._heard < instant and self._reading_since < instant

    async def _read(self, limit: int) -> Sequence[Delivery]:
        self._reading_since = self._loop.time()
        with translated(self._asked):
            response = readable(await self._call.read())
        self._heard, self._reading_since = self._loop.time(), math.inf
        if response is grpc.aio.EOF:
            raise BrokerError(f"{self._asked}: the stream ended", ErrorCode.UNAVAILABLE, retryable=True)
        if response.HasField("subscription_properties"):
            self.properties = response.subscription_properties
        self._answers_pings |= not response.received_messages
        return decode(response.received_messages)

    async def finish(self) -> Sequence[Delivery]:
        self._ending.set()
        unread: list[Delivery] = []
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                while True:
                    await asyncio.wait([self.reading(0)])
                    unread += self.take()
        except (BrokerError, TimeoutError):
            return unread  # the end; had it not come in time, the rest comes again when its leases run out
        finally:
            self._call.cancel()
            await asyncio.gather(*filter(None, [self._talking, self._task]), return_exceptions=True)
            self._channel.streams -= 1
            self._call = None  # gRPC's thread ends with the last of its objects
