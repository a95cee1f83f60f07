"""Waits that are long enough for a busy machine, and that end as soon as they can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from events_core import EventError

__all__ = ["PATIENCE", "failure_naming", "succeeds"]

ErrorT = TypeVar("ErrorT", bound=EventError)

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


async def failure_naming(reason: str, kind: type[ErrorT], operation: Callable[[], Awaitable[object]]) -> ErrorT:
    """Do *operation* until its error names *reason*, and return that error.

    The test gives the operation a short time, in which a busy machine may not get as far as the reason.
    """
    ends = time.monotonic() + PATIENCE
    while True:
        with pytest.raises(kind) as caught:
            await operation()
        if reason in str(caught.value):
            return caught.value
        assert time.monotonic() < ends, f"no {reason!r} in {caught.value}"
