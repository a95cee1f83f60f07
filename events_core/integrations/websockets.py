"""A server of the library ``websockets`` that publishes the events of its connections.

:class:`WebSocketServerWithEvents` is ``websockets.asyncio.server.serve`` with an events client: the handler gets its
connections as usual, and the server publishes the events of :mod:`events_core.integrations.websocket_events`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, overload

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.frames import CloseCode

from events_core import EventClient
from events_core.integrations.outbox import Outbox
from events_core.integrations.websocket_events import ConnectionEvents, WebSocketEvents

if TYPE_CHECKING:
    from websockets.typing import DataLike

__all__ = ["ConnectionWithEvents", "WebSocketEvents", "WebSocketServerWithEvents"]

_log = logging.getLogger("events_core.websockets")

Data: TypeAlias = str | bytes


class ConnectionWithEvents(ServerConnection):
    """A connection that publishes what its handler receives, and counts what it sends.

    If your server needs a connection class of its own, derive it from this one and give it as ``create_connection``.
    """

    events: ConnectionEvents[ServerConnection] | None = None
    """The events of this connection; ``None`` until its handler begins."""

    @overload
    async def recv(self, decode: Literal[True]) -> str: ...

    @overload
    async def recv(self, decode: Literal[False]) -> bytes: ...

    @overload
    async def recv(self, decode: bool | None = None) -> Data: ...

    async def recv(self, decode: bool | None = None) -> Data:
        """Receive a message as ``ServerConnection`` does, and publish ``client_message``.

        With the outbox policy ``wait``, it waits for room first.  Cancelling it loses no message.
        """
        if self.events is None:
            return await super().recv(decode)
        # Before receiving: if the handler cancels this while it waits for room, no message of the client is lost.
        await self.events.room()
        data = await super().recv(decode)
        self.events.received(data)
        return data

    @overload
    def recv_streaming(self, decode: Literal[True]) -> AsyncIterator[str]: ...

    @overload
    def recv_streaming(self, decode: Literal[False]) -> AsyncIterator[bytes]: ...

    @overload
    def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Data]: ...

    async def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Data]:
        """Receive a message by its fragments, and publish ``client_message`` after the last one.

        The fragments are kept until then, unless the events publish no part of the payload.
        """
        if self.events is not None:
            await self.events.room()
        kept: list[Data] = []
        async for fragment in super().recv_streaming(decode):
            if self.events is not None and self.events.keeps_payload:
                kept.append(fragment)
            yield fragment
        if self.events is not None:
            self.events.received(_joined(kept))

    async def send(
        self, message: DataLike | Iterable[DataLike] | AsyncIterable[DataLike], *, text: bool | None = None
    ) -> None:
        """Send a message as ``ServerConnection`` does, and count it.  ``broadcast`` does not count."""
        await super().send(message, text=text)
        if self.events is not None:
            self.events.sent()


def _joined(fragments: Sequence[Data]) -> Data:
    texts = [fragment for fragment in fragments if isinstance(fragment, str)]
    return "".join(texts) if texts else b"".join(fragment for fragment in fragments if isinstance(fragment, bytes))


Handler: TypeAlias = Callable[[ServerConnection], Awaitable[None]]


class WebSocketServerWithEvents:
    """A WebSocket server and an events client in one object.

    ::

        client = create_client("websocket-events", file="events.toml")
        async with WebSocketServerWithEvents(echo, client, "localhost", 8765) as server:
            await server.serve_forever()

    At the end of the block the server closes its connections and waits for their handlers.  Then it sends the events
    that wait, and closes the client.  All that takes *close_timeout* seconds at most; closing the client may add 2
    seconds.  A handler that runs for longer goes on without events, and the log says so.

    :param handler: serves one connection, as for ``websockets.asyncio.server.serve``.
    :param client: publishes the events.  The server owns it from now on, and closes it, also if it cannot start.
    :param host: address to listen at.
    :param port: port to listen at; 0 is any free one.
    :param events: the choice of what is published.
    :param outbox: makes the outbox, for example ``partial(Outbox, policy="drop_oldest")``.
    :param close_timeout: longest time for closing, in seconds.
    :param options: all other arguments of ``serve``.
    :raises TypeError: for a *create_connection* that is not derived from :class:`ConnectionWithEvents`.
    """

    def __init__(
        self,
        handler: Handler,
        client: EventClient,
        host: str | None = None,
        port: int | None = None,
        *,
        events: WebSocketEvents[ServerConnection] | None = None,
        outbox: Callable[[EventClient], Outbox] = Outbox,
        close_timeout: float = 15.0,
        **options: Any,
    ) -> None:
        options.setdefault("create_connection", ConnectionWithEvents)
        if not issubclass(options["create_connection"], ConnectionWithEvents):
            raise TypeError("create_connection must be derived from ConnectionWithEvents, or it publishes nothing")
        self._handler = handler
        self._client = client
        self._events: WebSocketEvents[ServerConnection] = events or WebSocketEvents()
        self._outbox = outbox(client)
        self._close_timeout = close_timeout
        # ``serve`` needs the running loop, so it is called later.
        self._start = partial(serve, self._handle, host, port, **options)
        self._server: Server | None = None

    @property
    def outbox(self) -> Outbox:
        """The outbox of the events, with its statistics."""
        return self._outbox

    @property
    def server(self) -> Server:
        """The server of ``websockets``, with its sockets and connections.

        :raises RuntimeError: before the ``async with`` block.
        """
        if self._server is None:
            raise RuntimeError("the server has not started; enter it with 'async with'")
        return self._server

    async def serve_forever(self) -> None:
        """Serve until the task is cancelled."""
        await self.server.serve_forever()

    async def close(self) -> None:
        """Close the server, send the events that wait, and close the client; see the class.  You may call it again."""
        ends = time.monotonic() + self._close_timeout
        if self._server is not None:
            await self._close_server(self._server, self._close_timeout / 2)
        # After the handlers, because their last events are among those that wait.
        left = max(0.0, ends - time.monotonic())
        await self._outbox.close(left - min(2.0, left / 4))
        await self._client.close(max(0.0, ends - time.monotonic()))

    async def _close_server(self, server: Server, timeout: float) -> None:
        server.close()
        try:
            async with asyncio.timeout(timeout):
                await server.wait_closed()
        except TimeoutError:
            _log.warning("a connection or its handler did not end within %g s; its further events are lost", timeout)

    async def _handle(self, connection: ServerConnection) -> None:
        assert isinstance(connection, ConnectionWithEvents)
        events = connection.events = ConnectionEvents(self._events, self._outbox)
        events.connected(connection)
        try:
            await self._handler(connection)
        except Exception:
            await connection.close(CloseCode.INTERNAL_ERROR)
            raise
        else:
            # The server would do that next.  Here it is done first, so that the event has the close code.
            await connection.close()
        finally:
            events.disconnected(connection.close_code)

    async def __aenter__(self) -> Self:
        try:
            self._server = await self._start()
        except (Exception, asyncio.CancelledError):
            await self.close()  # the block is not entered, so nobody else would close the client
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
