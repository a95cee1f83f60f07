"""Latency of a WebSocket echo with and without the middleware, while the broker answers nothing.

Run ``python -m tests.benchmarks.websocket_latency`` in a checkout.  Each run starts uvicorn in a process of its own.
Clients send at a steady rate, so a server that stops for a moment shows in the latency of many messages.  The runs take
turns, and the median of their 99th percentiles is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, unix_connect

from events_core import EventConfig
from events_core.integrations.asgi import EventsMiddleware, WebSocketEvents
from tests.core.network_memory import NetworkClient, stall


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An echo, as short as ASGI allows."""
    if scope["type"] != "websocket":
        raise ValueError("no lifespan")
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def serve(kind: str, socket: str) -> None:
    """Serve in this process until it is terminated; the broker stalls all the time."""
    config = EventConfig("latency", backend=f"{NetworkClient.__module__}:{NetworkClient.__name__}")
    middleware = EventsMiddleware(
        echo,
        clients={"websocket-events": config},
        websocket_events=WebSocketEvents(payload="size"),
        close_timeout=0.1,
    )
    with stall():
        app = middleware if kind == "events" else echo
        uvicorn.run(app, uds=socket, log_level="critical")


@asynccontextmanager
async def serving(kind: str, socket: str) -> AsyncIterator[None]:
    """Run a server in a process of its own, on a Unix socket."""
    module = "tests.benchmarks.websocket_latency"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, "--serve", kind, socket)
    try:
        async with asyncio.timeout(60):
            while not os.path.exists(socket):  # noqa: ASYNC240
                await asyncio.sleep(0.05)
        yield
    finally:
        process.terminate()
        await process.wait()


async def latencies(websocket: ClientConnection, rate: float, seconds: float) -> list[float]:
    """Send *rate* messages a second, and return how long the answer to each took.

    A message is due at a fixed time.  If its predecessor is late, its own latency counts from when it was due.
    """
    took = []
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await websocket.send("x" * 100)
        await websocket.recv()
        took.append(time.perf_counter() - due)
    return took


async def p99(kind: str, arguments: argparse.Namespace, number: int) -> float:
    socket = f"/tmp/latency-{os.getpid()}-{number}"
    async with serving(kind, socket):
        websockets = [await unix_connect(socket, "ws://localhost/ws") for _ in range(arguments.connections)]
        rate = arguments.rate / arguments.connections
        async with asyncio.TaskGroup() as group:
            tasks = []
            for websocket in websockets:
                tasks.append(group.create_task(latencies(websocket, rate, 1 + arguments.seconds)))
                await asyncio.sleep(1 / arguments.rate)  # spread, so that they do not send at the same time
        for websocket in websockets:
            await websocket.close()
    warm = slice(int(rate), None)  # without the first second
    took = [seconds for task in tasks for seconds in task.result()[warm]]
    return statistics.quantiles(took, n=100)[98]


async def compare(arguments: argparse.Namespace) -> None:
    found: dict[str, list[float]] = {"bare": [], "events": []}
    for number in range(arguments.rounds):
        # The second run of a pair may find a warmer machine, so each kind is first in turn.
        for turn, kind in enumerate(sorted(found, reverse=number % 2 == 1)):
            found[kind].append(await p99(kind, arguments, 2 * number + turn))
        print("  ".join(f"{kind} p99 {values[-1] * 1000:6.2f} ms" for kind, values in found.items()), flush=True)
    bare, events = (statistics.median(values) for values in found.values())
    print(
        f"median p99: bare {bare * 1000:.2f} ms, with events {events * 1000:.2f} ms: {events / bare:.2f} ×, at most 1.2"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1000.0, help="messages a second, of all connections")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=["bare", "events"], help=argparse.SUPPRESS)
    parser.add_argument("socket", nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.socket)
    else:
        asyncio.run(compare(arguments))


if __name__ == "__main__":
    main()
