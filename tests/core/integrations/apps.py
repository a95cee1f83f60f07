"""One echo application in each framework, with the middleware around it.

Each framework is imported in its function.  FastAPI and Litestar read the annotations of a handler, and do not find
names that are local to a function, so these annotations are set as objects.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from events_core.integrations.asgi import EventsMiddleware

App = Callable[..., Any]


def starlette(**options: Any) -> App:
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text(await websocket.receive_text())
        except WebSocketDisconnect:
            pass

    app = Starlette(routes=[WebSocketRoute("/ws", echo)])
    app.add_middleware(EventsMiddleware, **options)
    return app


def fastapi(**options: Any) -> App:
    from fastapi import FastAPI, WebSocket

    app = FastAPI()
    app.add_middleware(EventsMiddleware, **options)

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    echo.__annotations__ = {"websocket": WebSocket, "return": None}
    app.add_api_websocket_route("/ws", echo)
    return app


def litestar(**options: Any) -> App:
    from litestar import Litestar, WebSocket, websocket

    async def echo(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        async for text in socket.iter_data():
            await socket.send_text(text)

    echo.__annotations__ = {"socket": WebSocket, "return": None}
    return EventsMiddleware(Litestar(route_handlers=[websocket("/ws")(echo)]), **options)


def quart(**options: Any) -> App:
    from quart import Quart, websocket

    app = Quart(__name__)

    @app.websocket("/ws")
    async def echo() -> None:
        while True:
            await websocket.send(await websocket.receive())

    app.asgi_app = EventsMiddleware(app.asgi_app, **options)  # type: ignore[method-assign]
    return app


def channels(**options: Any) -> App:
    from django.conf import settings

    if not settings.configured:
        settings.configure(INSTALLED_APPS=["channels"], SECRET_KEY=os.urandom(8).hex())
        import django

        django.setup()
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.routing import ProtocolTypeRouter, URLRouter
    from django.urls import path

    class Echo(AsyncWebsocketConsumer):  # type: ignore[misc]
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.send(text_data, bytes_data)

    # It refuses the lifespan with a ValueError.
    return EventsMiddleware(ProtocolTypeRouter({"websocket": URLRouter([path("ws", Echo.as_asgi())])}), **options)


def plain(**options: Any) -> App:
    """An application without a framework, which knows nothing of lifespan."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})

    return EventsMiddleware(app, **options)


ALL = [starlette, fastapi, litestar, quart, channels, plain]
