"""A network between a client and a server that ends connections while they open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self

STEPS = ("header", "start-ok", "tune-ok", "open")
"""The writes of a client with which a connection opens (AMQP 0-9-1, section 2.2.4)."""


async def _writes(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield what a client writes: the protocol header, and then each frame."""
    yield await reader.readexactly(8)
    while True:
        head = await reader.readexactly(7)
        yield head + await reader.readexactly(int.from_bytes(head[3:], "big") + 1)


class Relay:
    """A TCP server in this loop, which passes on everything to the server at *address*, unless it is to interrupt.

    :class:`~events_core.testing.TcpProxy` knows nothing of AMQP, so it cannot end a connection at a step.
    """

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self.address = ""
        """The ``host:port`` on which it listens."""
        self.left = 0
        """The number of connections that it is still to interrupt."""
        self._step = 0
        self._farewell = b""

    def interrupt(self, step: str, farewell: bytes, times: int) -> None:
        """Break all connections, and end the next ones in place of passing on the *step* of the client.

        :param farewell: bytes that the client gets before the end.
        :param times: the number of connections that end so.
        """
        self._step, self._farewell, self.left = STEPS.index(step), farewell, times
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1")
        self.address = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._listener.wait_closed()
        for writer in self._writers:
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, to_server}
        answering = asyncio.create_task(self._answer(from_server, writer))
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                number = 0
                async for data in _writes(reader):
                    if number == self._step and self.left:
                        self.left -= 1
                        writer.write(self._farewell)
                        break
                    to_server.write(data)
                    await to_server.drain()
                    number += 1
        finally:
            answering.cancel()
            writer.close()
            to_server.close()
            await asyncio.wait([answering])
            self._writers -= {writer, to_server}

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()
