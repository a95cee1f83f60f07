"""Waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds within which something that must happen does happen, also on a busy machine."""


async def until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds; fail after :data:`PATIENCE`."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)
