"""Context variables of a caller, such as the current span of a trace, on the engine's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from events_core import EventConfig, EventMessage
from events_core.engine import BrokerError, Source

from ..network_memory import NetworkClient, NetworkDriver

request: ContextVar[str] = ContextVar("request", default="none")


class SeeingDriver(NetworkDriver):
    """A driver that notes the caller's variable in its long tasks."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.seen: set[tuple[str, str]] = set()

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        self.seen.add(("publish", request.get()))
        return await super().publish(messages)

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:
        source = await super().subscribe(subscription, wake)
        fetch, settle = source.fetch, source.settle

        def fetched(limit: int) -> object:
            self.seen.add(("fetch", request.get()))
            return fetch(limit)

        def settled(settlements: object) -> object:
            self.seen.add(("settle", request.get()))
            return settle(settlements)  # type: ignore[arg-type]

        source.fetch, source.settle = fetched, settled  # type: ignore[method-assign, assignment]
        return source


class SeeingClient(NetworkClient):
    driver_class = SeeingDriver


def test_the_tasks_of_the_engine_have_no_callers_context() -> None:
    """They serve many callers, so what a library notes in them must not belong to the one that came first."""

    async def test() -> set[tuple[str, str]]:
        request.set("first")
        async with SeeingClient(EventConfig("t", backend="network_memory")) as client, client.subscribe() as receiver:
            await client.send_message(EventMessage(b"x"))
            message = await receiver.receive_message(60)
            assert message is not None
            await receiver.acknowledge(message)
            return set(client._driver.seen)

    assert asyncio.run(test()) == {("publish", "none"), ("fetch", "none"), ("settle", "none")}


def test_native_work_has_its_callers_context() -> None:
    """N1: it is the caller's own code."""

    async def work(_: object) -> str:
        return request.get()

    async def test() -> str:
        request.set("first")
        async with NetworkClient(EventConfig("t", backend="network_memory")) as client:
            return await client.run_native(work)

    assert asyncio.run(test()) == "first"
