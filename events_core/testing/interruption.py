"""Cancelling a coroutine at a chosen point."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

__all__ = ["Interruption"]

T = TypeVar("T")


class Interruption:
    """A cancellation of the task that awaits a coroutine, once, at suspension number *point*, counted from 1.

    :param late: False to cancel when the task begins to wait; True to cancel when its future is done and the task has
        not resumed yet.
    """

    def __init__(self, point: int, *, late: bool) -> None:
        self.point = point
        self.late = late
        self.suspensions = 0
        self.place = ""
        """The line at which the coroutine waited."""

    def __str__(self) -> str:
        when = "when what it waited for had come" if self.late else "as it began to wait"
        return f"cancelled at suspension {self.point}, {when}{self.place and ', in '}{self.place}"

    @property
    def happened(self) -> bool:
        """True if the coroutine got as far as suspension number *point*."""
        return self.suspensions >= self.point

    async def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """Run *coroutine* in a new task.  Return its result, or ``None`` if the task was cancelled."""
        task = asyncio.create_task(_awaiting(_Watched(coroutine, self)))
        # ``asyncio.wait`` does not raise, so that a cancellation of the task is told from one of this call.
        await asyncio.wait([task])
        if not self.happened:
            return task.result()
        assert task.cancelled(), f"{self}, and the call swallowed the cancellation: {task}"
        return None

    def suspended(self, coroutine: Coroutine[Any, Any, Any], future: asyncio.Future[Any] | None) -> None:
        """Note that *coroutine* waits, for *future* or for its next turn.  Cancel its task at the chosen point."""
        self.suspensions += 1
        task = asyncio.current_task()
        # Cancelling again would hide whether the call swallowed the first cancellation.
        if self.suspensions != self.point or task is None:
            return
        self.place = _place(coroutine)
        if future is None or not self.late:
            task.cancel()
        else:
            # The task registers its own callback after this one.  So this cancels the task before that resumes it.
            future.add_done_callback(lambda _: task.cancel())


async def _awaiting(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _place(coroutine: object) -> str:
    """Return the innermost line at which *coroutine* waits, outside asyncio."""
    place = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None and not frame.f_globals.get("__name__", "").startswith("asyncio"):
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_qualname})"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return place


class _Watched(Generic[T]):
    """An awaitable that runs a coroutine and tells an interruption of each suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], interruption: Interruption) -> None:
        self._coroutine = coroutine
        self._interruption = interruption

    def __await__(self) -> Generator[Any, Any, T]:
        step = partial(self._coroutine.send, None)
        while True:
            try:
                future = step()
            except StopIteration as stop:
                result: T = stop.value
                return result
            self._interruption.suspended(self._coroutine, future)
            try:
                yield future
            except BaseException as error:
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, None)
