"""Closing while the connection is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from events_core import EventMessage, EventRuntimeError
from events_core.testing import TcpProxy

from .console import client
from .faults import FaultyServer, serving
from .waiting import PATIENCE, until


def test_what_grpc_learns_after_a_close_disturbs_no_other_loop(caplog: pytest.LogCaptureFixture) -> None:
    """C2: requests on a silent connection end when it answers again, after their loop has been closed."""
    server = FaultyServer()

    async def scenario() -> None:
        async with serving(server):
            with TcpProxy(server.address) as proxy:
                await close_while_silent(proxy)
                async with client(emulator_host=proxy.address, create="never") as later:
                    receiver = await later.subscribe("billing")
                    await until(lambda: len(server.streams) >= 2)
                    await receiver.close()

    async def close_while_silent(proxy: TcpProxy) -> None:
        closing = client(emulator_host=proxy.address, create="never")
        receiver = await closing.subscribe("billing")
        assert await receiver.receive_message(PATIENCE)
        publish = closing._driver.publish
        asked: list[Sequence[EventMessage]] = []

        async def note_and_publish(messages: Sequence[EventMessage]) -> Any:
            asked.append(messages)
            return await publish(messages)

        closing._driver.publish = note_and_publish  # type: ignore[method-assign]
        with proxy.silence():
            large = EventMessage(bytes(5_000_000))  # more than the buffers between here and there hold
            sends = [asyncio.create_task(closing.send_message(large)) for _ in range(4)]
            await until(lambda: bool(asked))
            await closing._home.run(asyncio.sleep(0.1))  # gRPC begins to write
            await closing.close(timeout=0)
            for send in sends:
                with pytest.raises(EventRuntimeError):
                    await send

    asyncio.run(asyncio.wait_for(scenario(), 300))
    assert "Event loop is closed" not in caplog.text
