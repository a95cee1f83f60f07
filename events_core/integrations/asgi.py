"""A pure ASGI middleware: it opens clients for HTTP handlers, and publishes the events of WebSocket connections.

It needs no framework, and serves FastAPI, Starlette, Litestar, Quart, Django Channels and plain ASGI applications.

* Lifespan: it creates the clients before the application starts.  When the application has stopped, it sends the events
  that wait, and closes the clients.  If the server has no lifespan, the clients are created at the first connection.
* HTTP: handlers find the clients in ``scope["state"]["events"]``; Starlette and FastAPI call that
  ``request.state.events``.
* WebSocket: it publishes the events of :mod:`events_core.integrations.websocket_events` through an outbox.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import attrs

from events_core import EventClient, EventConfig, create_client
from events_core.integrations.asgi_lifespan import ASGIApp, Lifespan, Message, Receive, Scope, Send
from events_core.integrations.outbox import Outbox
from events_core.integrations.websocket_events import ConnectionEvents, WebSocketEvents

__all__ = ["ASGIApp", "AppEvents", "EventsMiddleware", "Message", "Receive", "Scope", "Send", "WebSocketEvents"]

_log = logging.getLogger("events_core.asgi")

_STATE = "events"
"""The key of :class:`AppEvents` in ``scope["state"]``."""

_ABNORMAL = 1006
"""The close code of a connection that was lost (RFC 6455, 7.1.5)."""


@attrs.frozen(kw_only=True, eq=False)
class AppEvents:
    """What the middleware has opened for an application; ``scope["state"]["events"]``."""

    clients: Mapping[str, EventClient]
    """The clients by name.  You may use them from any task, but you must not close them."""
    outbox: Outbox | None
    """The outbox of the WebSocket events, with its statistics; ``None`` without such events."""

    async def close(self, timeout: float) -> None:
        """Send what waits in the outbox, then close the clients; within *timeout* seconds, or 2 if that is shorter."""
        ends = time.monotonic() + timeout
        if self.outbox is not None:
            # What the outbox leaves over is for the clients, which have sends of HTTP handlers.
            await self.outbox.close(timeout - min(2.0, timeout / 4))
        closing = [client.close(max(0.0, ends - time.monotonic())) for client in self.clients.values()]
        for result in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(result, BaseException):
                _log.error("a client could not be closed", exc_info=result)


class EventsMiddleware:
    """Opens clients for an ASGI application, and publishes the events of its WebSocket connections.

    ::

        app.add_middleware(
            EventsMiddleware,
            clients=["orders"],
            websocket_events=WebSocketEvents(payload="size"),
            file="events.toml",
        )

    :param app: the application.
    :param clients: names of clients, each looked up as in ``create_client(name, file=file)``; or a mapping of names to
        configurations or URLs.
    :param file: a TOML file with the clients.
    :param websocket_events: the choice of what is published about WebSocket connections; ``None`` publishes nothing.
    :param websocket_client: name of the client that publishes it.  You need not repeat it in *clients*.
    :param outbox: makes the outbox of these events, for example ``partial(Outbox, policy="drop_oldest")``.
    :param close_timeout: longest time, in seconds, for sending what waits and closing the clients at shutdown.  A last
        2 seconds for closing may be added.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        clients: Iterable[str] | Mapping[str, EventConfig | str] = (),
        file: str | os.PathLike[str] | None = None,
        websocket_events: WebSocketEvents[Scope] | None = None,
        websocket_client: str = "websocket-events",
        outbox: Callable[[EventClient], Outbox] = Outbox,
        close_timeout: float = 15.0,
    ) -> None:
        if isinstance(clients, str):
            raise TypeError(f"clients must be a list of names or a mapping, as in clients=[{clients!r}]")
        self._app = app
        configured = clients if isinstance(clients, Mapping) else {}
        names = [*clients, *([websocket_client] if websocket_events is not None else [])]
        self._create: Mapping[str, Callable[[], EventClient]] = {
            name: partial(create_client, configured[name]) if name in configured else _by_name(name, file)
            for name in names
        }
        self._websocket_events = websocket_events
        self._websocket_client = websocket_client
        self._make_outbox = outbox
        self._close_timeout = close_timeout
        self._opened: AppEvents | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan, as ASGI 3 defines it."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        # A server with lifespan state gives each connection the state of its own lifespan.
        events: AppEvents = scope.get("state", {}).get(_STATE) or self._open()
        # A copy: the specification lets a middleware change only its own.
        inner = {**scope, "state": {**scope.get("state", {}), _STATE: events}}
        if scope["type"] == "websocket" and self._websocket_events is not None and events.outbox is not None:
            told = ConnectionEvents(self._websocket_events, events.outbox)
            await _Connection(self._app, inner, receive, send, told).run()
        else:
            await self._app(inner, receive, send)

    async def close(self) -> None:
        """Send what waits and close the clients.

        Call it only if the server or the framework keeps the lifespan from the middleware.
        """
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close(self._close_timeout)

    def _open(self) -> AppEvents:
        """Return the open clients, and create them if this is the first use.

        :raises ConfigurationError: if a client is not configured, or not well.
        """
        if self._opened is None:
            clients = {name: create() for name, create in self._create.items()}
            outbox = None if self._websocket_events is None else self._make_outbox(clients[self._websocket_client])
            self._opened = AppEvents(clients=clients, outbox=outbox)
        return self._opened

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        opened: AppEvents | None = None

        def start() -> None:
            nonlocal opened
            # A client that a former lifespan has closed cannot be opened again, so each lifespan creates its own.
            self._opened = None
            opened = self._open()
            if "state" in scope:  # the server hands it on to each connection
                scope["state"][_STATE] = opened

        async def stop() -> None:
            if self._opened is opened:
                self._opened = None
            # If only the lifespan of the application has failed, the server goes on, and finds new clients.
            scope.get("state", {}).pop(_STATE, None)
            if opened is not None:
                await opened.close(self._close_timeout)

        await Lifespan(receive, send, start=start, stop=stop).run(self._app, scope)


def _by_name(name: str, file: str | os.PathLike[str] | None) -> Callable[[], EventClient]:
    return partial(create_client, name, file=file)


class _Connection:
    """One WebSocket connection, between the server and the application."""

    __slots__ = ("_app", "_close_code", "_events", "_receive", "_scope", "_send")

    def __init__(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, events: ConnectionEvents[Scope]
    ) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._events = events
        self._close_code: int | None = None

    async def run(self) -> None:
        try:
            await self._app(self._scope, self._receive_for_app, self._send_for_app)
        finally:
            # An application that has returned, failed or was cancelled; usually the connection has ended before.
            self._events.disconnected(self._close_code)

    async def _receive_for_app(self) -> Message:
        # Before receiving: if the application cancels this while it waits for room, no message of the client is lost.
        await self._events.room()
        message = await self._receive()
        match message["type"]:
            case "websocket.receive":
                # The accept may still be under way in another task of the application.
                self._events.connected(self._scope)
                text = message.get("text")
                self._events.received(message["bytes"] if text is None else text)
            case "websocket.disconnect":
                self._events.disconnected(message.get("code", 1005))
        return message

    async def _send_for_app(self, message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                # First the accept: a client that is gone by now was never connected.
                await self._send(message)
                self._events.connected(self._scope)
            case "websocket.close":
                self._close_code = message.get("code", 1000)
                await self._send(message)
                self._events.disconnected(self._close_code)
            case "websocket.send":
                await self._send_data(message)
            case _:
                await self._send(message)

    async def _send_data(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            # The specification: sending to a client that is gone raises an OSError.
            self._close_code = _ABNORMAL
            raise
        self._events.sent()
