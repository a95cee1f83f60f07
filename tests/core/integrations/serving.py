"""Real servers for an application, and the events that it has published."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal

import attrs
import uvicorn

from events_core import EventMessage, create_client

_topics = count()

App = Callable[[Any, Any, Any], Awaitable[None]]


def unused_url() -> str:
    """Return the URL of a topic in memory that nobody else uses, with a subscription that gets every message."""
    return f"memory:///web-{next(_topics)}?subscription=all"


@attrs.frozen
class Address:
    """The address of a server."""

    port: int

    def http(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def ws(self, path: str = "/ws") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"


@contextmanager
def uvicorn_serving(app: App, *, lifespan: Literal["auto", "on", "off"] = "auto", **options: Any) -> Iterator[Address]:
    """Serve *app* with uvicorn in a thread; at the end, the server shuts down as on SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, lifespan=lifespan, log_level="critical", **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            _wait(lambda: server.started or not thread.is_alive())
            yield Address(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server did not end"


def _wait(condition: Callable[[], bool]) -> None:
    ended = threading.Event()
    for _ in range(6000):
        if condition():
            return
        ended.wait(0.01)
    raise TimeoutError("the condition did not hold within 60 s")


async def published(url: str, number: int) -> list[EventMessage]:
    """Return the first *number* messages of the topic, as soon as they are there."""
    messages: list[EventMessage] = []
    async with asyncio.timeout(60), create_client(url) as client, client.subscribe() as receiver:
        while len(messages) < number:
            messages += (batch := await receiver.receive_messages(number))
            await receiver.acknowledge_messages(batch)
    return messages


async def everything(url: str) -> list[EventMessage]:
    """Return all messages that the topic has now."""
    messages: list[EventMessage] = []
    async with asyncio.timeout(60), create_client(url) as client, client.subscribe() as receiver:
        while batch := await receiver.receive_messages(1000, timeout=0):
            messages += batch
            await receiver.acknowledge_messages(batch)
    return messages


def bodies(messages: list[EventMessage]) -> list[dict[str, Any]]:
    """Return the JSON of events, without what differs in each run."""
    return [
        {name: value for name, value in json.loads(message.data).items() if name not in ("timestamp", "duration")}
        for message in messages
    ]
