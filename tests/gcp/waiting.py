"""Waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from events_core import EventClient, EventMessage
from events_core.engine import client, closing, receiver
from events_gcp import pulls, source, stream

PATIENCE = 60.0
"""Seconds within which something that must happen does happen, also on a busy machine."""


async def until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds; fail after :data:`PATIENCE`."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def close_patiently(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let a close take as long as it needs to give everything back, for :data:`PATIENCE` at most.

    Without this, ``close(timeout=0)`` takes 2 s.  On a busy machine, messages that it has not given back by then come
    again when their leases are over.
    """
    for module in (client, closing, receiver):
        patch(module, "SHORTEST_CLOSE", PATIENCE)
    for inlet in (pulls, stream):
        patch(inlet, "DRAIN_TIMEOUT", PATIENCE)
    patch(closing.CloseTime, "step", lambda *_: PATIENCE)
    patch(source, "_CLOSE_TIMEOUT", PATIENCE)


async def send_until_done(sender: EventClient, message: EventMessage, receiving: asyncio.Task[Any]) -> None:
    """Send *message* until *receiving* is done.

    A receiver that creates its subscription again creates the topic first.  A message that is sent in between reaches
    nobody.
    """
    while not receiving.done():
        await sender.send_message(message)
        await asyncio.wait([receiving], timeout=0.5)
