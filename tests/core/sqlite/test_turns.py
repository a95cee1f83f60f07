"""Senders that never pause leave room for other operations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from events_core import EventMessage
from events_core.backends.sqlite import SQLiteClient

SENDERS = 64
PINGS = 20


def test_others_get_their_turn_while_there_is_always_something_to_send(client: Callable[..., SQLiteClient]) -> None:
    """P5: although the next batch is ready whenever one is over."""
    sent = asyncio.run(ping_while_sending(client()))
    assert sent < PINGS * 10 * SENDERS, "each ping waited for many batches"


async def ping_while_sending(client: SQLiteClient) -> int:
    """Return how many messages were sent while a few pings were answered."""
    sent = 0
    is_over = False

    async def send() -> None:
        nonlocal sent
        while not is_over:
            await client.send_message(EventMessage(b"x"))
            sent += 1

    async with client, asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        for _ in range(SENDERS):
            tasks.create_task(send())
        for _ in range(PINGS):
            await client.ping(60)
        is_over = True
    return sent
