"""A gate keeps requests away from a topic that is being created again."""

from __future__ import annotations

import asyncio

import pytest

from events_core.engine import Gate


def test_closing_waits_for_what_has_passed() -> None:
    """Also for a request that fails, but for none that passes later."""

    async def scenario() -> None:
        gate = Gate()
        first, later = asyncio.Event(), asyncio.Event()

        async def request(end: asyncio.Event) -> None:
            with gate.passing():
                await end.wait()
                raise LookupError

        requests = [asyncio.create_task(request(first))]
        await asyncio.sleep(0)
        closing = asyncio.create_task(gate.close())
        await asyncio.sleep(0)
        assert not gate.is_open
        requests.append(asyncio.create_task(request(later)))
        await asyncio.sleep(0)
        assert not closing.done()
        first.set()
        await closing
        gate.open()
        assert gate.is_open
        later.set()
        assert [type(each) for each in await asyncio.gather(*requests, return_exceptions=True)] == [LookupError] * 2

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_gate_whose_closing_was_cancelled_is_closed() -> None:
    """The next send then creates the topic."""

    async def scenario() -> None:
        gate = Gate()
        with gate.passing():
            closing = asyncio.create_task(gate.close())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        assert not gate.is_open

    asyncio.run(scenario())


def test_nothing_to_wait_for() -> None:
    """Closing an idle gate does not suspend."""

    async def scenario() -> None:
        gate = Gate()
        with pytest.raises(StopIteration):
            gate.close().send(None)
        assert not gate.is_open

    asyncio.run(scenario())
