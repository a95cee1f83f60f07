"""The kit's sweep reaches every point at which a coroutine waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from events_core.testing.interruption import Interruption


async def _walk(path: list[str]) -> str:
    """Wait three times: for a turn, for a future, and while cleaning up."""
    try:
        path.append("turn")
        await asyncio.sleep(0)
        path.append("future")
        await asyncio.sleep(0.001)
    finally:
        path.append("cleaning")
        await asyncio.sleep(0)
        path.append("clean")
    return "walked"


async def _interrupted(point: int, late: bool) -> tuple[list[str], str | None, bool]:
    path: list[str] = []
    interruption = Interruption(point, late=late)
    result = await interruption(_walk(path))
    return path, result, interruption.happened


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("point", "path"),
    [
        (1, ["turn", "cleaning", "clean"]),
        (2, ["turn", "future", "cleaning", "clean"]),
        (3, ["turn", "future", "cleaning"]),
    ],
)
def test_a_coroutine_is_cancelled_at_each_suspension(point: int, path: list[str], late: bool) -> None:
    """A coroutine is cancelled once, so that it cleans up undisturbed."""
    assert asyncio.run(_interrupted(point, late)) == (path, None, True)


def test_beyond_the_last_suspension_nothing_is_cancelled() -> None:
    """A coroutine with fewer suspensions ends by itself, which ends the sweep."""
    assert asyncio.run(_interrupted(4, late=True)) == (["turn", "future", "cleaning", "clean"], "walked", False)


def test_a_late_cancellation_finds_the_result_there() -> None:
    """A late cancellation comes when the future is done and before the coroutine has resumed."""

    async def scene() -> bool:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, future.set_result, "lost")
        assert await Interruption(1, late=True)(_get(future)) is None
        return future.done() and not future.cancelled()

    assert asyncio.run(scene())


async def _get(future: asyncio.Future[str]) -> str:
    return await future


def test_swallowing_a_cancellation_is_found_out() -> None:
    """A coroutine that swallows its cancellation fails the sweep."""

    async def swallow() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1)

    async def scene(coroutine: Coroutine[Any, Any, None]) -> None:
        await Interruption(1, late=False)(coroutine)

    with pytest.raises(AssertionError, match="cancelled at suspension 1"):
        asyncio.run(scene(swallow()))
