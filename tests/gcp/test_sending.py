"""Sending over a line that is slow or long."""

from __future__ import annotations

import asyncio

import pytest

from events_core import EventMessage
from events_core.testing import TcpProxy
from events_gcp import api, channels
from events_gcp.limits import PUBLISH_MAX_KEYS

from .console import Console
from .waiting import PATIENCE, until

MBIT = 1_000_000 / 8


def test_a_narrow_line_is_not_overrun(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """P5, P7: everything is stored over a slow line, and hardly anything is sent twice."""
    monkeypatch.setattr(api, "_PUBLISH_TIMEOUT", 4.0)
    messages, size = 160, 100_000

    async def use(proxy: TcpProxy) -> None:
        async with console.client(emulator_host=proxy.address) as client:
            await client.ping(PATIENCE)
            sends = [client.send_message(EventMessage(bytes(size))) for _ in range(messages)]
            with proxy.limit(10 * MBIT):
                assert len(set(await asyncio.gather(*sends))) == messages
            assert proxy.sent < 1.5 * messages * size

    with TcpProxy(console.emulator) as proxy:
        asyncio.run(use(proxy))


def test_a_large_message_has_time_for_a_narrow_line(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: a large message cannot be divided, so its request has more time."""
    monkeypatch.setattr(api, "_PUBLISH_TIMEOUT", 2.0)

    async def use(proxy: TcpProxy) -> None:
        async with console.client(emulator_host=proxy.address) as client:
            await client.ping(PATIENCE)
            before = proxy.sent
            with proxy.limit(4 * MBIT):
                assert await client.send_message(EventMessage(bytes(3_000_000)))
            assert proxy.sent - before < 4_000_000

    with TcpProxy(console.emulator) as proxy:
        asyncio.run(use(proxy))


def test_many_keys_are_out_at_once(console: Console) -> None:
    """P5: requests of many keys are under way at once, and each connection has only as many as it takes."""

    async def use(proxy: TcpProxy) -> None:
        async with console.client(emulator_host=proxy.address) as client:
            await client.ping(PATIENCE)
            keyed = [EventMessage(b"x", ordering_key=str(number)) for number in range(2 * PUBLISH_MAX_KEYS)]
            with proxy.silence():
                sending = asyncio.create_task(client.send_messages(keyed))
                (pool,) = [each for each in channels._pools.values() if each.endpoint.target == proxy.address]
                await until(lambda: sum(channel.streams for channel in pool._channels) == PUBLISH_MAX_KEYS)
                assert max(channel.streams for channel in pool._channels) <= 80
            assert len(set(await sending)) == len(keyed)
            await until(lambda: [channel.streams for channel in pool._channels] == [0, 0])

    with TcpProxy(console.emulator) as proxy:
        asyncio.run(use(proxy))
