"""The middleware publishes what happens on the WebSocket connections of real servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from events_core import EventConfig, EventMessage, create_client
from events_core.integrations.asgi import EventsMiddleware, WebSocketEvents
from events_core.integrations.outbox import Outbox
from tests.core.network_memory import NetworkClient, stall

from . import apps
from .serving import bodies, everything, published, unused_url, uvicorn_serving

NETWORK = f"{NetworkClient.__module__}:{NetworkClient.__name__}"
MOZART = {"client_id": lambda scope: "mozart"}


def wrapped(app: Any, url: str, **choice: Any) -> EventsMiddleware:
    return EventsMiddleware(app, clients={"websocket-events": url}, websocket_events=WebSocketEvents(**choice))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An echo, as short as ASGI allows."""
    if scope["type"] == "lifespan":
        raise ValueError("no lifespan")
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


def talked(app: Any, url: str, *said: str | bytes, path: str = "/ws", **options: Any) -> list[EventMessage]:
    """Connect to *app*, say something, close, shut the server down, and return all events."""

    async def main() -> list[EventMessage]:
        with uvicorn_serving(app) as address:
            async with asyncio.timeout(60), connect(address.ws(path), **options) as websocket:
                for word in said:
                    await websocket.send(word)
                    assert await websocket.recv() == word
        return await everything(url)

    return asyncio.run(main())


@pytest.mark.parametrize("framework", apps.ALL)
def test_every_framework(framework: Callable[..., Any]) -> None:
    """Two clients connect, say two words and leave: their events are there in order, with attributes and key."""

    async def main() -> None:
        url = unused_url()
        names = iter(["bach", "haydn"])
        app = framework(
            clients={"websocket-events": url},
            websocket_events=WebSocketEvents(payload="whole", client_id=lambda scope: next(names)),
        )
        with uvicorn_serving(app) as address:
            async with asyncio.timeout(60), connect(address.ws()) as bach, connect(address.ws()) as haydn:
                for word in ("one", "two"):
                    for websocket in (bach, haydn):
                        await websocket.send(word)
                        assert await websocket.recv() == word
        messages = await everything(url)
        for name in ("bach", "haydn"):
            own = [message for message in messages if message.ordering_key == name]
            assert bodies(own) == [
                {"event_type": "client_connected", "client_id": name},
                {"event_type": "client_message", "client_id": name, "payload": "one"},
                {"event_type": "client_message", "client_id": name, "payload": "two"},
                {
                    "event_type": "client_disconnected",
                    "client_id": name,
                    "close_code": 1000,
                    "messages_received": 2,
                    "messages_sent": 2,
                },
            ]
            for message in own:
                body = json.loads(message.data)
                assert message.attributes == {"event_type": body["event_type"], "client_id": name}
                assert list(body)[:3] == ["event_type", "client_id", "timestamp"]
                age = datetime.now(UTC) - datetime.fromisoformat(body["timestamp"])
                assert 0 <= age.total_seconds() < 120
        assert len(messages) == 8

    asyncio.run(main())


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_every_server_implementation(ws: str, loop: str) -> None:
    """Both protocol implementations of uvicorn, on both event loops, make the same events."""

    async def main() -> None:
        url = unused_url()
        with uvicorn_serving(wrapped(echo, url, **MOZART), ws=ws, loop=loop) as address:
            async with asyncio.timeout(60), connect(address.ws()) as websocket:
                await websocket.send("la")
                assert await websocket.recv() == "la"
        assert [body["event_type"] for body in bodies(await everything(url))] == [
            "client_connected",
            "client_message",
            "client_disconnected",
        ]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        ("none", [{}, {}]),
        ("size", [{"size": 4}, {"size": 3}]),
        ("whole", [{"payload": "für"}, {"payload": "AAH/", "payload_encoding": "base64"}]),
        (lambda data: {"letters": len(data)}, [{"payload": {"letters": 3}}, {"payload": {"letters": 3}}]),
    ],
    ids=["none", "size", "whole", "function"],
)
def test_payload(payload: Any, fields: list[dict[str, Any]]) -> None:
    """The application chooses how much of a text and of a binary message is published."""
    url = unused_url()
    messages = talked(
        wrapped(echo, url, payload=payload, publish=["client_message"], **MOZART), url, "für", b"\0\1\xff"
    )
    common = {"event_type": "client_message", "client_id": "mozart"}
    assert bodies(messages) == [{**common, **each} for each in fields]


def test_secrets_of_the_handshake_are_not_published() -> None:
    """Cookies, authorization and the query are in no event, and in no id."""
    url = unused_url()
    headers = {"Cookie": "session=tresor", "Authorization": "Bearer tresor", "X-Api-Key": "tresor"}
    messages = talked(wrapped(echo, url), url, "a", path="/ws?token=tresor", additional_headers=headers)
    assert len(messages) == 3
    assert "tresor" not in repr([(message.data, message.attributes, message.ordering_key) for message in messages])


def test_details_are_published_if_asked_for() -> None:
    """A function adds fields to client_connected, and cannot replace those that every event has."""
    url = unused_url()
    app = wrapped(
        echo,
        url,
        details=lambda scope: {"path": scope["path"], "event_type": "x"},
        publish=["client_connected"],
        **MOZART,
    )
    assert bodies(talked(app, url)) == [{"event_type": "client_connected", "client_id": "mozart", "path": "/ws"}]


def test_an_id_is_random_by_default() -> None:
    """Each connection has an id of its own, which all its events share."""
    url = unused_url()
    first = {body["client_id"] for body in bodies(talked(wrapped(echo, url), url, "a"))}
    second = {body["client_id"] for body in bodies(talked(wrapped(echo, url), url, "a"))}
    assert (len(first), len(second), len(first | second)) == (1, 1, 2)


def test_the_id_may_depend_on_what_the_application_learns() -> None:
    """The function is called after the accept, so it finds the path parameters of the router."""
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket

    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive()

    url = unused_url()
    app = wrapped(
        Starlette(routes=[WebSocketRoute("/rooms/{room}", greet)]),
        url,
        client_id=lambda scope: scope["path_params"]["room"],
    )
    messages = talked(app, url, path="/rooms/blue")
    assert {message.ordering_key for message in messages} == {"blue"}


@pytest.mark.parametrize("returned", ["", 7])
def test_a_wrong_id_costs_no_event(returned: object, caplog: pytest.LogCaptureFixture) -> None:
    """If the function fails or returns no text, the id is random, and the log says so."""
    url = unused_url()
    assert len(talked(wrapped(echo, url, client_id=lambda scope: returned), url, "a")) == 3
    assert "the id will be random" in caplog.text


def test_a_failing_function_costs_its_event_only(caplog: pytest.LogCaptureFixture) -> None:
    """If the payload function fails, the connection goes on, the other events are published, and the log says so."""
    url = unused_url()
    app = wrapped(echo, url, payload=lambda data: 1 / 0)
    kinds = [body["event_type"] for body in bodies(talked(app, url, "a"))]
    assert kinds == ["client_connected", "client_disconnected"]
    assert "ZeroDivisionError" in caplog.text


def test_a_refused_handshake_publishes_nothing() -> None:
    """An application that closes before it accepts has no client."""

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4403})

    async def main() -> None:
        url = unused_url()
        with uvicorn_serving(wrapped(refuse, url)) as address, pytest.raises(InvalidStatus):
            await connect(address.ws())
        assert await everything(url) == []

    asyncio.run(main())


def closing(app: Any, leave: Callable[[Any], Any] | None = None, **options: Any) -> dict[str, Any]:
    """Connect, say "a", let *leave* end the connection, and return the event of its end."""

    async def main() -> dict[str, Any]:
        url = unused_url()
        with uvicorn_serving(wrapped(app, url, publish=["client_disconnected"], **MOZART), **options) as address:
            async with asyncio.timeout(60):
                websocket = await connect(address.ws())
                await websocket.send("a")
                if leave is not None:
                    await leave(websocket)
                else:
                    await websocket.wait_closed()
                (event,) = bodies(await published(url, 1))
        assert await everything(url) == []
        return event

    return asyncio.run(main())


async def lose(websocket: Any) -> None:
    """End the connection as a crash of the client does."""
    await websocket.recv()
    websocket.transport.abort()


def test_a_lost_connection() -> None:
    """A client that is gone without a word has left, with code 1006 or 1005."""
    event = closing(echo, lose)
    assert event["close_code"] in (1005, 1006)
    assert event["messages_received"] == event["messages_sent"] == 1


def test_the_code_of_the_client() -> None:
    """The event has the code with which the client closed."""
    assert closing(echo, partial(_closed_with, 4001))["close_code"] == 4001


async def _closed_with(code: int, websocket: Any) -> None:
    await websocket.recv()
    await websocket.close(code)


def test_the_code_of_the_application() -> None:
    """The event has the code with which the application closed."""

    async def farewell(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            await send({"type": "websocket.close", "code": 4002})

    assert closing(farewell)["close_code"] == 4002


def test_a_message_that_overtakes_the_accept() -> None:
    """An application that receives while it accepts has its client connected before the client says anything."""

    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        receiving = asyncio.create_task(receive())
        await send({"type": "websocket.accept"})
        await receiving

    async def main() -> None:
        url = unused_url()
        app = wrapped(hasty, url, **MOZART)
        coming = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "a"}])
        said = asyncio.Event()

        async def receive() -> dict[str, Any]:
            message = next(coming)
            if message["type"] == "websocket.receive":
                asyncio.get_running_loop().call_later(0.01, said.set)
            return message

        async def send(message: Any) -> None:
            await said.wait()  # the accept takes longer than the first message

        await app({"type": "websocket"}, receive, send)
        await app.close()
        kinds = [body["event_type"] for body in bodies(await everything(url))]
        assert kinds == ["client_connected", "client_message", "client_disconnected"]

    asyncio.run(main())


def test_with_the_policy_wait_a_connection_waits() -> None:
    """While the outbox is full, the application gets no further message; afterwards it gets all of them."""

    async def main() -> None:
        url = unused_url()
        config = EventConfig(EventConfig.from_url(url).topic_name, backend=NETWORK)
        app = EventsMiddleware(
            echo,
            clients={"websocket-events": config},
            websocket_events=WebSocketEvents(),
            outbox=partial(Outbox, policy="wait", max_messages=1),
        )
        async with create_client(url) as client, client.subscribe():
            pass
        with uvicorn_serving(app) as address:
            async with asyncio.timeout(60), connect(address.ws()) as websocket:
                with stall():
                    for number in range(10):
                        await websocket.send(str(number))
                    answers = 0
                    with suppress(TimeoutError):
                        while True:
                            async with asyncio.timeout(0.5):
                                assert await websocket.recv() == str(answers)
                            answers += 1
                    assert answers < 10
                while answers < 10:
                    assert await websocket.recv() == str(answers)
                    answers += 1
        assert len(await everything(url)) == 12

    asyncio.run(main())


def test_an_application_that_fails() -> None:
    """The client has left, and the code is not known."""

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            raise LookupError("a defect")

    assert closing(fail)["close_code"] is None


def test_a_client_that_is_lost_while_the_application_sends() -> None:
    """An application that only sends learns of the loss when it sends, and so does the event."""

    async def chatter(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while True:
                await send({"type": "websocket.send", "text": "a" * 10_000})
                await asyncio.sleep(0.001)

    assert closing(chatter, lose)["close_code"] == 1006


def test_a_server_that_shuts_down() -> None:
    """When the server ends under its clients, each of them has left, and these events are sent before it is gone."""

    async def main() -> None:
        url = unused_url()
        with uvicorn_serving(wrapped(echo, url, publish=["client_disconnected"])) as address:
            websockets = [await connect(address.ws()) for _ in range(5)]
        codes = [body["close_code"] for body in bodies(await everything(url))]
        assert codes == [1012] * 5
        for websocket in websockets:
            await websocket.close()

    asyncio.run(main())


def test_an_order_that_the_backend_does_not_keep() -> None:
    """If the client does not order messages, the events have no key."""
    url = f"{unused_url()}&ordering=false"
    messages = talked(wrapped(echo, url, **MOZART), url, "a")
    assert {message.ordering_key for message in messages} == {None}
    assert len(messages) == 3


def test_the_outbox_is_the_applications_choice() -> None:
    """The application makes the outbox, and finds its statistics in the state."""
    seen: list[Outbox] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            seen.append(scope["state"]["events"].outbox)
        await echo(scope, receive, send)

    url = unused_url()
    app = EventsMiddleware(
        look,
        clients={"websocket-events": url},
        websocket_events=WebSocketEvents(),
        outbox=partial(Outbox, policy="wait", max_messages=7),
    )
    assert len(talked(app, url, "a")) == 3
    assert seen[0].stats.sent == 3


@pytest.mark.parametrize("wrong", [{"publish": "client_message"}, {"publish": ["joined"]}, {"payload": "some"}])
def test_a_wrong_choice_is_refused(wrong: dict[str, Any]) -> None:
    """An unknown event and an unknown payload raise a ValueError that names the choices."""
    with pytest.raises(ValueError, match="must be"):
        WebSocketEvents(**wrong)
