"""Whether an open file is still the one at its path: without that, SQLite goes on in a file that nobody finds again.

A process also has to know which files it has open, because SQLite keeps its locks on a file in one table for each
process.  A fork copies that table, but the kernel gives the child none of the locks in it.  A connection that the child
opens to such a file would find its locks taken already, and take none: the next process to close the file then removes
the log that the child writes to.  So the child refuses the files that were open at the fork.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from events_core import ErrorCode
from events_core.backends.sqlite.translation import Lost
from events_core.engine import BrokerError

__all__ = ["Place"]

_log = logging.getLogger("events_core.sqlite")

_Identity = tuple[int, int]

_in_use: set[Place] = set()
"""The files that this process has open or is opening.  Each client's thread adds and removes its own, each time in one
step of the interpreter, so that a fork in another thread finds it whole."""
_inherited: set[_Identity] = set()
"""The files that were open when this process was forked, or one that it descends from.  They stay here: SQLite never
forgets a lock that only the parent can let go."""


def _inherit() -> None:
    for place in _in_use:
        _inherited.update(filter(None, [place.identity]))
    _in_use.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)


class Moved(Lost):
    """The file has been removed from its path, or replaced there."""

    has_changed = True


class Place:
    """What is at *path*: the file that a connection has open, or no longer.

    Begin before opening the file, call :meth:`opened` when it is open and :meth:`closed` when it is open no more.

    :raises BrokerError: ``WRONG_PROCESS`` when the file was open at a fork that led to this process.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = _identity(path)
        if self._file in _inherited:
            raise BrokerError(
                f"the file {path!r} was open in the parent when this process was forked, and SQLite would lose what "
                "is sent from here; fork before the first use of the file, or start processes with multiprocessing's "
                "'spawn'",
                ErrorCode.WRONG_PROCESS,
            )
        _in_use.add(self)

    @property
    def identity(self) -> _Identity | None:
        """Device and inode of the file, ``None`` while it is being created."""
        return self._file or _identity(self._path)

    def closed(self) -> None:
        """Know that no connection has the file open any more."""
        _in_use.discard(self)

    def opened(self) -> None:
        """Remember the file, which may have been created meanwhile, and its log."""
        self._file = self.identity
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
