"""A close that waits for the last request to fetch, because the broker would give messages to one that is cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from events_core.engine import Outcome

from .test_client import ScriptedClient, ScriptedDriver, ScriptedSource, message, run


class LastingSource(ScriptedSource):
    """A source whose last request to fetch ends when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.answer = asyncio.Event()

    async def finish_fetching(self) -> None:
        self.events.append("waiting")
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.events.append("cut")
            raise
        self.events.append("answered")

    async def close(self) -> None:
        self.events.append("closed")


class LastingDriver(ScriptedDriver):
    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> LastingSource:
        source = LastingSource()
        self.sources.append(source)
        return source


def last_source(client: ScriptedClient) -> LastingSource:
    source = client.broker.sources[-1]
    assert isinstance(source, LastingSource)
    return source


async def until(events: list[str], event: str) -> None:
    while event not in events:
        await asyncio.sleep(0.005)


def test_a_close_waits_for_the_last_answer() -> None:
    """C1: a receiver that holds nothing stays open until its last request to fetch has ended."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        source = last_source(client)
        closing = asyncio.create_task(receiver.close(timeout=3600))
        await until(source.events, "waiting")
        await asyncio.wait([closing], timeout=0.2)
        assert source.events == ["waiting"]
        client._home.wake(source.answer.set)
        await closing
        assert source.events == ["waiting", "answered", "closed"]

    run(test, driver=LastingDriver)


def test_a_close_without_time_cuts_the_last_request() -> None:
    """C1: the wait ends with the time of the close, and then the source is closed."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        source = last_source(client)
        await receiver.close(timeout=0.5)
        assert source.events == ["waiting", "cut", "closed"]

    run(test, driver=LastingDriver)


def test_a_less_patient_close_ends_the_wait() -> None:
    """C2: the client's close shortens the wait of its receiver's."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        source = last_source(client)
        closing = asyncio.create_task(receiver.close(timeout=3600))
        await until(source.events, "waiting")
        await asyncio.wait_for(client.close(timeout=0), 60)
        await closing
        assert source.events == ["waiting", "cut", "closed"]

    run(test, driver=LastingDriver)


def test_settling_goes_on_while_a_close_waits() -> None:
    """C1: a message that is held meanwhile can be acknowledged, and buffered ones go back at once."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        source = last_source(client)
        await client.send_messages([message("1"), message("2")])
        held = await receiver.receive_message(60)
        assert held is not None
        while receiver.stats.buffered < 1:
            await asyncio.sleep(0.005)
        closing = asyncio.create_task(receiver.close(timeout=3600))
        await until(source.events, "waiting")
        while len(source.settled) < 1:
            await asyncio.sleep(0.005)
        await receiver.acknowledge(held)
        assert [each.outcome for each in source.settled] == [Outcome.RETURN, Outcome.ACK]
        client._home.wake(source.answer.set)
        await closing

    run(test, driver=LastingDriver)


def test_a_wait_that_fails_does_not_hinder_the_close() -> None:
    """A source that raises is closed like any other."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        source = last_source(client)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source.answer, "wait", lambda: 1 / 0)
            began = time.monotonic()
            await receiver.close(timeout=3600)
        assert source.events == ["waiting", "closed"]
        assert time.monotonic() - began < 1800

    run(test, driver=LastingDriver)


def test_a_close_without_a_timeout_waits_a_moment_too() -> None:
    """C1: the last request may end while the broker is told of what was settled."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        source = last_source(client)
        source.answer.set()
        await receiver.close(timeout=0)
        assert source.events == ["waiting", "answered", "closed"]

    run(test, driver=LastingDriver)
