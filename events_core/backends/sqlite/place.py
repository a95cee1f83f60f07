"""Telling whether an open file is still the one at its path.

If another program removes or replaces a file, SQLite goes on in the open one, which no process will find again.  A
commit there is lost.

The same goes for the two files next to it: the log (``-wal``), and its index (``-shm``), which also holds the locks of
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
import time
from contextlib import suppress

from events_core import ErrorCode
from events_core.backends.sqlite.errors import Lost
from events_core.engine import BrokerError

__all__ = ["Place"]

_log = logging.getLogger("events_core.sqlite")

_Identity = tuple[int, int]
_NONE: _Identity = (-1, -1)
"""The identity of no file."""
_TICK = 5.0
"""Seconds; more than the steps of a file system's clock, if it counts parts of a second.  On Linux a step is 10 ms at
most, but on a virtual machine it grows while the processor that keeps the time stands still."""

# Each client's thread adds and removes its own place, each time in one step of the interpreter.  So a fork in another
# thread finds the set whole, and needs no lock to read it.
_in_use: set[Place] = set()
"""The files that this process has open or is opening."""
_guards: dict[_Identity, list[int]] = {}
"""Descriptors that hold a lock on a file: see :func:`_guard`."""
_guarding = threading.Lock()
"""Held while a place joins :data:`_in_use`, and while the last user of a file closes the file's guards.  Otherwise a
second client could open the file in between, and lose its locks when the guards are closed."""
_inherited: set[_Identity] = set()
"""The files that were open when this process, or one of its ancestors, was forked.  They are never removed: SQLite
never forgets a lock that only the parent can release."""


def _inherit() -> None:
    global _guarding
    _guarding = threading.Lock()  # a thread of the parent may have held the old one at the fork
    for place in _in_use:
        _inherited.update(filter(None, [place.identity]))
    _in_use.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)


class Moved(Lost):
    """A file that was removed from its path, or replaced there."""

    has_changed = True


class LogGone(Lost):
    """A log or an index that was removed or replaced, while the file itself is the same."""

    is_in_the_way = True


class Place:
    """The file at *path*, as one connection found it when it opened it.

    Create it before you open the file.  Call :meth:`opened` when the file is open, and :meth:`closed` after closing it.

    :raises BrokerError: ``WRONG_PROCESS`` when the file was open at a fork that led to this process.
    :raises LogGone: while another client of this process still has the file open with a log that is gone.
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
        self._folder = ""
        self._unchanged: tuple[int, int, int] | None = None
        """The identity and the time of change of the folder when all files were found at their paths."""
        self._log: dict[str, _Identity | None] = {}
        with _guarding:
            _in_use.add(self)
        try:
            self._check_others()
        except LogGone:
            self.closed()
            raise

    def _check_others(self) -> None:
        """Raise while another connection of this process has a log that is gone."""
        # SQLite shares one index among the connections of a process, so a new connection would get the old one.
        if not all(other.is_current for other in tuple(_in_use) if other._file == self._file):
            raise LogGone(
                f"the file {self._path!r} or its log was moved or removed while it was in use, and another client of "
                "this process still has it open; try again in a moment",
                ErrorCode.UNAVAILABLE,
                retryable=True,
            )

    @property
    def identity(self) -> _Identity | None:
        """The device and inode of the file; ``None`` while it is being created."""
        return self._file or _identity(self._path)

    def closed(self) -> None:
        """Record that its connection no longer has the file open."""
        with _guarding:
            _in_use.discard(self)
            if self._file is not None and all(other._file != self._file for other in _in_use):
                for descriptor in _guards.pop(self._file, ()):
                    os.close(descriptor)

    def opened(self) -> None:
        """Remember the identity of the file, which may just have been created, and of its log and index."""
        self._file = self.identity
        self._real = os.path.realpath(self._path)  # SQLite keeps the log next to the target of a symbolic link
        self._log = {path: _identity(path) for path in (f"{self._real}-wal", f"{self._real}-shm")}
        known = {self._path: self._file, **self._log}
        self._known = tuple((path, identity or _NONE) for path, identity in known.items())
        # A symbolic link and its target may be in two folders.  Then the time of change of one tells too little.
        self._folder = "" if os.path.islink(self._path) else os.path.dirname(self._path) or os.curdir
        self._check_others()  # again, because the log may have been removed since the first check

    @property
    def is_current(self) -> bool:
        """Return whether the file, its log and its index are still at their paths."""
        # Asked twice for each transaction.  Each system call lets other threads run first, which costs more than the
        # call itself.  So usually make only one: removing, replacing or renaming a file changes its folder.
        try:
            folder = os.stat(self._folder) if self._folder else None
            if folder is not None and _version(folder) == self._unchanged:
                return True
            for path, identity in self._known:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) != identity:
                    return False
        except OSError:
            return False
        self._unchanged = _version(folder) if folder is not None and _is_settled(folder) else None
        return True

    def check(self) -> None:
        """Raise unless :attr:`is_current`.

        :raises Moved: when the file was removed or replaced.
        :raises LogGone: when its log or its index was removed or replaced.
        """
        if self.is_current:
            return
        if self._file is not None and _identity(self._path) == self._file:
            gone = " and ".join(repr(path) for path, identity in self._log.items() if _identity(path) != identity)
            raise LogGone(
                f"{gone or 'the log'} of the file {self._path!r} was removed or replaced while it was in use; it will "
                "be opened again; leave '-wal' and '-shm' where they are as long as programs use the file",
                ErrorCode.UNAVAILABLE,
                retryable=True,
            )
        happened = "replaced by another" if os.path.exists(self._path) else "removed"
        raise Moved(
            f"the file {self._path!r} was {happened} while it was in use; it will be opened again; leave it where it "
            "is as long as programs use it",
            ErrorCode.UNAVAILABLE,
            retryable=True,
        )

    @property
    def log_size(self) -> int:
        """The size of the log in bytes; 0 if there is none or it cannot be read."""
        try:
            return os.stat(f"{self._real}-wal").st_size
        except OSError:
            return 0

    @property
    def is_deserted(self) -> bool:
        """Return whether the file itself was moved or removed, not only a symbolic link to it."""
        return _identity(self._real) != self._file

    @property
    def has_another_log(self) -> bool:
        """Return whether another process has made a new log or index since this one was opened."""
        return any(_identity(path) not in (None, identity) for path, identity in self._log.items())

    def close(self, connection: sqlite3.Connection) -> None:
        """Close *connection*, and leave everything that was confirmed where the next one finds it."""
        if not self.is_deserted:
            self._leave(connection)
            return
        folded = False
        # The file was moved away.  Copy the log into it, so that it keeps everything that was confirmed.
        with suppress(sqlite3.Error):
            _, pages, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            folded = pages == done
        connection.close()
        self.clear(folded=folded)

    def _leave(self, connection: sqlite3.Connection) -> None:
        if self.has_another_log:
            self.close_leaving_log(connection)
            return
        if not self.is_current:
            # No other process can read the log any more, so its messages must go into the file now.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        connection.close()

    def close_leaving_log(self, connection: sqlite3.Connection) -> None:
        """Close *connection* so that it neither writes its view of the log into the file nor removes the log.

        SQLite does both in the last connection that it knows of.  But this connection's view is of the old log.
        """
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        elif self._file is not None:
            # Without the lock: this place is still in use, so no other client closes the file's guards now.
            _guards.setdefault(self._file, []).extend(_guard(self._real))
        connection.close()

    def clear(self, *, folded: bool) -> None:
        """Remove the log that a moved file has left at its old path: SQLite would apply it to the next file there.

        :param folded: whether everything in the log is in the file too.  If not, the log gets another name instead, and
            a warning says which.
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
                    "the file %r was moved away while another program read it, and part of its messages are in %r; "
                    "before you open the file, rename that to the file's new name followed by '-wal'",
                    self._path,
                    aside,
                )


def _remove_orphaned_index(file: str) -> None:
    """Remove the index of a log that is gone.

    A connection would make a new log and take the old index for its index.  It would then read from the new log where
    the index points, and damage the file.
    """
    # SQLite makes the log before the index, and removes the index first.  So an index without a log means that
    # another program has removed the log.
    index = f"{file}-shm"
    found = _identity(index)
    if found is not None and not os.path.lexists(f"{file}-wal") and _identity(index) == found:
        with suppress(OSError):
            os.unlink(index)


def _is_settled(folder: os.stat_result) -> bool:
    """Return whether the next change of *folder* will leave another time."""
    # Two changes within one step of the clock leave the same time.  A clock without a fraction has steps of seconds.
    return bool(folder.st_mtime_ns % 1_000_000_000) and time.time() - folder.st_mtime > _TICK


def _version(folder: os.stat_result) -> tuple[int, int, int]:
    """Return a value that changes when an entry of *folder* is added, removed or replaced."""
    return folder.st_dev, folder.st_ino, folder.st_mtime_ns


def _identity(path: str) -> _Identity | None:
    """Return device and inode of the file at *path*; ``None`` if there is none or it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


if sys.version_info < (3, 12):
    import fcntl
    import struct

    _SHARED_LOCK = 0x40000002, 510
    """First byte and length of the range on which every connection holds a read lock (SQLite's ``os_unix.c``)."""

    def _guard(path: str) -> list[int]:
        """Return a descriptor with a lock that looks to SQLite like another user; an empty list if that is impossible.

        Python below 3.12 cannot set ``SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE``, but SQLite also leaves the log alone when
        another process has the file open.  Closing the descriptor ends all other locks of this process on the file.  So
        it stays open as long as a connection of this process needs its locks.
        """
        if not hasattr(fcntl, "F_OFD_SETLK"):
            return []
        descriptor = os.open(path, os.O_RDONLY)
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, *_SHARED_LOCK, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        return [descriptor]
