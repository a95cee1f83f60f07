"""CPU per event that the middleware adds to a WebSocket server, on memory and without payload.

Run ``python -m tests.benchmarks.websocket_cost`` in a checkout.  uvicorn serves an echo, once bare and once in the
middleware, in turns.  The clients run in another process.  The clock is the CPU time of the server's thread,
in which memory stores the events, too.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from events_core import create_client
from events_core.integrations.asgi import EventsMiddleware, WebSocketEvents
from tests.core.integrations.serving import everything, unused_url, uvicorn_serving

WARM_UP = 20
"""Messages of each connection before the clock starts."""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An echo, as short as ASGI allows, that tells the CPU clock of its thread."""
    if scope["type"] != "websocket":
        raise ValueError("no lifespan")
    clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


clocks: list[int] = []


def clients(url: str, connections: int, messages: int, server: Connection) -> None:
    """Talk to *url* when *server* says so; in a process of its own, so that the server waits for no GIL of theirs."""

    async def talk(websocket: ClientConnection, number: int) -> None:
        for _ in range(number):
            await websocket.send("x" * 100)
            await websocket.recv()

    async def run() -> None:
        websockets = [await connect(url, compression=None) for _ in range(connections)]
        for number in (WARM_UP, messages // connections):
            await asyncio.gather(*(talk(websocket, number) for websocket in websockets))
            server.send("done")
            server.recv()
        for websocket in websockets:
            await websocket.close()

    asyncio.run(run())


def measured(app: Any, connections: int, messages: int) -> float:
    """Return the CPU seconds of the server for all messages, after a round that warms it up."""
    clocks.clear()
    here, there = multiprocessing.Pipe()
    with uvicorn_serving(app) as address:
        process = SPAWN.Process(target=clients, args=(address.ws(), connections, messages, there), daemon=True)
        process.start()
        told(here)
        began = time.clock_gettime(clocks[0])
        here.send("go")
        told(here)
        cost = time.clock_gettime(clocks[0]) - began
        here.send("end")
        process.join(60)
    return cost


SPAWN = multiprocessing.get_context("spawn")


def told(clients: Connection) -> None:
    if not clients.poll(120):
        raise TimeoutError("the clients did not end within 120 s")
    clients.recv()


async def pair(connections: int, messages: int) -> tuple[float, float]:
    """Return the microseconds for each message, bare and with events."""
    url = unused_url()
    async with create_client(url) as client, client.subscribe():
        pass  # the subscription keeps the events, as a real one does
    bare = await asyncio.to_thread(measured, echo, connections, messages)
    app = EventsMiddleware(echo, clients={"websocket-events": url}, websocket_events=WebSocketEvents())
    with_events = await asyncio.to_thread(measured, app, connections, messages)
    assert len(await everything(url)) == connections * (2 + WARM_UP + messages // connections)
    return bare / messages * 1e6, with_events / messages * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    added = []
    for _ in range(arguments.rounds):
        bare, with_events = asyncio.run(pair(arguments.connections, arguments.messages))
        added.append(with_events - bare)
        print(f"bare {bare:6.1f} µs  with events {with_events:6.1f} µs  added {with_events - bare:5.1f} µs", flush=True)
    print(f"median added: {statistics.median(added):.1f} µs of CPU for each event (at most 30)")


if __name__ == "__main__":
    main()
