"""Topics of this process as if a network lay before them: the engine's thread, buffers and reconnecting at work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence

from events_core import ErrorCode, EventMessage
from events_core.backends.memory import MemoryClient, MemoryDriver
from events_core.engine import BrokerError, Delivery, Settlement, Source

_cut = threading.Event()


@contextlib.contextmanager
def outage() -> Iterator[None]:
    """The network is down while this is entered."""
    _cut.set()
    try:
        yield
    finally:
        _cut.clear()


async def _travel(seconds: float = 0.001) -> None:
    await asyncio.sleep(seconds)
    if _cut.is_set():
        raise BrokerError("the network is down", ErrorCode.UNAVAILABLE, retryable=True)


class NetworkSource(Source):
    """Waits for messages, and fetches ahead."""

    def __init__(self, inline: Source) -> None:
        self.subscription = inline.subscription
        self.capabilities = inline.capabilities
        self._inline = inline

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while True:
            await _travel(0.005)
            deliveries = await self._inline.fetch(limit)
            if deliveries:
                return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        await _travel()
        return await self._inline.settle(settlements)

    async def withheld(self) -> Collection[str]:
        return await self._inline.withheld()

    async def close(self) -> None:
        await self._inline.close()


class NetworkDriver(MemoryDriver):
    """Takes one key in a request, and small requests."""

    inline = False
    mixed_keys = False
    max_batch_messages = 100
    max_settle_batch = 100

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        await _travel()
        return await super().publish(messages)

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:  # type: ignore[override]
        await _travel()
        return NetworkSource(await super().subscribe(subscription, wake))

    async def ping(self) -> None:
        await _travel()
        await super().ping()


class NetworkClient(MemoryClient):
    """Its client."""

    api_version = 1
    driver_class = NetworkDriver
