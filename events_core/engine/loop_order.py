"""The order of sends that begin in one event loop while a large send is being queued (P4).

A large send is checked and queued in parts, and other tasks of the loop run in between, so that it does not block the
loop (P6).  A keyed send that begins in that loop before the end must not overtake the large one, and waits in line.

Each loop has its own line.  So a loop that is blocked, or was stopped in the middle of a large send, keeps no
other loop from sending.  A line is used only in its loop and needs no lock.  Adding it to the dictionary is atomic, and
so is removing it.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["LoopOrder"]


class _Line:
    """The sends that have their turn, or wait for it, in one loop."""

    __slots__ = ("length", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()  # fair: it is acquired in the order of asking
        self.length = 0
        """The number of sends in line, including the one that has its turn."""


class LoopOrder:
    """The lines of the loops in which large sends are being queued."""

    def __init__(self) -> None:
        self.lines: dict[asyncio.AbstractEventLoop, _Line] = {}
        """The line of each loop that has one.  It is nearly always empty, so most sends need to look no further."""

    @property
    def is_here(self) -> bool:
        """Return whether a send has its turn in the running loop."""
        return asyncio.get_running_loop() in self.lines

    def turn(self) -> _Turn:
        """Return a context for one send.  It is entered when all sends that were in line before are over."""
        return _Turn(self.lines)


class _Turn:
    """The position of one send in the line of its loop, as an asynchronous context manager."""

    def __init__(self, lines: dict[asyncio.AbstractEventLoop, _Line]) -> None:
        self._lines = lines
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> None:
        line = self._lines.setdefault(self._loop, _Line())
        line.length += 1
        try:
            await line.lock.acquire()
        except BaseException:
            # A cancelled send leaves the line.  Otherwise the line would never end, and sends would queue forever.
            self._leave(line)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop.is_closed():  # the garbage collector ends this turn, and the loop runs no other send in line
            self._lines.pop(self._loop, None)
            return
        line = self._lines[self._loop]
        line.lock.release()
        self._leave(line)

    def _leave(self, line: _Line) -> None:
        line.length -= 1
        if not line.length:
            self._lines.pop(self._loop, None)
