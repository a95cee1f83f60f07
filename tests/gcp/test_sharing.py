"""Shared parts of the clients of a process: one I/O thread, and one channel for each endpoint and account."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from contextlib import AsyncExitStack

import pytest

from events_core import EventMessage, EventReceiver
from events_core.testing import TcpProxy
from events_gcp import channels, pull_pace

from .broker import Broker
from .console import Console, client
from .faults import serving
from .waiting import PATIENCE, until


def io_threads() -> Collection[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "events I/O"]


def pools() -> Collection[channels.Pool]:
    """Return the pools of this test, without those that an earlier test left open."""
    return [pool for pool in channels._pools.values() if pool not in _others]


@pytest.fixture(autouse=True)
def others() -> None:
    _others.update(channels._pools.values())


_others: set[channels.Pool] = set()


async def settle_one(receiver: EventReceiver) -> bytes | None:
    message = await receiver.receive_message(PATIENCE)
    if message is None:
        return None
    await receiver.acknowledge(message)
    return message.data


def test_clients_share_thread_and_channel(console: Console) -> None:
    """Three clients of one endpoint have one thread and one connection, which the last of them closes."""
    before = len(io_threads())

    async def use() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                sender = await stack.enter_async_context(console.client())
                await sender.send_message(EventMessage(b"x"))
            assert len(io_threads()) == before + 1
            assert [len(pool._channels) for pool in pools()] == [1]
            async with console.client() as fourth:
                await fourth.send_message(EventMessage(b"x"))
            assert len(pools()) == 1

    asyncio.run(use())
    assert (len(io_threads()), len(pools())) == (before, 0)


def test_clients_of_other_endpoints_have_channels_of_their_own(console: Console) -> None:
    """An outage of one endpoint does not affect the other."""
    proxy = TcpProxy(console.emulator)

    async def use() -> None:
        async with console.client() as direct, console.client(emulator_host=proxy.address) as indirect:
            await direct.ping(PATIENCE)
            await indirect.ping(PATIENCE)
            assert len(pools()) == 2
            with proxy.cut():
                assert await direct.send_message(EventMessage(b"x"))

    asyncio.run(use())
    proxy.close()


def test_a_failed_connection_is_shared_with_nobody(console: Console) -> None:
    """A client that could not connect leaves no pool for the next one."""
    proxy = TcpProxy(console.emulator)

    async def use() -> None:
        with proxy.cut():
            async with console.client(emulator_host=proxy.address, send_timeout="0.5") as refused:
                results = await asyncio.gather(refused.send_message(EventMessage(b"x")), return_exceptions=True)
                assert isinstance(results[0], Exception)
        assert not pools()
        async with console.client(emulator_host=proxy.address) as accepted:
            assert await accepted.send_message(EventMessage(b"x"))

    asyncio.run(use())
    proxy.close()


def test_many_receivers_do_not_starve_each_other(console: Console) -> None:
    """A connection takes 100 requests, so the streams of 90 receivers use two connections."""

    async def use() -> None:
        async with console.client() as client:
            receivers = await asyncio.gather(*(client.subscribe() for _ in range(90)))
            await client.send_message(EventMessage(b"x"))
            assert await asyncio.gather(*map(settle_one, receivers)) == [b"x"] * 90
            (pool,) = pools()
            await until(lambda: sorted(channel.streams for channel in pool._channels) == [10, 80])

    asyncio.run(use())
    assert not pools()


def test_compressed_requests_are_smaller(console: Console) -> None:
    """With compression=gzip, a text of 1 MB takes less than 100 kB on the line."""
    proxy = TcpProxy(console.emulator)

    async def use() -> None:
        async with console.client(emulator_host=proxy.address, compression="gzip") as client:
            before = proxy.sent
            await client.send_message(EventMessage(b"all work and no play " * 50_000))
            assert proxy.sent - before < 100_000

    asyncio.run(use())
    proxy.close()


def test_many_pulls_leave_room_for_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """T1: a server allows 100 requests on a connection, and 120 pulls wait; a ping is answered."""
    monkeypatch.setattr(pull_pace, "_MIN_TIMEOUT", PATIENCE)
    options = {"create": "never", "receive_mode": "pull", "streams": "20", "connect_timeout": "30"}

    async def receive() -> None:
        async with serving(Broker(), options=[("grpc.max_concurrent_streams", 100)]) as broker:
            broker.subscription("billing", "orders")
            async with client(emulator_host=broker.address, **options) as puller:
                for _ in range(6):
                    await puller.subscribe("billing")
                await until(lambda: len(broker.pulling) >= 120)
                await puller.ping(PATIENCE)
                (pool,) = pools()
                assert sum(channel.streams for channel in pool._channels) == 120
            assert sum(channel.streams for channel in pool._channels) == 0

    asyncio.run(asyncio.wait_for(receive(), 300))
