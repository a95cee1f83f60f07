"""Standard output: bytes written past Python's buffers, so that what was written is known."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import stat
import sys
import termios

from events_core.cli.ending import Ending
from events_core.cli.escaping import escaped
from events_core.cli.outcome import CommandError, ExitCode
from events_core.cli.writing import write_all
from events_core.engine import off_loop

__all__ = ["Output"]


class Output:
    """Standard output.

    :param raw: whether :meth:`write` sends the bytes to a terminal as they are, without escapes.
    :raises CommandError: when it is closed; writing to its number could then hit another file.
    """

    def __init__(self, *, raw: bool = False) -> None:
        if sys.stdout is None:
            raise CommandError("standard output is closed", ExitCode.UNUSABLE)
        self._descriptor = sys.stdout.fileno()
        self._is_pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
        self.is_terminal = os.isatty(self._descriptor)
        self._escapes = self.is_terminal and not raw
        self._encoding = sys.stdout.encoding

    def put(self, data: bytes) -> None:
        """Write all of *data* as it is; blocks.

        :raises CommandError: when that fails.
        """
        try:
            write_all(self._descriptor, data)
        except BrokenPipeError as error:
            raise _reader_gone() from error
        except OSError as error:
            raise CommandError(f"cannot write to standard output: {error.strerror}") from error

    async def write(self, data: bytes) -> None:
        """Write all of *data*, escaped on a terminal, without blocking the event loop: Ctrl-C works if nobody reads."""
        shown = self._shown(data) if self._escapes else data
        await off_loop(lambda: self.put(shown))

    def _shown(self, data: bytes) -> bytes:
        # In the terminal's own encoding: the second byte of "ś" in UTF-8 is a command where that is Latin-1.
        return escaped(data.decode(errors="backslashreplace")).encode(self._encoding, "backslashreplace")

    async def taken(self) -> None:
        """Where this is a pipe, wait until its reader has taken everything.

        What is left in a pipe when its reader ends is lost, so it must not count as written.

        :raises CommandError: when the reader is gone and has left something.
        """
        pause = 0.0002
        while self._is_pipe and self._unread():
            if self._reader_is_gone():
                raise _reader_gone()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    def watch(self, ending: Ending) -> None:
        """Where this is a pipe, end the command once nobody reads it any more, although nothing is being written."""
        if not self._is_pipe:
            return
        loop = asyncio.get_running_loop()

        def gone() -> None:  # all that the writing end of a pipe ever has to tell
            loop.remove_reader(self._descriptor)
            ending.request(_reader_gone())

        loop.add_reader(self._descriptor, gone)

    def _unread(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)

    def _reader_is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))


def _reader_gone() -> CommandError:
    return CommandError("", ExitCode.READER_GONE)
