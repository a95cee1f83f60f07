"""Waiting for what must come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds, which it must within 20 s."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
