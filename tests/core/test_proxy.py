"""The proxy of the kit, next to a server that sends back what it hears."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing

import pytest

from events_core.testing import TcpProxy

BOUND = 60.0
"""Seconds within which everything that must happen does happen."""


class Echo:
    """A server that sends back what it hears, and keeps it."""

    def __init__(self) -> None:
        self.heard = b""
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # cut
        finally:
            writer.close()


class End:
    """A client's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def hears(self, data: bytes) -> bool:
        """Return whether *data* comes next; False when the connection ends before."""
        try:
            async with asyncio.timeout(BOUND):
                return await self.reader.readexactly(len(data)) == data
        except (asyncio.IncompleteReadError, ConnectionError):
            return False

    async def hears_nothing(self) -> bool:
        """Return whether nothing comes for a while, and the connection stays."""
        reading = asyncio.ensure_future(self.reader.read(1))
        done, _ = await asyncio.wait([reading], timeout=0.2)
        reading.cancel()
        await asyncio.wait([reading])
        return not done


class World:
    """A proxy, the server behind it, and the connections of a test."""

    def __init__(self, proxy: TcpProxy, echo: Echo) -> None:
        self.proxy = proxy
        self.echo = echo
        self.ends: list[End] = []

    async def connect(self) -> End:
        host, _, port = self.proxy.address.rpartition(":")
        self.ends.append(End(*await asyncio.open_connection(host, int(port))))
        return self.ends[-1]


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    echo = Echo()
    async with await asyncio.start_server(echo.serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with TcpProxy(f"{host}:{port}") as proxy:
            found = World(proxy, echo)
            try:
                yield found
            finally:
                for end in found.ends:
                    end.writer.close()


def run(test: Callable[[World], Awaitable[None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(2 * BOUND), world() as found:
            await test(found)

    asyncio.run(play())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0.01)


def test_what_is_sent_passes_in_both_directions() -> None:
    """The proxy passes bytes on, and counts them."""

    async def test(world: World) -> None:
        end = await world.connect()
        end.send(b"x" * 1_000_000)
        assert await end.hears(b"x" * 1_000_000)
        counted = (world.proxy.sent, world.proxy.received, world.proxy.connections)
        assert counted == (1_000_000, 1_000_000, 1)

    run(test)


def test_an_orderly_end_passes_too() -> None:
    """The server hears the end of what a client sends, and the client what the server still has to say."""

    async def test(world: World) -> None:
        end = await world.connect()
        end.send(b"last")
        end.writer.write_eof()
        assert await end.hears(b"last")
        assert await end.reader.read() == b""

    run(test)


def test_a_cut_breaks_connections_and_refuses_new_ones() -> None:
    """After a cut, the same address accepts connections again."""

    async def test(world: World) -> None:
        end = await world.connect()
        end.send(b"x")
        assert await end.hears(b"x")
        with world.proxy.cut():
            assert not await end.hears(b"x")
            with pytest.raises(ConnectionRefusedError):
                await world.connect()
        later = await world.connect()
        later.send(b"y")
        assert await later.hears(b"y")

    run(test)


def test_a_drop_breaks_connections_once() -> None:
    """A new connection works at once."""

    async def test(world: World) -> None:
        end = await world.connect()
        end.send(b"x")
        assert await end.hears(b"x")
        world.proxy.drop()
        assert not await end.hears(b"x")
        later = await world.connect()
        later.send(b"y")
        assert await later.hears(b"y")

    run(test)


def test_silence_keeps_connections_and_what_was_sent() -> None:
    """Nothing passes while it lasts, on old connections and on new ones; all of it passes afterwards."""

    async def test(world: World) -> None:
        old = await world.connect()
        old.send(b"x")
        assert await old.hears(b"x")
        with world.proxy.silence():
            new = await world.connect()
            for end in (old, new):
                end.send(b"y")
                assert await end.hears_nothing()
            assert world.echo.heard == b"x"
        assert await old.hears(b"y")
        assert await new.hears(b"y")

    run(test)


def test_lost_answers_belong_to_requests_that_went_through() -> None:
    """The server hears what is sent, the client hears nothing, and afterwards its connection breaks."""

    async def test(world: World) -> None:
        end, other = await world.connect(), await world.connect()
        end.send(b"x")
        assert await end.hears(b"x")
        with world.proxy.lose_answers():
            end.send(b"y")
            await until(lambda: world.echo.heard == b"xy")
            assert await end.hears_nothing()
        assert not await end.hears(b"y")
        other.send(b"z")
        assert await other.hears(b"z"), "a connection that has lost nothing broke"

    run(test)


def test_a_delay_holds_in_each_direction() -> None:
    """An answer takes twice the delay, and a later delay of 0 applies at once."""

    async def test(world: World) -> None:
        end = await world.connect()
        with world.proxy.delay(0.1):
            began = time.monotonic()
            end.send(b"x")
            assert await end.hears(b"x")
            assert time.monotonic() - began >= 0.2
        end.send(b"y")
        assert await end.hears(b"y")

    run(test)


def test_a_delay_is_no_limit() -> None:
    """Much may be on the way at once: 100 pieces, one sent after the other, take one delay and not 100."""

    async def test(world: World) -> None:
        end = await world.connect()
        with world.proxy.delay(1):
            began = time.monotonic()
            for _ in range(100):
                end.send(b"x" * 1000)
                await asyncio.sleep(0.001)
            assert await end.hears(b"x" * 100_000)
            assert time.monotonic() - began < BOUND

    run(test)


def test_a_limit_is_shared_by_all_connections() -> None:
    """Two connections that send 20 kB each over a line of 100 kB/s need more than 0.3 s."""

    async def test(world: World) -> None:
        ends = [await world.connect() for _ in range(2)]
        with world.proxy.limit(100_000):
            began = time.monotonic()
            for end in ends:
                end.send(b"x" * 20_000)
            for end in ends:
                assert await end.hears(b"x" * 20_000)
            assert time.monotonic() - began >= 0.3

    run(test)


def test_a_limit_must_be_positive() -> None:
    """A line of no bandwidth is a silent one, and the error says so."""

    async def test(world: World) -> None:
        with pytest.raises(ValueError, match="silence"):
            world.proxy.limit(0)

    run(test)


def test_a_server_that_is_not_there_is_an_end() -> None:
    """A client's connection breaks when the proxy cannot reach its server, and works when it can."""

    async def test(world: World) -> None:
        # This socket never listens.  It keeps the port from others while the server is not there.
        with closing(socket.socket()) as keeper:
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeper.bind(("127.0.0.1", 0))
            await lose_and_find(world, *keeper.getsockname())

    async def lose_and_find(world: World, host: str, port: int) -> None:
        with TcpProxy(f"{host}:{port}") as proxy:
            lost = World(proxy, world.echo)
            end = await lost.connect()
            assert not await end.hears(b"x")
            end.writer.close()
            async with await asyncio.start_server(world.echo.serve, host, port):
                end = await lost.connect()
                end.send(b"x")
                assert await end.hears(b"x")
                end.writer.close()

    run(test)


def test_it_leaves_nothing_in_this_process() -> None:
    """A closed proxy leaves no thread and no descriptor, and refuses calls."""
    threads, files = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    proxy = TcpProxy("127.0.0.1:1")
    assert not set(threading.enumerate()) - threads
    proxy.close()
    proxy.close()
    assert not set(os.listdir("/proc/self/fd")) - files
    with pytest.raises(RuntimeError, match="is closed"):
        proxy.drop()


def test_it_ends_with_its_parent() -> None:
    """The process of the proxy ends when the pipe from its parent ends."""
    proxy = TcpProxy("127.0.0.1:1")
    assert proxy._process.stdin is not None
    proxy._process.stdin.close()
    assert proxy._process.wait(BOUND) == 0
    proxy.close()
