"""Waits that are long enough for a busy machine, and that end as soon as they can."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from events_core import EventError

__all__ = ["PATIENCE", "succeeds"]

PATIENCE = 60.0
"""Seconds within which everything that must happen does happen."""


async def succeeds(operation: Callable[[], Awaitable[object]]) -> None:
    """Do *operation* until it succeeds: the test gives it a short time, and a busy machine may need longer."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await operation()
            except EventError as error:
                if not error.retryable:
                    raise
            else:
                return
