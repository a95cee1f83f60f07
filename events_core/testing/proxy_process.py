"""The process behind :class:`~events_core.testing.TcpProxy`: it forwards connections and disturbs them when told.

``python proxy_process.py HOST PORT`` listens on a free port of 127.0.0.1 and forwards each connection to HOST:PORT.
Each line on standard input is a JSON object that sets attributes of :class:`Line`.  When they are in force, the process
answers with one line: the port that it listens on, and what it has counted.  It ends when its standard input ends, so
it never outlives its parent.

The parent runs this file by its path, and it imports only the standard library: so it starts quickly, and the parent's
configuration does not reach it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

CHUNK = 64 * 1024
"""Bytes that are forwarded at once."""
ON_THE_WAY = 16 * 1024 * 1024
"""Bytes that may be on the way in one direction of a delayed connection."""
PIECES_PER_SECOND = 20
"""Number of pieces per second into which a limited bandwidth is divided."""


class Line:
    """The state of the line that all connections share."""

    def __init__(self) -> None:
        self.is_open = True
        """True if connections are accepted.  When it becomes False, existing connections break."""
        self.silent = False
        """True if nothing passes.  Connections stay, and bytes sent in that time pass afterwards."""
        self.deaf = False
        """True if the server's answers are thrown away.  When it becomes False, connections that lost one break."""
        self.delay = 0.0
        """Seconds that each byte takes, in each direction."""
        self.bandwidth = 0.0
        """Bytes per second that pass in each direction, on all connections together; 0 for no limit."""
        self.audible = asyncio.Event()
        """Set while not :attr:`silent`."""
        self.audible.set()

    def change(self, values: dict[str, Any]) -> None:
        """Set attributes."""
        for name, value in values.items():
            setattr(self, name, value)
        if self.silent:
            self.audible.clear()
        else:
            self.audible.set()


class Direction:
    """One direction of all connections, which share its bandwidth."""

    def __init__(self, line: Line) -> None:
        self.passed = 0
        """Bytes that have reached the other side."""
        self._line = line
        self._free_at = 0.0

    async def write(self, data: bytes, writer: asyncio.StreamWriter, is_lost: Callable[[], bool]) -> None:
        """Write *data* in pieces, as fast as the line permits.  Leave out each piece for which *is_lost* is true."""
        bandwidth = self._line.bandwidth
        size = max(1, int(bandwidth / PIECES_PER_SECOND)) if bandwidth else len(data)
        for begin in range(0, len(data), size):
            piece = data[begin : begin + size]
            await self._take_turn(len(piece))
            await self._line.audible.wait()
            # Only now ask for a loss: a fault may have begun or ended during the waits.
            if not is_lost():
                self.passed += len(piece)
                writer.write(piece)
                await writer.drain()

    async def _take_turn(self, size: int) -> None:
        if self._line.bandwidth:
            now = asyncio.get_running_loop().time()
            self._free_at = max(now, self._free_at) + size / self._line.bandwidth
            await asyncio.sleep(self._free_at - now)


class Pipe:
    """The bytes on the way between two ends, each piece with the time at which it arrives."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = asyncio.Condition()

    async def put(self, data: bytes) -> None:
        """Put *data* on the way; ``b""`` is the end of the stream."""
        async with self._changed:
            # Without a delay one piece at a time, so that a slow receiver holds up its sender as on a real line.
            await self._changed.wait_for(lambda: self._size < (ON_THE_WAY if self._line.delay else 1))
            self._pieces.append((asyncio.get_running_loop().time() + self._line.delay, data))
            self._size += len(data)
            self._changed.notify_all()

    async def get(self) -> bytes:
        """Wait for the next piece to arrive."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._pieces))
            due, data = self._pieces.popleft()
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        async with self._changed:
            self._size -= len(data)
            self._changed.notify_all()
        return data


class Connection:
    """A client's connection, and its connection to the server."""

    def __init__(self, line: Line, writer: asyncio.StreamWriter) -> None:
        self.has_lost = False
        """True if an answer was thrown away.  The client could not understand the bytes after it."""
        self.writers = [writer]
        self._line = line
        self._task = asyncio.current_task()

    def lose(self) -> bool:
        """Return whether an answer is lost now."""
        self.has_lost |= self._line.deaf
        return self.has_lost

    def break_off(self) -> None:
        """End both connections and their task at once, and drop the bytes on the way."""
        self.abort()
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """End both connections.  Called by their own task, which then ends by itself."""
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Accepts connections and forwards them."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._line = Line()
        self._to_server, self._to_client = Direction(self._line), Direction(self._line)
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._server: asyncio.Server | None = None
        # This socket is bound and never listens.  It keeps the port while the proxy refuses connections.
        self._keeper = _bound(0)
        self._port = self._keeper.getsockname()[1]

    async def change(self, values: dict[str, Any]) -> dict[str, int]:
        """Put *values* in force.  Return the port and the counters."""
        self._line.change(values)
        if self._line.is_open and self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_bound(self._port), backlog=256)
        elif not self._line.is_open and self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            if not self._line.is_open or (connection.has_lost and not self._line.deaf):
                connection.break_off()
        return {
            "port": self._port,
            "sent": self._to_server.passed,
            "received": self._to_client.passed,
            "connections": self._accepted,
        }

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        connection = Connection(self._line, writer)
        self._connections.add(connection)
        try:
            await self._line.audible.wait()
            upstream, server = await asyncio.open_connection(*self._target)
            connection.writers.append(server)
            async with asyncio.TaskGroup() as tasks:
                for coroutine in (
                    *self._forward(reader, server, self._to_server, lambda: False),
                    *self._forward(upstream, writer, self._to_client, connection.lose),
                ):
                    tasks.create_task(coroutine)
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            connection.abort()  # one end is gone, and so is the other
        finally:
            self._connections.discard(connection)
            for each in connection.writers:
                each.close()  # this sends the rest, unless the connection was aborted

    def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
        is_lost: Callable[[], bool],
    ) -> tuple[Any, Any]:
        """Return two coroutines that forward until one side ends; an orderly end is passed on like data."""
        pipe = Pipe(self._line)
        writer.transport.set_write_buffer_limits(0)  # so ``drain`` returns when the bytes have left this process

        async def read() -> None:
            while data := await reader.read(CHUNK):
                await pipe.put(data)
            await pipe.put(b"")

        async def write() -> None:
            while data := await pipe.get():
                await direction.write(data, writer, is_lost)
            writer.write_eof()

        return read(), write()


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform != "linux":
        # On other systems, two sockets need this to share a port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Accepted connections inherit this size.  With a small one, a sender soon notices that the line is slow.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
    bound.bind(("127.0.0.1", port))
    return bound


async def main(host: str, port: str) -> None:
    """Carry out the commands on standard input until it ends."""
    proxy = Proxy(host, int(port))
    _answer(await proxy.change({}))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while command := await commands.readline():
        _answer(await proxy.change(json.loads(command)))


def _answer(counted: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(counted) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
