"""Waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when *condition* holds; fail after *seconds*.

    The condition runs in a thread, because it may ask a server.
    """
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)
