"""The middleware opens clients for HTTP handlers, and closes them, whatever the server and the application offer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from httpx2 import AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from websockets.asyncio.client import connect

from events_core import EventClient, EventConfig, EventMessage, EventRuntimeError, create_client
from events_core.integrations.asgi import EventsMiddleware
from events_core.integrations.asgi_lifespan import Message
from events_core.integrations.fastapi import ClientNamed

from .serving import bodies, everything, published, unused_url, uvicorn_serving

Orders = Annotated[EventClient, Depends(ClientNamed("orders"))]


def shop(url: str) -> FastAPI:
    """Return an application that sends each order that it gets."""
    app = FastAPI()
    app.add_middleware(EventsMiddleware, clients={"orders": url})

    @app.post("/orders/{number}")
    async def place_order(number: int, orders: Orders) -> str:
        return await orders.send_message(EventMessage(b"%d" % number))

    @app.websocket("/ws")
    async def take_orders(websocket: WebSocket, orders: Orders) -> None:
        await websocket.accept()
        await orders.send_message(EventMessage(await websocket.receive_bytes()))

    return app


def test_a_fastapi_dependency() -> None:
    """Handlers of HTTP and of WebSockets get the client by its name, and send with it."""

    async def main() -> None:
        url = unused_url()
        with uvicorn_serving(shop(url)) as address:
            async with asyncio.timeout(60), AsyncClient(timeout=60) as http:
                response = await http.post(address.http("/orders/1"))
                assert response.status_code == 200
                async with connect(address.ws()) as websocket:
                    await websocket.send(b"2")
                    assert [message.data for message in await published(url, 2)] == [b"1", b"2"]

    asyncio.run(main())


def test_the_state_of_a_request() -> None:
    """Starlette's handlers find the clients in the state of the request."""

    async def place_order(request: Request) -> PlainTextResponse:
        await request.state.events.clients["orders"].send_message(EventMessage(b"1"))
        return PlainTextResponse("placed")

    async def main() -> None:
        url = unused_url()
        app = Starlette(routes=[Route("/", place_order)])
        with uvicorn_serving(EventsMiddleware(app, clients={"orders": url})) as address:
            async with asyncio.timeout(60), AsyncClient(timeout=60) as http:
                assert (await http.get(address.http("/"))).text == "placed"
        assert [message.data for message in await everything(url)] == [b"1"]

    asyncio.run(main())


def test_the_clients_come_from_a_file(tmp_path: Path) -> None:
    """A list of names is looked up in the file, as create_client does."""
    file = tmp_path / "events.toml"
    file.write_text('[clients.orders]\nbackend = "memory"\ntopic_name = "from-a-file"\n')
    app = FastAPI()
    app.add_middleware(EventsMiddleware, clients=["orders"], file=file)

    @app.get("/")
    async def topic(orders: Orders) -> str:
        return orders.topic_name

    with TestClient(app) as http:
        assert http.get("/").json() == "from-a-file"


def test_a_dependency_may_be_overridden() -> None:
    """A test names the dependency again, because two of one name are equal."""
    url = unused_url()

    async def other() -> AsyncIterator[EventClient]:
        async with create_client(url) as client:
            yield client

    app = shop("memory:///not-used")
    app.dependency_overrides[ClientNamed("orders")] = other
    with TestClient(app) as http:
        assert http.post("/orders/5").status_code == 200
    assert len(asyncio.run(everything(url))) == 1


@pytest.mark.parametrize(
    ("clients", "complaint"),
    [(None, "add EventsMiddleware"), (["a", "b"], "no client 'orders'; its clients are: 'a', 'b'")],
)
def test_a_missing_client(clients: list[str] | None, complaint: str) -> None:
    """The error says what the application must add."""
    app = FastAPI()
    if clients is not None:
        app.add_middleware(EventsMiddleware, clients=dict.fromkeys(clients, "memory:///t"))

    @app.get("/")
    async def index(orders: Orders) -> None: ...

    with TestClient(app) as http, pytest.raises(LookupError, match=complaint):
        http.get("/")


def test_an_application_may_start_again() -> None:
    """Each lifespan has clients of its own, because closed ones cannot be opened again."""
    url = unused_url()
    app = shop(url)
    for number in range(2):
        with TestClient(app) as http:
            assert http.post(f"/orders/{number}").status_code == 200
    assert len(asyncio.run(everything(url))) == 2


def test_one_name_is_no_list() -> None:
    """A text in place of a list is a mistake that would look for clients with one letter each."""
    with pytest.raises(TypeError, match=r"clients=\['orders'\]"):
        EventsMiddleware(FastAPI(), clients="orders")


class Server:
    """The server's side of a lifespan, which a test plays itself."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.state: dict[str, Any] = {}
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self.said = asyncio.Event()

    async def run(self, app: Any) -> list[str]:
        """Start *app* and shut it down, and return the types of its answers."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        task = asyncio.create_task(app(scope, self._events.get, self._send))
        self._events.put_nowait({"type": "lifespan.startup"})
        async with asyncio.timeout(60):
            await self._answer(task)
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(self.sent) == 1, "it answered a shutdown that has not come"
            if not task.done():
                self._events.put_nowait({"type": "lifespan.shutdown"})
                await task
        await task
        return [message["type"].removeprefix("lifespan.") for message in self.sent]

    async def _answer(self, task: asyncio.Task[None]) -> None:
        answered = asyncio.create_task(self.said.wait())
        await asyncio.wait([task, answered], return_when="FIRST_COMPLETED")
        answered.cancel()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self.said.set()


def lived(inner: Any, url: str = "memory:///lifespan") -> tuple[list[str], Server, EventsMiddleware]:
    """Run the lifespan of *inner* in the middleware; return the types of its answers."""

    async def main() -> tuple[list[str], Server, EventsMiddleware]:
        server = Server()
        app = EventsMiddleware(inner, clients={"orders": url})
        return await server.run(app), server, app

    return asyncio.run(main())


async def raising(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("no lifespan")


async def raising_late(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise ValueError("a defect")


async def returning(scope: Any, receive: Any, send: Any) -> None:
    pass


async def returning_early(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def answering_otherwise(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200})


async def complete(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


@pytest.mark.parametrize("inner", [raising, raising_late, returning, returning_early, answering_otherwise, complete])
def test_every_application_has_a_lifespan(inner: Any) -> None:
    """The server gets both answers, however little of it the application does."""
    assert lived(inner)[0] == ["startup.complete", "shutdown.complete"]


@pytest.mark.parametrize(("inner", "level"), [(raising, logging.INFO), (raising_late, logging.WARNING)])
def test_an_application_without_lifespan_is_logged(inner: Any, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal is routine, and a failure after the startup has come is a warning."""
    with caplog.at_level(logging.INFO, "events_core.asgi"):
        lived(inner)
    assert [record.levelno for record in caplog.records if record.name == "events_core.asgi"] == [level]


def test_a_wrong_configuration_stops_the_start() -> None:
    """The server learns why, and the application is not started."""
    started: list[object] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        started.append(scope)

    answers, server, _ = lived(inner, "memory:///orders?no_such_option=1")
    assert answers == ["startup.failed"]
    assert "no_such_option" in server.sent[0]["message"]
    assert not started


def test_the_application_may_fail_to_start() -> None:
    """Its answer and its exception go on to the server, and the clients are closed."""
    clients: list[EventClient] = []

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        clients.extend(scope["state"]["events"].clients.values())
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "a defect"})
        raise LookupError("a defect")

    async def main() -> None:
        server = Server()
        with pytest.raises(LookupError):
            await server.run(EventsMiddleware(failing, clients={"orders": "memory:///orders"}))
        assert [message["type"] for message in server.sent] == ["lifespan.startup.failed"]
        with pytest.raises(EventRuntimeError, match="closed"):
            await clients[0].send_message(EventMessage(b""))

    asyncio.run(main())


def test_two_servers_of_one_application() -> None:
    """Each has clients of its own, so the end of one leaves the other alone."""

    async def main() -> None:
        url = unused_url()
        app = shop(url)
        async with asyncio.timeout(60), AsyncClient(timeout=60) as http:
            with uvicorn_serving(app) as first:
                with uvicorn_serving(app) as second:
                    assert (await http.post(second.http("/orders/2"))).status_code == 200
                assert (await http.post(first.http("/orders/1"))).status_code == 200
        assert [message.data for message in await everything(url)] == [b"2", b"1"]

    asyncio.run(main())


def test_a_lifespan_that_fails_in_the_middle() -> None:
    """If the lifespan of the application fails while it runs, the server goes on, and its handlers get new clients."""
    url = unused_url()

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await scope["state"]["events"].clients["orders"].send_message(EventMessage(b"1"))
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise LookupError("a defect")

    async def main() -> None:
        server = Server()
        app = EventsMiddleware(inner, clients={"orders": url})
        with pytest.raises(LookupError):
            await server.run(app)
        await app({"type": "http", "state": dict(server.state)}, None, None)  # type: ignore[arg-type]
        await app.close()
        assert len(await everything(url)) == 1

    asyncio.run(main())


def test_the_clients_live_longer_than_the_application() -> None:
    """The application's own lifespan may use them, at its start and at its end."""
    url = unused_url()

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        orders: EventClient = scope["state"]["events"].clients["orders"]
        await receive()
        await orders.send_message(EventMessage(b"start"))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await orders.send_message(EventMessage(b"end"))
        await send({"type": "lifespan.shutdown.complete"})

    lived(inner, url)
    assert [message.data for message in asyncio.run(everything(url))] == [b"start", b"end"]


def test_the_state_of_the_application_is_kept() -> None:
    """The state of Starlette's lifespan reaches the handlers next to the clients."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        yield {"mine": "kept"}

    async def index(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.mine + "," + ",".join(request.state.events.clients))

    app = EventsMiddleware(Starlette(routes=[Route("/", index)], lifespan=lifespan), clients={"orders": "memory:///t"})
    with TestClient(app) as http:
        assert http.get("/").text == "kept,orders"


def test_a_server_without_lifespan() -> None:
    """The clients are created at the first connection, and close() closes them."""

    async def place_order(request: Request) -> PlainTextResponse:
        await request.state.events.clients["orders"].send_message(EventMessage(b"1"))
        return PlainTextResponse("placed")

    async def main() -> None:
        url = unused_url()
        app = EventsMiddleware(Starlette(routes=[Route("/", place_order)]), clients={"orders": url})
        with uvicorn_serving(app, lifespan="off") as address:
            async with asyncio.timeout(60), AsyncClient(timeout=60) as http:
                assert (await http.get(address.http("/"))).text == "placed"
        await app.close()
        assert len(await everything(url)) == 1

    asyncio.run(main())


def test_close_without_lifespan() -> None:
    """An application that keeps the lifespan from the middleware closes it itself."""

    async def main() -> None:
        seen: list[EventClient] = []

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["state"]["events"].clients["orders"])
            await seen[-1].send_message(EventMessage(b"1"))

        app = EventsMiddleware(inner, clients={"orders": EventConfig("orders", backend="memory")})
        for _ in range(2):
            await app({"type": "http"}, None, None)  # type: ignore[arg-type]
        assert seen[0] is seen[1]
        await app.close()
        await app.close()
        with pytest.raises(EventRuntimeError, match="closed"):
            await seen[0].send_message(EventMessage(b"2"))

    asyncio.run(main())


DAPHNE = """
    from events_core.integrations.asgi import EventsMiddleware, WebSocketEvents

    async def echo(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})

    app = EventsMiddleware(
        echo, clients={"websocket-events": "sqlite:events.db/web?subscription=all"}, websocket_events=WebSocketEvents()
    )
"""


@pytest.mark.parametrize("server", ["daphne", "hypercorn"])
def test_other_servers(server: str, tmp_path: Path) -> None:
    """Daphne, which has no lifespan, and Hypercorn publish the same events."""
    (tmp_path / "web.py").write_text(textwrap.dedent(DAPHNE))
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, fd = listening.getsockname()[1], listening.fileno()
        command = [sys.executable, "-m", server, *(["--fd", str(fd)] if server == "daphne" else ["-b", f"fd://{fd}"])]
        process = subprocess.Popen([*command, "web:app"], cwd=tmp_path, env=environ, pass_fds=[fd])

    async def main() -> None:
        # The socket listens already, so the connection waits there until the server has started.
        async with asyncio.timeout(60), connect(f"ws://127.0.0.1:{port}/ws", open_timeout=None) as websocket:
            await websocket.send("a")
            assert await websocket.recv() == "a"
        messages = await published(f"sqlite:{tmp_path}/events.db/web?subscription=all", 3)
        kinds = [body["event_type"] for body in bodies(messages)]
        assert kinds == ["client_connected", "client_message", "client_disconnected"]

    try:
        asyncio.run(main())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
