"""Standard output, written past Python's buffers.

``receive`` acknowledges a message after its line was written, so it has to know what was written.  A buffer could still
lose the line.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import stat
import sys
import termios
from collections.abc import Sequence

from events_core.cli.ending import Ending
from events_core.cli.escaping import escaped
from events_core.cli.outcome import CommandError, ExitCode
from events_core.cli.writing import write_all
from events_core.engine import off_loop

__all__ = ["Output"]


class Output:
    """Standard output.

    :param raw: let :meth:`write` send unchanged bytes to a terminal, without escapes.
    :raises CommandError: ``UNUSABLE`` if it is closed.  Its descriptor may then belong to another file.
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
        """Write all of *data* unchanged.  This blocks while the reader does not read.

        :raises CommandError: if writing fails; ``READER_GONE`` for a broken pipe.
        """
        try:
            write_all(self._descriptor, data)
        except BrokenPipeError as error:
            raise _reader_gone() from error
        except OSError as error:
            raise CommandError(f"cannot write to standard output: {error.strerror}") from error

    async def write(self, lines: Sequence[bytes]) -> None:
        """Write *lines*, of one message each.  On a terminal, write escapes, and indent what follows a line break.

        :raises CommandError: if writing fails; ``READER_GONE`` for a broken pipe.
        """
        shown = b"".join(map(self._shown, lines) if self._escapes else lines)
        # In a daemon thread, because a pipe that is not read blocks the write: Ctrl-C must still end the command.
        await off_loop(lambda: self.put(shown))

    def _shown(self, line: bytes) -> bytes:
        # Indented, because a message with a line break could forge another message, or an error of this command.
        text = escaped(line.decode(errors="backslashreplace"))
        text = text[:-1].replace("\n", "\n  ") + text[-1:]
        # In the encoding of the terminal.  In Latin-1, the second byte of the UTF-8 text "ś" is a control character.
        return text.encode(self._encoding, "backslashreplace")

    async def taken(self) -> None:
        """Wait until the reader has taken everything, if this is a pipe.

        A pipe loses its content when its reader ends, so bytes that are still in it do not count as written.

        :raises CommandError: ``READER_GONE`` if the reader ended before it had taken everything.
        """
        # No system call waits for an empty pipe, so ask again and again: often at first, for quick readers.

        pause = 0.0002
        while self._is_pipe and self._unread():
            if self._reader_is_gone():
                raise _reader_gone()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    def watch(self, ending: Ending) -> None:
        """End the command when the reader of the pipe ends, also while there is nothing to write."""
        if not self._is_pipe:
            return
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self._descriptor)
            ending.request(_reader_gone())

        # The writing end of a pipe never becomes readable, except with an error: its reader is gone.
        loop.add_reader(self._descriptor, gone)

    def _unread(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)

    def _reader_is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))


def _reader_gone() -> CommandError:
    return CommandError("", ExitCode.READER_GONE)
