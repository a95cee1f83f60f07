"""Many WebSocket clients, many of which are lost, while the broker is away or the server shuts down.

Run ``python -m tests.core.integrations.load`` in a checkout.  It starts real servers (uvicorn with Starlette and with
FastAPI, and ``websockets``) and real clients, and checks every event against what the application itself has received:

* The events of each client are complete and in order, or
* exactly as many are missing as the outbox has counted, and the others are in order.

The broker is the one in memory behind a simulated network, so it can go away and come back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import resource
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Literal

import attrs
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from events_core import EventClient, EventConfig, EventMessage, create_client
from events_core.integrations.asgi import EventsMiddleware, WebSocketEvents
from events_core.integrations.outbox import Outbox, OutboxStats, Policy
from events_core.integrations.websockets import WebSocketServerWithEvents
from tests.core.integrations.serving import everything, unused_url, uvicorn_serving
from tests.core.network_memory import NetworkClient, outage

Framework = Literal["starlette", "fastapi", "websockets"]
FRAMEWORKS: tuple[Framework, ...] = ("starlette", "fastapi", "websockets")
CLOSE_TIMEOUT = 60.0
"""Seconds for the flush at shutdown, unless the broker is away then."""


@attrs.define
class Trial:
    """One server under load, and what its application has received."""

    framework: Framework
    connections: int
    messages: int
    policy: Policy = "drop_newest"
    max_messages: int = 100_000
    close_timeout: float = CLOSE_TIMEOUT
    url: str = attrs.field(factory=unused_url)
    received: dict[str, list[str]] = attrs.field(factory=lambda: defaultdict(list))
    outbox: Outbox | None = None
    accepted: int = 0
    refused: int = 0

    @property
    def share(self) -> float:
        """The share of the messages that the application has received."""
        return sum(map(len, list(self.received.values()))) / self.messages

    @property
    def stats(self) -> OutboxStats:
        assert self.outbox is not None
        return self.outbox.stats

    def make_outbox(self, client: EventClient) -> Outbox:
        self.outbox = Outbox(client, policy=self.policy, max_messages=self.max_messages, max_wait=120)
        return self.outbox

    @property
    def config(self) -> EventConfig:
        topic = EventConfig.from_url(self.url).topic_name
        return EventConfig(topic, backend=f"{NetworkClient.__module__}:{NetworkClient.__name__}")


# The servers


@contextmanager
def served(trial: Trial) -> Iterator[str]:
    """Yield the address of the server of *trial*; at the end it shuts down under the clients that are left."""
    if trial.framework == "websockets":
        with websockets_serving(trial) as address:
            yield address
        return
    app = {"starlette": starlette_app, "fastapi": fastapi_app}[trial.framework](trial)
    middleware = EventsMiddleware(
        app,
        clients={"websocket-events": trial.config},
        websocket_events=WebSocketEvents(payload="whole", client_id=lambda scope: scope["path_params"]["client"]),
        outbox=trial.make_outbox,
        close_timeout=trial.close_timeout,
    )
    with uvicorn_serving(middleware, backlog=1000) as server:
        yield server.ws("/ws/")


async def echo(websocket: WebSocket, trial: Trial) -> None:
    await websocket.accept()
    trial.accepted += 1
    with suppress(WebSocketDisconnect):
        while True:
            text = await websocket.receive_text()
            trial.received[websocket.path_params["client"]].append(text)
            await websocket.send_text(text)


def starlette_app(trial: Trial) -> Any:
    return Starlette(routes=[WebSocketRoute("/ws/{client}", partial(echo, trial=trial))])


def fastapi_app(trial: Trial) -> Any:
    app = FastAPI()

    @app.websocket("/ws/{client}")
    async def serve(websocket: WebSocket, client: str) -> None:
        await echo(websocket, trial)

    return app


@contextmanager
def websockets_serving(trial: Trial) -> Iterator[str]:
    addresses: list[str] = []
    started, stop = threading.Event(), threading.Event()

    async def serve(connection: ServerConnection) -> None:
        trial.accepted += 1
        async for text in connection:
            trial.received[client_of(connection)].append(str(text))
            await connection.send(text)

    async def main() -> None:
        running = WebSocketServerWithEvents(
            serve,
            create_client(trial.config),
            "127.0.0.1",
            0,
            events=WebSocketEvents(payload="whole", client_id=client_of),
            outbox=trial.make_outbox,
            close_timeout=trial.close_timeout,
            backlog=1000,
        )
        async with running:
            addresses.append(f"ws://127.0.0.1:{next(iter(running.server.sockets)).getsockname()[1]}/ws/")
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    try:
        assert started.wait(60)
        yield addresses[0]
    finally:
        stop.set()
        thread.join(CLOSE_TIMEOUT + 60)
        assert not thread.is_alive()


def client_of(connection: ServerConnection) -> str:
    assert connection.request is not None
    return connection.request.path.rpartition("/")[2]


# The clients


async def clients(trial: Trial, address: str, *, lost: float = 0.25, open_at_once: int = 50) -> None:
    """Let each client say its part, word by word; some of them are lost in the middle, as by a crash."""
    each = trial.messages // trial.connections
    chance = random.Random(15)
    turns = asyncio.Semaphore(open_at_once)

    async def client(name: str, last: int | None) -> None:
        async with turns:
            try:
                websocket = await connect(address + name, open_timeout=60, ping_interval=None, compression=None)
            except (OSError, InvalidHandshake, TimeoutError):
                trial.refused += 1  # the server is shutting down
                return
        with suppress(ConnectionClosed):
            for number in range(each):
                await websocket.send(str(number))
                if number == last:
                    websocket.transport.abort()
                    break
                await websocket.recv()
        await websocket.close()

    async with asyncio.TaskGroup() as group:
        for number in range(trial.connections):
            last = chance.randrange(each) if chance.random() < lost else None
            group.create_task(client(f"client-{number}", last))


# The scenarios


@asynccontextmanager
async def running(trial: Trial) -> AsyncIterator[str]:
    """Yield the address of the server.  It shuts down in another thread, so that its clients can answer meanwhile."""
    server = served(trial)
    address = await asyncio.to_thread(server.__enter__)
    try:
        yield address
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


async def steady(trial: Trial, seconds: float) -> None:
    """All clients are served while the broker is there."""
    async with running(trial) as address:
        await clients(trial, address)


async def broker_away(trial: Trial, seconds: float) -> None:
    """All clients are served while the broker is away for some seconds, and comes back."""
    async with running(trial) as address, asyncio.TaskGroup() as group:
        group.create_task(clients(trial, address))
        await until(lambda: trial.share >= 0.1)
        with outage():
            await asyncio.sleep(seconds)


async def shutdown(trial: Trial, seconds: float) -> None:
    """The server shuts down when the application has received a third of the messages."""
    async with asyncio.TaskGroup() as group, running(trial) as address:
        group.create_task(clients(trial, address))
        await until(lambda: trial.share >= 0.33)


async def shutdown_without_broker(trial: Trial, seconds: float) -> None:
    """The server shuts down in the same way while the broker is away, and does not come back in time."""
    trial.close_timeout = 2.0
    async with asyncio.TaskGroup() as group:
        with ExitStack() as stack:
            async with running(trial) as address:
                group.create_task(clients(trial, address))
                await until(lambda: trial.share >= 0.2)
                stack.enter_context(outage())
                await until(lambda: trial.share >= 0.33)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):
        while not condition():
            await asyncio.sleep(0.01)


Scenario = Callable[[Trial, float], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario for scenario in (steady, broker_away, shutdown, shutdown_without_broker)
}


# The check


def run(trial: Trial, scenario: Scenario, seconds: float) -> OutboxStats:
    """Run *scenario* and check all events of *trial*; return the counters of its outbox.

    :raises AssertionError: if an event is missing, doubled or out of order and not counted by the policy.
    """

    async def main() -> list[EventMessage]:
        async with create_client(trial.url) as client, client.subscribe():
            pass
        await scenario(trial, seconds)
        return await everything(trial.url)

    stored = asyncio.run(main())
    check(trial, stored)
    return trial.stats


def check(trial: Trial, stored: list[EventMessage]) -> None:
    """Compare *stored* with what the application has received."""
    stats = trial.stats
    told: dict[str, list[str]] = defaultdict(list)
    for message in stored:
        body = json.loads(message.data)
        assert message.ordering_key == body["client_id"] == message.attributes["client_id"]
        told[body["client_id"]].append(body.get("payload", body["event_type"]))
        if body["event_type"] == "client_disconnected":
            assert body["messages_received"] == len(trial.received[body["client_id"]])
    expected = {
        name: ["client_connected", *trial.received.get(name, []), "client_disconnected"]
        for name in {*told, *trial.received}
    }
    # Two events for each client, and one for each message.
    assert stats.offered == 2 * trial.accepted + sum(map(len, trial.received.values()))
    assert stats.waiting == stats.sending == stats.refused == 0
    # Of those that were on their way at the end, the broker may have some.
    assert 0 <= len(stored) - stats.sent <= stats.unconfirmed
    missing = stats.offered - len(stored)
    for name, events in told.items():
        if missing:
            rest = iter(expected[name])
            assert all(event in rest for event in events), (name, events, expected[name])
        else:
            assert events == expected[name], (name, events, expected[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--away", type=float, default=10.0, help="seconds for which the broker is away")
    parser.add_argument("--full", type=int, default=1000, help="limit of the outboxes that must become full")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    for framework in FRAMEWORKS:
        for name, scenario in SCENARIOS.items():
            limits: list[tuple[Policy, int]] = [("drop_newest", 100_000)]
            if scenario is broker_away:
                limits += [("drop_newest", arguments.full), ("drop_oldest", arguments.full), ("wait", arguments.full)]
            for policy, limit in limits:
                trial = Trial(framework, arguments.connections, arguments.messages, policy, limit)
                began = time.monotonic()
                stats = run(trial, scenario, arguments.away)
                print(
                    f"{framework:10} {name:23} {policy:11} {limit:6}  "
                    f"received {sum(map(len, trial.received.values())):6}  offered {stats.offered:6}  "
                    f"sent {stats.sent:6}  dropped {stats.dropped:6}  unsent {stats.unsent:6}  "
                    f"unconfirmed {stats.unconfirmed:4}  {time.monotonic() - began:5.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
