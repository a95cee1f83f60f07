"""The order of sends that begin in one event loop and give way to other tasks before they have their place (P4).

A large send is checked and queued piece by piece, so that it does not block the loop (P6).  Whatever begins in that
loop meanwhile, and must not overtake it, waits in line behind it.

Each loop has a line of its own.  So a loop that is blocked, or was stopped in the middle of a large send, keeps nobody
from sending in another one.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["LoopOrder"]


class _Line:
    """Those who have their turn, or wait for it, in one loop."""

    __slots__ = ("length", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()  # fair: turns are taken in the order of asking
        self.length = 0


class LoopOrder:
    """The lines of the loops in which large sends are being queued."""

    def __init__(self) -> None:
        self.lines: dict[asyncio.AbstractEventLoop, _Line] = {}
        """Nearly always empty; most sends need to look no further."""

    @property
    def is_here(self) -> bool:
        """Return whether somebody has a turn in the running loop."""
        return asyncio.get_running_loop() in self.lines

    def turn(self) -> _Turn:
        """Enter the line of the running loop; a turn begins when all that were in line before are over."""
        return _Turn(self.lines)


class _Turn:
    """An asynchronous context manager."""

    def __init__(self, lines: dict[asyncio.AbstractEventLoop, _Line]) -> None:
        self._lines = lines
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> None:
        line = self._lines.setdefault(self._loop, _Line())
        line.length += 1
        try:
            await line.lock.acquire()
        except BaseException:
            self._leave(line)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop.is_closed():  # the garbage collector ends this turn, and nobody in line has one any more
            self._lines.pop(self._loop, None)
            return
        line = self._lines[self._loop]
        line.lock.release()
        self._leave(line)

    def _leave(self, line: _Line) -> None:
        line.length -= 1
        if not line.length:
            self._lines.pop(self._loop, None)
