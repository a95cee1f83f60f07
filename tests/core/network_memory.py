"""Topics of this process behind a simulated network: the engine's thread, buffers and reconnecting are at work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import attrs

from events_core import ErrorCode, EventMessage
from events_core.backends import memory
from events_core.backends.memory import MemoryClient, MemoryDriver, MemoryOptions
from events_core.engine import BrokerError, Delivery, Outcome, Settlement, Source

_cut = threading.Event()
_deaf = threading.Event()
_stalled = threading.Event()


def outage() -> AbstractContextManager[None]:
    """Take the network away while the block runs."""
    return _while(_cut)


def lost_answers() -> AbstractContextManager[None]:
    """Lose all answers of the broker while the block runs."""
    return _while(_deaf)


def stall() -> AbstractContextManager[None]:
    """Let the broker answer nothing while the block runs; its answers come afterwards."""
    return _while(_stalled)


@contextlib.contextmanager
def _while(fault: threading.Event) -> Iterator[None]:
    fault.set()
    try:
        yield
    finally:
        fault.clear()


async def _travel(seconds: float = 0.001) -> None:
    await asyncio.sleep(seconds)
    while _stalled.is_set():
        await asyncio.sleep(0.005)
    if _cut.is_set():
        raise BrokerError("the network is down", ErrorCode.UNAVAILABLE, retryable=True)


def _travel_back() -> None:
    if _deaf.is_set():
        raise BrokerError("the answer was lost", ErrorCode.UNAVAILABLE, retryable=True)


class NetworkSource(Source):
    """A source that waits for messages, and fetches ahead."""

    def __init__(self, inline: Source) -> None:
        self.subscription = inline.subscription
        self.capabilities = inline.capabilities
        self._inline = inline

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while True:
            await _travel(0.005)
            deliveries = await self._inline.fetch(limit)
            self._inline.unlocked()
            if deliveries:
                return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        await _travel()
        results = await self._inline.settle(settlements)
        self._inline.unlocked()
        _travel_back()
        return results

    async def withheld(self) -> Collection[str]:
        return await self._inline.withheld()

    async def close(self) -> None:
        await self._inline.close()


class NetworkDriver(MemoryDriver):
    """A driver with small requests of one key each, which refuses the attribute ``refused``."""

    inline = False
    mixed_keys = False
    max_batch_messages = 100
    max_settle_batch = 100

    def __init__(self, topic_name: str, project_id: str, options: MemoryOptions) -> None:
        # Who holds a message keeps its time; the broker waits for longer.
        patient = attrs.evolve(options, max_lease_duration=options.max_lease_duration + 10)
        super().__init__(topic_name, project_id, patient)
        self.capabilities = attrs.evolve(self.capabilities, idempotent_publish=False)  # it knows no request again

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        await _travel()
        if any("refused" in message.attributes for message in messages):
            raise BrokerError("the request is refused for one of its messages", ErrorCode.INVALID)
        results = await super().publish(messages)
        _travel_back()
        return results

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:  # type: ignore[override]
        await _travel()
        return NetworkSource(await super().subscribe(subscription, wake))

    async def ping(self) -> None:
        await _travel()
        await super().ping()


class NetworkClient(MemoryClient):
    """The client of that driver."""

    api_version = 1
    driver_class = NetworkDriver


class SessionSource(NetworkSource):
    """A source that loses its deliveries with its connection, and gives each delivery a new token."""

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        try:
            deliveries = await super().fetch(limit)
        except BrokerError:
            self._lose()
            raise
        return [attrs.evolve(delivery, token=delivery) for delivery in deliveries]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        inner = [Settlement(each.delivery.token, each.outcome, each.delay, each.reason) for each in settlements]
        return await super().settle(inner)

    def _lose(self) -> None:
        inline = self._inline
        assert isinstance(inline, memory.MemorySource)
        with memory._lock:
            for item in list(inline._held):
                inline._take_back(item, Outcome.RETURN, 0.0, time.monotonic())
        self.lost(lambda _: True)


class SessionDriver(NetworkDriver):
    """A driver of a broker that ties deliveries to a connection."""

    source_class: ClassVar[type[SessionSource]] = SessionSource

    def __init__(self, topic_name: str, project_id: str, options: MemoryOptions) -> None:
        super().__init__(topic_name, project_id, options)
        self.capabilities = attrs.evolve(self.capabilities, redelivery="disconnect")

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:  # type: ignore[override]
        await _travel()
        return self.source_class(await MemoryDriver.subscribe(self, subscription, wake))


class SessionClient(NetworkClient):
    """The client of that driver."""

    full_capabilities = attrs.evolve(MemoryClient.full_capabilities, redelivery="disconnect")
    driver_class = SessionDriver


class SwallowingSource(NetworkSource):
    """A source that swallows its first cancellation, as a client library may."""

    _swallowed = False

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        try:
            return await super().fetch(limit)
        except asyncio.CancelledError:
            if self._swallowed:
                raise
            self._swallowed = True
        return await super().fetch(limit)


class SwallowingDriver(NetworkDriver):
    """The driver of such a library."""

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:  # type: ignore[override]
        await _travel()
        return SwallowingSource(await MemoryDriver.subscribe(self, subscription, wake))


class SwallowingClient(NetworkClient):
    """The client of that driver."""

    driver_class = SwallowingDriver
