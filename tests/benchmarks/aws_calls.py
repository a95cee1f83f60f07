"""A proxy that counts the calls of AWS clients on the wire.

It stands in front of an emulator, without encryption.  So it sees every request that a client really makes, including
those that an SDK makes by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Call:
    """A request of a client."""

    at: float
    """The ``time.time()`` of its arrival, which all processes of the machine share."""
    action: str
    """The name of the operation, for example ``SendMessageBatch``."""


def action(head: bytes, body: bytes) -> str:
    """Return the operation that a request names: in a header (SQS), or in the form that is its body (SNS)."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"x-amz-target":
            return value.decode().strip().rpartition(".")[2]
    return parse_qs(body.decode(errors="replace")).get("Action", ["?"])[0]


def length(head: bytes) -> int:
    """Return the length of the body; the SDKs always say it."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class Calls:
    """The calls that have come through."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def record(self, call: Call) -> None:
        self._calls.append(call)

    def between(self, began: float, ended: float) -> Counter[str]:
        """Count the calls of a time by their operation."""
        return Counter(call.action for call in self._calls if began <= call.at <= ended)


@contextmanager
def counted(address: str) -> Iterator[tuple[str, Calls]]:
    """Yield the address of a proxy in front of *address*, and what it counts."""
    parts = urlsplit(address)
    calls = Calls()
    ready: list[str] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"100-continue" in head.lower():
                raise AssertionError("no SDK asks first for so small a body")
            body = await reader.readexactly(length(head))
            calls.record(Call(time.time(), action(head, body)))
            writer.write(head + body)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, down = await asyncio.open_connection(parts.hostname, parts.port)
        answers = asyncio.ensure_future(pump(upstream, writer))
        # A client that closes its connection ends the request that it was to send next.
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await forward(reader, down)
        answers.cancel()
        for each in (down, writer):
            each.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
        host, port = server.sockets[0].getsockname()[:2]
        ready.append(f"http://{host}:{port}")
        started.set()
        with suppress(asyncio.CancelledError):
            await server.serve_forever()

    task = loop.create_task(run())
    thread = threading.Thread(target=loop.run_until_complete, args=(task,), daemon=True)
    thread.start()
    started.wait()
    try:
        yield ready[0], calls
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
