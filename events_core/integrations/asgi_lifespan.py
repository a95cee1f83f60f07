"""The lifespan of an ASGI application, answered also if the application does not take part in it.

The server sends ``lifespan.startup`` and ``lifespan.shutdown``, and waits for an answer to each.  :class:`Lifespan`
stands between the server and the application:

1. ``lifespan.startup`` comes: it calls *start*.  If that raises, it answers ``lifespan.startup.failed``.
2. The application gets the event and answers.  If it raises or returns without an answer, as Channels, Django and many
   small applications do, then :class:`Lifespan` answers in its place.
3. ``lifespan.shutdown`` comes, and the application ends its own parts first.  Before its answer goes to the server,
   *stop* is called: the server may end the process as soon as it has the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

__all__ = ["ASGIApp", "Lifespan", "Message", "Receive", "Scope", "Send"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("events_core.asgi")


class Lifespan:
    """One lifespan, between a server and an application.

    :param start: called once, before the application starts.
    :param stop: awaited once, after the application has stopped, however that happened.
    """

    def __init__(self, receive: Receive, send: Send, *, start: Callable[[], None], stop: Callable[[], Awaitable[None]]):
        self._receive = receive
        self._send = send
        self._start = start
        self._stop = stop
        self._startup: Message | None = None
        self._is_answered = False
        self._is_shutting_down = False
        self._is_stopped = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the lifespan of *app* from its start to its end.

        :raises Exception: the exception of *app* if it answered the startup before it raised.
        """
        # Before the application runs, so that it finds the clients also while it starts.
        startup = await self._receive()
        try:
            self._start()
        except Exception as error:
            _log.exception("the clients could not be created")
            await self._send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        self._startup = startup
        try:
            await self._run_app(app, scope)
            await self._answer_the_rest()
        finally:
            await self._stop_once()

    async def _run_app(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive_for_app, self._send_for_app)
        except Exception as error:
            if self._is_answered:
                raise
            # The specification: an application that raises here has no lifespan, and the server goes on.
            if self._startup is None:
                _log.warning("the application failed when it started, and goes on without lifespan", exc_info=error)
            else:
                _log.info("the application has no lifespan: %s", error)

    async def _answer_the_rest(self) -> None:
        """Answer the server for an application that has returned."""
        if not self._is_answered:
            await self._send_for_app({"type": "lifespan.startup.complete"})
        while not self._is_shutting_down:
            await self._receive_for_app()
        if not self._is_stopped:
            await self._send_for_app({"type": "lifespan.shutdown.complete"})

    async def _receive_for_app(self) -> Message:
        startup, self._startup = self._startup, None
        if startup is not None:
            return startup
        message = await self._receive()
        self._is_shutting_down = message["type"] == "lifespan.shutdown"
        return message

    async def _send_for_app(self, message: Message) -> None:
        kind = message["type"]
        if not kind.startswith("lifespan."):
            raise ValueError(f"the application answered the lifespan with {kind!r}")
        self._is_answered = True
        if kind != "lifespan.startup.complete":
            # It failed to start, or it has stopped: in both cases the server ends when it gets this.
            self._is_shutting_down = True
            await self._stop_once()
        await self._send(message)

    async def _stop_once(self) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            await self._stop()
