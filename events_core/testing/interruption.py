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
    """Cancels whoever awaits a coroutine, once, at its *point*-th suspension, counted from 1.

    :param late: not as it begins to wait, but when what it waits for has come and it has not resumed yet.
    """

    def __init__(self, point: int, *, late: bool) -> None:
        self.point = point
        self.late = late
        self.suspensions = 0
        self.place = ""
        """The line at which it waited."""

    def __str__(self) -> str:
        when = "when what it waited for had come" if self.late else "as it began to wait"
        return f"cancelled at suspension {self.point}, {when}{self.place and ', in '}{self.place}"

    @property
    def happened(self) -> bool:
        """Whether the coroutine got as far as that."""
        return self.suspensions >= self.point

    async def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """What *coroutine* returns in a task of its own; ``None`` when that was cancelled, as then it must be."""
        task = asyncio.create_task(_awaiting(_Watched(coroutine, self)))
        await asyncio.wait([task])
        if not self.happened:
            return task.result()
        assert task.cancelled(), f"{self}; that was swallowed: {task}"
        return None

    def suspended(self, coroutine: Coroutine[Any, Any, Any], future: asyncio.Future[Any] | None) -> None:
        """The *coroutine* waits, for *future* or merely for its next turn."""
        self.suspensions += 1
        task = asyncio.current_task()
        if self.suspensions != self.point or task is None:
            return
        self.place = _place(coroutine)
        if future is None or not self.late:
            task.cancel()
        else:
            # Called before the task's own callback, which is not registered yet.
            future.add_done_callback(lambda _: task.cancel())


async def _awaiting(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _place(coroutine: object) -> str:
    """The innermost line at which *coroutine* waits, outside asyncio."""
    place = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None and not frame.f_globals.get("__name__", "").startswith("asyncio"):
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_qualname})"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return place


class _Watched(Generic[T]):
    """Awaits a coroutine and tells an interruption of each suspension."""

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
