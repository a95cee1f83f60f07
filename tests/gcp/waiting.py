"""Waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds; fail after 20 s."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
