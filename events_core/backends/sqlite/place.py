"""Whether an open file is still the one at its path: without that, SQLite goes on in a file that nobody finds again."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from events_core import ErrorCode
from events_core.backends.sqlite.translation import Lost

__all__ = ["Place"]

_log = logging.getLogger("events_core.sqlite")

_Identity = tuple[int, int]


class Moved(Lost):
    """The file has been removed from its path, or replaced there."""

    has_changed = True


class Place:
    """What is at *path*: the file that a connection has open, or no longer.

    Begin before opening the file, call :meth:`opened` when it is open.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = _identity(path)

    def opened(self) -> None:
        """Remember the file, which may have been created meanwhile, and its log."""
        self._file = self._file or _identity(self._path)
        self._real = os.path.realpath(self._path)  # SQLite keeps the log beside what a symbolic link leads to
        self._log = {path: _identity(path) for path in (f"{self._real}-wal", f"{self._real}-shm")}

    @property
    def is_current(self) -> bool:
        """Whether the file is still there; one call of the system."""
        return self._file is not None and _identity(self._path) == self._file

    def check(self) -> None:
        """Raise unless :attr:`is_current`.

        :raises Moved: which file, and what happened to it.
        """
        if self.is_current:
            return
        happened = "replaced by another" if os.path.exists(self._path) else "removed"
        raise Moved(
            f"the file {self._path!r} was {happened} while it was in use; it will be opened again: leave it where it "
            "is as long as programs use it",
            ErrorCode.UNAVAILABLE,
            retryable=True,
        )

    @property
    def log_size(self) -> int:
        """Bytes of the log; 0 where there is none or nobody may look."""
        try:
            return os.stat(f"{self._real}-wal").st_size
        except OSError:
            return 0

    @property
    def is_deserted(self) -> bool:
        """Whether the file itself was moved or removed, not only a symbolic link to it."""
        return _identity(self._real) != self._file

    def clear(self, *, folded: bool) -> None:
        """Remove the log that a file has left at its old place; SQLite would apply it to the next file there.

        :param folded: whether all of it is in the file too; else it is set aside, under another name.
        """
        for path, identity in self._log.items():
            if identity is None or _identity(path) != identity:
                continue
            with suppress(OSError):
                if folded or path.endswith("-shm"):
                    os.unlink(path)
                    continue
                aside = f"{path}.{identity[1]}"
                os.rename(path, aside)
                _log.warning(
                    "the file %r was moved away while it was read, and part of what it holds is in %r: rename that to "
                    "the file's new name with '-wal' behind it before the file is opened",
                    self._path,
                    aside,
                )


def _identity(path: str) -> _Identity | None:
    """Device and inode of the file at *path*, ``None`` where there is none or nobody may look."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
