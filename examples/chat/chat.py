"""A chat whose messages travel through a broker, as the events of its WebSocket connections.

Run ``python chat.py [FILE.toml] [--port PORT]``.  The file names the broker.  All servers on one broker are one chat.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from events_core import ReceivedMessage, consume, create_client
from events_core.integrations.asgi import EventsMiddleware, WebSocketEvents
from events_core.integrations.outbox import Outbox

FOLDER = Path(__file__).parent
MOST_BEHIND = 100
"""Number of events that a page may be behind.  A page that is slower misses the oldest."""

present: set[asyncio.Queue[str]] = set()
"""The events for each page that is connected to this server."""


async def page(request: Request) -> FileResponse:
    return FileResponse(FOLDER / "chat.html")


async def chat(websocket: WebSocket) -> None:
    """Serve one page.  The middleware publishes what it says, and the broker brings that to all pages."""
    await websocket.accept()
    events: asyncio.Queue[str] = asyncio.Queue(MOST_BEHIND)
    present.add(events)
    showing = asyncio.create_task(show(websocket, events))
    try:
        # Not iter_text(): it fails if show() has noticed before that the page has gone.
        while (await websocket.receive())["type"] == "websocket.receive":
            pass
    finally:
        present.discard(events)
        showing.cancel()


async def show(websocket: WebSocket, events: asyncio.Queue[str]) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text(await events.get())


async def forward(message: ReceivedMessage) -> None:
    """Give an event that comes back from the broker to all pages."""
    for events in present:
        if events.full():
            events.get_nowait()
        events.put_nowait(message.data_as_string())


@asynccontextmanager
async def receiving(app: Starlette, file: Path) -> AsyncIterator[None]:
    stop = asyncio.Event()
    # Without a name, the subscription is of this server alone: each server gets every event.
    async with create_client("websocket-events", file=file) as client, client.subscribe() as receiver:
        forwarding = asyncio.create_task(consume(receiver, forward, stop=stop))
        yield
        stop.set()
        await forwarding


def application(file: Path) -> EventsMiddleware:
    """Return the chat on the broker of *file*."""
    routes = [Route("/", page), WebSocketRoute("/chat/{name}", chat)]
    return EventsMiddleware(
        Starlette(routes=routes, lifespan=partial(receiving, file=file)),
        file=file,
        websocket_events=WebSocketEvents(payload="whole", client_id=lambda scope: scope["path_params"]["name"]),
        # A chat must not lose a word, so a page that says much waits while the broker is slow.
        outbox=partial(Outbox, policy="wait", max_messages=1000),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=FOLDER / "sqlite.toml")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    uvicorn.run(application(arguments.file), port=arguments.port, ws_max_size=10_000)
