"""A client and a receiver of one test, behind a proxy that fails requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from events_core import EventError, EventReceiver
from events_sqs import SQSClient

from .console import Console
from .faults import FaultyProxy, faulty

SENDS = ("Publish", "PublishBatch", "SendMessage", "SendMessageBatch")
"""The operations that store messages."""


class Scene(NamedTuple):
    """The parts of :func:`disturbed`."""

    proxy: FaultyProxy
    both: SQSClient
    """The client that sends and receives."""
    receiver: EventReceiver


@asynccontextmanager
async def disturbed(console: Console, **options: str) -> AsyncIterator[Scene]:
    """Connect *console*, and enter with a proxy to its server, a client behind it, and its receiver."""
    async with (
        console,
        faulty(console.server.url) as proxy,
        console.client(endpoint_url=proxy.url, **options) as both,
        both.subscribe() as receiver,
    ):
        yield Scene(proxy, both, receiver)


def refuse_sends(proxy: FaultyProxy, code: str, status: int, times: float = 1) -> None:
    """Refuse the next requests to send, of whatever form."""
    for operation in SENDS:
        proxy.refuse(operation, code, status=status, times=times)


def sends(proxy: FaultyProxy) -> int:
    """Return how many requests to send came."""
    return sum(map(proxy.count, SENDS))


def outcome(error: object) -> tuple[str, bool]:
    """Return the code of an error of the library, and whether the call may be repeated."""
    assert isinstance(error, EventError)
    return error.code, error.retryable
