"""Input cut into lines, in the portions in which it arrives."""

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
"""Bytes; no broker takes a message near that, and memory stays bounded whatever is piped in."""


class Lines:
    """The lines of a file or of standard input, as bytes without their ends.

    What a pipe has so far is handed on at once, so that a slow writer's lines do not wait for a full portion.
    """

    def __init__(self, stream: io.FileIO, name: str) -> None:
        self._stream = stream
        self.name = name
        """For error messages."""
        status = os.fstat(stream.fileno())
        self.total_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
        """``None`` where that cannot be known."""
        self.bytes_read = 0
        self._lines_read = 0

    @classmethod
    def of_file(cls, path: str) -> Lines:
        """The lines of the file at *path*, ``-`` for standard input.

        :raises CommandError: when it cannot be opened.
        """
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
        """Runs of numbered lines, counted from 1; a last line without an end is a line too.

        :raises CommandError: when reading fails, or for a line that is too long.
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
            chunk = await off_loop(self._read_some)
        except OSError as error:
            raise CommandError(f"cannot read {self.name}: {error.strerror}") from error
        self.bytes_read += len(chunk)
        return chunk

    def _read_some(self) -> bytes:
        """Return what there is, as soon as there is some; ``b""`` at the end."""
        # None is not the end: another program has set the stream not to block, and nothing is there yet.
        while (chunk := self._stream.read(_READ_BYTES)) is None:
            poll = select.poll()
            poll.register(self._stream, select.POLLIN)
            poll.poll()
        return chunk
