"""Input, cut into lines as it arrives."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from collections.abc import AsyncIterator

from events_core.cli.outcome import CommandError, ExitCode
from events_core.engine import off_loop

__all__ = ["Lines"]

_READ_BYTES = 2**20
_PORTION_LINES = 1000
_LONGEST_LINE = 64 * 2**20
"""Bytes.  No broker takes so large a message, and a pipe without line breaks must not fill the memory."""


class Lines:
    """The lines of a file or of standard input, as bytes without their line ends.

    Lines are handed on as soon as the pipe has them, so that a slow writer's line does not wait for more lines.
    """

    def __init__(self, stream: io.FileIO, name: str) -> None:
        self._stream = stream
        self.name = name
        """The name of the input in error messages."""
        status = os.fstat(stream.fileno())
        self.total_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
        """The size of the input, ``None`` if it is not a regular file."""
        self.bytes_read = 0
        self._lines_read = 0

    @classmethod
    def of_file(cls, path: str) -> Lines:
        """Open the file at *path*, or standard input for ``-``.

        :raises CommandError: ``UNUSABLE`` if it cannot be opened.
        """
        # FileIO has no buffer: a buffered stream would wait until its buffer is full.
        if path != "-":
            try:
                return cls(io.FileIO(path), repr(path))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise CommandError(f"cannot read {path!r}: {reason}", ExitCode.UNUSABLE) from error
        if sys.stdin is None:
            raise CommandError("standard input is closed", ExitCode.UNUSABLE)
        return cls(io.FileIO(sys.stdin.fileno(), closefd=False), "standard input")

    async def portions(self) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Yield lists of lines with their numbers, which begin at 1.  A last line without a line end counts.

        :raises CommandError: if reading fails, or if a line is too long.
        """
        async for lines in self._arriving():
            for start in range(0, len(lines), _PORTION_LINES):
                portion = list(enumerate(lines[start : start + _PORTION_LINES], self._lines_read + 1))
                self._lines_read += len(portion)
                yield portion

    async def _arriving(self) -> AsyncIterator[list[bytes]]:
        rest = bytearray()
        while chunk := await self._read():
            rest += chunk
            if b"\n" in chunk:
                *lines, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                yield [line.removesuffix(b"\r") for line in lines]
            elif len(rest) > _LONGEST_LINE:
                raise CommandError(f"line {self._lines_read + 1} of {self.name} is longer than {_LONGEST_LINE} bytes")
        if rest:
            yield [bytes(rest)]

    async def _read(self) -> bytes:
        try:
            # In a daemon thread: standard input may never end, and must not keep the process from ending.
            chunk = await off_loop(self._read_some)
        except OSError as error:
            raise CommandError(f"cannot read {self.name}: {error.strerror}") from error
        self.bytes_read += len(chunk)
        return chunk

    def _read_some(self) -> bytes:
        """Wait until there is input, and return what is there; ``b""`` at the end."""
        # None does not mean the end.  Another program has made the stream non-blocking, and it is empty now.
        while (chunk := self._stream.read(_READ_BYTES)) is None:
            poll = select.poll()
            poll.register(self._stream, select.POLLIN)
            poll.poll()
        return chunk
