"""A server of the library websockets publishes what happens on its connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from events_core import EventMessage, EventRuntimeError, create_client
from events_core.integrations.outbox import Outbox
from events_core.integrations.websockets import (
    ConnectionWithEvents,
    WebSocketEvents,
    WebSocketServerWithEvents,
)

from .outboxes import until
from .serving import bodies, everything, published, unused_url


async def echo(connection: ServerConnection) -> None:
    async for word in connection:
        await connection.send(word)


def server(handler: Any, url: str, **options: Any) -> WebSocketServerWithEvents:
    return WebSocketServerWithEvents(handler, create_client(url), "127.0.0.1", 0, **options)


def address(running: WebSocketServerWithEvents) -> str:
    return f"ws://127.0.0.1:{next(iter(running.server.sockets)).getsockname()[1]}/ws"


def mozart(**choice: Any) -> WebSocketEvents[ServerConnection]:
    return WebSocketEvents(client_id=lambda connection: "mozart", **choice)


def run(test: Callable[[], Any]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(60):
            return await test()

    return asyncio.run(main())


def test_events_of_a_connection() -> None:
    """Connect, say two words and leave: the events have the shape of those of ASGI, in order."""

    async def test() -> None:
        url = unused_url()
        async with server(echo, url, events=mozart(payload="whole")) as running, connect(address(running)) as websocket:
            for word in ("one", b"two"):
                await websocket.send(word)
                assert await websocket.recv() == word
        assert running.outbox.stats.sent == 4
        messages = await everything(url)
        assert bodies(messages) == [
            {"event_type": "client_connected", "client_id": "mozart"},
            {"event_type": "client_message", "client_id": "mozart", "payload": "one"},
            {"event_type": "client_message", "client_id": "mozart", "payload": "dHdv", "payload_encoding": "base64"},
            {
                "event_type": "client_disconnected",
                "client_id": "mozart",
                "close_code": 1000,
                "messages_received": 2,
                "messages_sent": 2,
            },
        ]
        assert [dict(message.attributes) for message in messages] == [
            {"event_type": body["event_type"], "client_id": "mozart"} for body in bodies(messages)
        ]
        assert {message.ordering_key for message in messages} == {"mozart"}

    run(test)


def test_the_client_is_closed_with_the_server() -> None:
    """The server owns its client, and leaves none open."""

    async def test() -> None:
        client = create_client(unused_url())
        async with WebSocketServerWithEvents(echo, client, "127.0.0.1", 0):
            await client.ping(60)
        with pytest.raises(EventRuntimeError, match="closed"):
            await client.send_message(EventMessage(b""))

    run(test)


def test_the_client_is_closed_if_the_server_cannot_start() -> None:
    """The error goes on, and the client that the server owns does not stay open."""

    async def test() -> None:
        client = create_client(unused_url())
        await client.ping(60)
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
            async with WebSocketServerWithEvents(echo, client, "127.0.0.1", taken.getsockname()[1]):
                pass
        with pytest.raises(EventRuntimeError, match="closed"):
            await client.send_message(EventMessage(b""))

    run(test)


def test_a_refused_handshake_publishes_nothing() -> None:
    """A connection that the server refuses never reaches the handler."""

    async def test() -> None:
        url = unused_url()

        def refuse(connection: ServerConnection, request: Any) -> Any:
            return connection.respond(403, "no\n")

        async with server(echo, url, process_request=refuse) as running:
            with pytest.raises(InvalidStatus):
                await connect(address(running))
        assert await everything(url) == []

    run(test)


def code_of(handler: Any, leave: Callable[[Any], Any] | None = None) -> int | None:
    """Connect, say "a", let *leave* end the connection, and return the code of the event."""

    async def test() -> int | None:
        url = unused_url()
        async with server(handler, url, events=mozart(publish=["client_disconnected"])) as running:
            websocket = await connect(address(running))
            await websocket.send("a")
            if leave is not None:
                await leave(websocket)
            await websocket.wait_closed()
            (event,) = bodies(await published(url, 1))
        assert await everything(url) == []
        code: int | None = event["close_code"]
        return code

    result: int | None = run(test)
    return result


async def lose(websocket: Any) -> None:
    await websocket.recv()
    websocket.transport.abort()


async def leave_with(code: int, websocket: Any) -> None:
    await websocket.recv()
    await websocket.close(code)


async def returning(connection: ServerConnection) -> None:
    await connection.recv()


async def closing(connection: ServerConnection) -> None:
    await connection.recv()
    await connection.close(4002)


async def failing(connection: ServerConnection) -> None:
    await connection.recv()
    raise LookupError("a defect")


@pytest.mark.parametrize(
    ("handler", "leave", "code"),
    [
        (echo, lose, 1006),
        (echo, partial(leave_with, 4001), 4001),
        (returning, None, 1000),
        (closing, None, 4002),
        (failing, None, 1011),
    ],
    ids=["lost", "client", "returned", "server", "failed"],
)
def test_close_codes(handler: Any, leave: Any, code: int) -> None:
    """The event has the code, whoever ended the connection."""
    assert code_of(handler, leave) == code


def test_a_server_that_shuts_down() -> None:
    """When the server ends under its clients, each of them has left, and these events are sent before it is gone."""

    async def test() -> None:
        url = unused_url()
        async with server(echo, url, events=WebSocketEvents(publish=["client_disconnected"])) as running:
            websockets = [await connect(address(running)) for _ in range(5)]
        assert [body["close_code"] for body in bodies(await everything(url))] == [1001] * 5
        for websocket in websockets:
            await websocket.close()

    run(test)


def test_a_handler_that_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    """The server closes in time, sends what it has, and warns."""

    async def test() -> None:
        url = unused_url()
        released = asyncio.Event()

        async def stubborn(connection: ServerConnection) -> None:
            await connection.recv()
            await released.wait()

        async with server(stubborn, url, close_timeout=0.2) as running:
            websocket = await connect(address(running))
            await websocket.send("a")
            await until(lambda: running.outbox.stats.sent == 2)
        released.set()
        await running.server.wait_closed()
        assert running.outbox.stats.unsent == 1
        assert len(await everything(url)) == 2
        await websocket.close()

    with caplog.at_level(logging.WARNING, "events_core.websockets"):
        run(test)
    assert "did not end within 0.1 s" in caplog.text


@pytest.mark.parametrize(("payload", "fields"), [("none", {}), ("size", {"size": 6}), ("whole", {"payload": "abcdef"})])
def test_fragments(payload: Any, fields: dict[str, object]) -> None:
    """A message that the handler receives by its fragments is one event."""

    async def test() -> None:
        url = unused_url()

        async def stream(connection: ServerConnection) -> None:
            assert [fragment async for fragment in connection.recv_streaming()] == ["abc", "def"]

        async with (
            server(stream, url, events=mozart(payload=payload, publish=["client_message"])) as running,
            connect(address(running)) as websocket,
        ):
            await websocket.send(["abc", "def"])
            await websocket.wait_closed()
        assert bodies(await everything(url)) == [{"event_type": "client_message", "client_id": "mozart", **fields}]

    run(test)


def test_a_cancelled_receive_loses_no_message() -> None:
    """A handler that gives up waiting gets the message at its next call, also with the policy wait."""

    async def test() -> None:
        url = unused_url()
        got: list[str | bytes] = []

        async def impatient(connection: ServerConnection) -> None:
            with suppress(ConnectionClosed):
                while True:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.0001):
                            got.append(await connection.recv())

        outbox = partial(Outbox, policy="wait", max_messages=1)
        async with (
            server(impatient, url, events=mozart(payload="whole"), outbox=outbox) as running,
            connect(address(running)) as websocket,
        ):
            for number in range(200):
                await websocket.send(str(number))
            await until(lambda: len(got) == 200)
        assert got == [str(number) for number in range(200)]
        told = [body["payload"] for body in bodies(await everything(url)) if "payload" in body]
        assert told == got

    run(test)


def test_a_connection_class_of_the_application() -> None:
    """It must be derived from the library's, which the error says."""

    class Named(ConnectionWithEvents):
        name = "mine"

    async def test() -> None:
        names: list[str] = []

        async def look(connection: ServerConnection) -> None:
            assert isinstance(connection, Named)
            names.append(connection.name)

        async with (
            server(look, unused_url(), create_connection=Named) as running,
            connect(address(running)) as websocket,
        ):
            await websocket.wait_closed()
        assert names == ["mine"]
        with pytest.raises(TypeError, match="derived from ConnectionWithEvents"):
            server(echo, unused_url(), create_connection=ServerConnection)

    run(test)


def test_serve_forever() -> None:
    """It serves until its task is cancelled."""

    async def test() -> None:
        url = unused_url()
        async with server(echo, url) as running:
            serving = asyncio.create_task(running.serve_forever())
            async with connect(address(running)) as websocket:
                await websocket.send("a")
                assert await websocket.recv() == "a"
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
        assert len(await everything(url)) == 3

    run(test)
