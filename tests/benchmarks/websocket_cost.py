"""CPU per event that the middleware adds to a WebSocket server, on memory and without payload.

Run ``python -m tests.benchmarks.websocket_cost`` in a checkout.  uvicorn serves an echo, once bare and once in the
middleware, in turns.  The clock is the CPU time of the server's thread, in which memory stores the events, too.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from events_core import create_client
from events_core.integrations.asgi import EventsMiddleware, WebSocketEvents
from tests.core.integrations.serving import everything, unused_url, uvicorn_serving


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


async def talk(websocket: ClientConnection, messages: int) -> None:
    for _ in range(messages):
        await websocket.send("x" * 100)
        await websocket.recv()


async def measured(app: Any, connections: int, messages: int) -> float:
    """Return the CPU seconds of the server for all messages, after a round that warms it up."""
    clocks.clear()
    with uvicorn_serving(app) as address:
        websockets = [await connect(address.ws(), compression=None) for _ in range(connections)]
        await asyncio.gather(*(talk(websocket, 20) for websocket in websockets))
        began = time.clock_gettime(clocks[0])
        await asyncio.gather(*(talk(websocket, messages // connections) for websocket in websockets))
        cost = time.clock_gettime(clocks[0]) - began
        for websocket in websockets:
            await websocket.close()
    return cost


async def pair(connections: int, messages: int) -> tuple[float, float]:
    """Return the microseconds for each message, bare and with events."""
    url = unused_url()
    async with create_client(url) as client, client.subscribe():
        pass  # the subscription keeps the events, as a real one does
    bare = await measured(echo, connections, messages)
    app = EventsMiddleware(echo, clients={"websocket-events": url}, websocket_events=WebSocketEvents())
    told = await measured(app, connections, messages)
    assert len(await everything(url)) == connections * (2 + 20 + messages // connections)
    return bare / messages * 1e6, told / messages * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    added = []
    for _ in range(arguments.rounds):
        bare, told = asyncio.run(pair(arguments.connections, arguments.messages))
        added.append(told - bare)
        print(f"bare {bare:6.1f} µs  with events {told:6.1f} µs  added {told - bare:5.1f} µs", flush=True)
    print(f"median added: {statistics.median(added):.1f} µs of CPU for each event (at most 30)")


if __name__ == "__main__":
    main()
