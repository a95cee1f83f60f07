"""Whether an open file is still the one at its path: without that, SQLite goes on in a file that nobody finds again.

The same goes for the two files next to it: the log (``-wal``), and its index (``-shm``), which also has the locks of
the log.  When another program removes the index, the next process to open the file makes a new one.  Then there are
two, and their users overwrite each other in the log.  A process that has the old index must not write: neither to the
log nor, when it closes, to the file.

A process also has to know which files it has open, because SQLite keeps its locks on a file in one table for each
process.  A fork copies that table, but the kernel gives the child none of the locks in it.  A connection that the child
opens to such a file would find its locks taken already, and take none: the next process to close the file then removes
the log that the child writes to.  So the child refuses the files that were open at the fork.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
from contextlib import suppress

from events_core import ErrorCode
from events_core.backends.sqlite.translation import Lost
from events_core.engine import BrokerError

__all__ = ["Place"]

_log = logging.getLogger("events_core.sqlite")

_Identity = tuple[int, int]
_NONE: _Identity = (-1, -1)
"""The identity of no file."""

_in_use: set[Place] = set()
"""The files that this process has open or is opening.  Each client's thread adds and removes its own, each time in one
step of the interpreter, so that a fork in another thread finds it whole."""
_guards: dict[_Identity, list[int]] = {}
"""Descriptors that hold a lock on a file: see :func:`_guard`."""
_guarding = threading.Lock()
"""Held while a file begins to be in use, or its last user closes its guards."""
_inherited: set[_Identity] = set()
"""The files that were open when this process, or one of its ancestors, was forked.  They stay here: SQLite never
forgets a lock that only the parent can release."""


def _inherit() -> None:
    global _guarding
    _guarding = threading.Lock()  # another thread of the parent may have held the old one
    for place in _in_use:
        _inherited.update(filter(None, [place.identity]))
    _in_use.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)


class Moved(Lost):
    """The file has been removed from its path, or replaced there."""

    has_changed = True


class LogGone(Lost):
    """The log or its index has been removed or replaced; the file itself is the same."""

    is_in_the_way = True


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
        _remove_orphaned_index(os.path.realpath(path))
        self._known: tuple[tuple[str, _Identity], ...] = ()
        self._log: dict[str, _Identity | None] = {}
        with _guarding:
            _in_use.add(self)
        try:
            self._check_others()
        except LogGone:
            self.closed()
            raise

    def _check_others(self) -> None:
        """Raise while another connection of this process has a log that is gone: SQLite would share its index."""
        if not all(other.is_current for other in tuple(_in_use) if other._file == self._file):
            raise LogGone(
                f"the file {self._path!r} or its log was moved or removed while it was in use, and another client of "
                "this process has not let go of it yet",
                ErrorCode.UNAVAILABLE,
                retryable=True,
            )

    @property
    def identity(self) -> _Identity | None:
        """Device and inode of the file, ``None`` while it is being created."""
        return self._file or _identity(self._path)

    def closed(self) -> None:
        """Record that its connection no longer has the file open."""
        with _guarding:
            _in_use.discard(self)
            if self._file is not None and all(other._file != self._file for other in _in_use):
                for descriptor in _guards.pop(self._file, ()):
                    os.close(descriptor)

    def opened(self) -> None:
        """Remember the file, which may have been created meanwhile, and its log."""
        self._file = self.identity
        self._real = os.path.realpath(self._path)  # SQLite keeps the log beside what a symbolic link leads to
        self._log = {path: _identity(path) for path in (f"{self._real}-wal", f"{self._real}-shm")}
        known = {self._path: self._file, **self._log}
        self._known = tuple((path, identity or _NONE) for path, identity in known.items())
        self._check_others()  # again: it may have been removed meanwhile

    @property
    def is_current(self) -> bool:
        """Return whether the file, its log and its index are still at their paths; makes three system calls."""
        try:
            for path, identity in self._known:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) != identity:
                    return False
        except OSError:
            return False
        return True

    def check(self) -> None:
        """Raise unless :attr:`is_current`.

        :raises Moved: when the file was removed or replaced.
        :raises LogGone: when its log or index was.
        """
        if self.is_current:
            return
        if self._file is not None and _identity(self._path) == self._file:
            gone = " and ".join(repr(path) for path, identity in self._log.items() if _identity(path) != identity)
            raise LogGone(
                f"{gone or 'the log'} of the file {self._path!r} was removed or replaced while it was in use; it will "
                "be opened again: leave '-wal' and '-shm' where they are as long as programs use the file",
                ErrorCode.UNAVAILABLE,
                retryable=True,
            )
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

    @property
    def has_another_log(self) -> bool:
        """Return whether another process has made a new log or index since, and uses it."""
        return any(_identity(path) not in (None, identity) for path, identity in self._log.items())

    def close_leaving_log(self, connection: sqlite3.Connection) -> None:
        """Close *connection* so that it neither writes its view of the log into the file nor removes the log.

        SQLite does both if no other connection has the file open, although its view is of the old log.
        """
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        elif self._file is not None:
            _guards.setdefault(self._file, []).extend(_guard(self._real))
        connection.close()

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


def _remove_orphaned_index(file: str) -> None:
    """Remove the index of a log that is gone.

    A connection would make a new log and take the index for that of the new one.  It would read from the new log what
    was in the old one, and damage the file.  SQLite makes the log before the index and removes it afterwards, so an
    index without a log means that another program has removed the log.
    """
    index = f"{file}-shm"
    found = _identity(index)
    if found is not None and not os.path.lexists(f"{file}-wal") and _identity(index) == found:
        with suppress(OSError):
            os.unlink(index)


def _identity(path: str) -> _Identity | None:
    """Device and inode of the file at *path*, ``None`` where there is none or nobody may look."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


if sys.version_info < (3, 12):
    import fcntl
    import struct

    _SHARED_LOCK = 0x40000002, 510
    """First byte and length of what every connection holds a read lock on, as SQLite's ``os_unix.c`` has it."""

    def _guard(path: str) -> list[int]:
        """Return a descriptor with a lock by which SQLite sees another user of the file; none where that is impossible.

        Closing it ends all other locks of this process on the file, so it stays open as long as they are needed.
        """
        if not hasattr(fcntl, "F_OFD_SETLK"):
            return []
        descriptor = os.open(path, os.O_RDONLY)
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, *_SHARED_LOCK, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        return [descriptor]
