"""From SQLite's errors to the engine's: one table.

``BrokerError``
    ``Locked``: another connection holds a lock; the same call may succeed in a moment.
    ``Lost``: the connection is of no more use; the file must be opened again.
        ``Unusable``: the file is damaged, or not a database of this application and version.

``place.py`` adds two kinds of ``Lost``, for a file or a log that another program has moved.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["EMPTIED", "Locked", "Lost", "Unusable", "translated"]

_PRIMARY = 0xFF
"""The lowest byte of an extended result code is the primary code (sqlite.org/rescode.html)."""

_REASONS: dict[int, tuple[str, ErrorCode, bool]] = {
    sqlite3.SQLITE_BUSY: ("is locked by another program; end that program's transaction", ErrorCode.UNAVAILABLE, True),
    sqlite3.SQLITE_LOCKED: ("is locked by another connection; wait for it", ErrorCode.UNAVAILABLE, True),
    sqlite3.SQLITE_FULL: ("cannot grow, the disk is full; make room", ErrorCode.EXHAUSTED, True),
    sqlite3.SQLITE_IOERR: ("could not be read or written; check the disk", ErrorCode.UNAVAILABLE, True),
    sqlite3.SQLITE_CORRUPT: ("is damaged; restore it from a backup or move it away", ErrorCode.INTERNAL, False),
    sqlite3.SQLITE_NOTADB: ("is not an SQLite database; choose another path", ErrorCode.INVALID, False),
    sqlite3.SQLITE_READONLY: (
        "cannot be written; let this user write the file and its directory",
        ErrorCode.PERMISSION_DENIED,
        False,
    ),
    sqlite3.SQLITE_PERM: (
        "may not be opened; let this user enter its directory, and read and write it",
        ErrorCode.PERMISSION_DENIED,
        False,
    ),
    sqlite3.SQLITE_TOOBIG: ("cannot store a value of this size; send less", ErrorCode.INVALID, False),
}

EMPTIED = (
    "is empty, although it was not before; restore it, or remove it and a new one is created",
    ErrorCode.UNAVAILABLE,
    True,
)
"""The reason, code and retryability of a file that was emptied while it was in use, probably to restore a backup."""


class Locked(BrokerError):
    """Another connection holds a lock on the file."""


class Lost(BrokerError):
    """A connection that is of no more use: the file must be opened again."""

    has_changed = False
    """True if the file that is opened next may be another one, or an older copy."""
    is_in_the_way = False
    """True if the connection must be closed before the file can be opened again."""


class Unusable(Lost):
    """A file that is damaged, or not a database of this application and version."""

    has_changed = True


_KINDS: dict[int | None, type[BrokerError]] = {
    sqlite3.SQLITE_BUSY: Locked,
    sqlite3.SQLITE_LOCKED: Locked,
    sqlite3.SQLITE_IOERR: Lost,
    sqlite3.SQLITE_CANTOPEN: Lost,
    sqlite3.SQLITE_READONLY: Lost,
    sqlite3.SQLITE_CORRUPT: Unusable,
    sqlite3.SQLITE_NOTADB: Unusable,
}


@contextmanager
def translated(path: str, *, create: bool) -> Iterator[None]:
    """Turn each error that SQLite raises about the file *path* into a :class:`BrokerError`.

    :param create: whether a missing file was to be created; the advice depends on it.
    """
    try:
        yield
    except sqlite3.Error as error:
        primary = _primary(error)
        reason, code, retryable = _explain(Path(path), primary, create)
        kind = _KINDS.get(primary, BrokerError)
        raise kind(f"the file {path!r} {reason} (SQLite: {error})", code, retryable=retryable) from error


def _primary(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY


def _explain(file: Path, primary: int | None, create: bool) -> tuple[str, ErrorCode, bool]:
    if primary == sqlite3.SQLITE_CANTOPEN:
        try:
            return _why_not_opened(file, create)
        except PermissionError:  # a directory on the way may not be entered
            return _REASONS[sqlite3.SQLITE_PERM]
        except OSError as failed:  # for example a name that is too long
            return f"cannot be opened: {failed.strerror}; choose another path", ErrorCode.INVALID, False
    if primary == sqlite3.SQLITE_IOERR:
        return _why_it_failed(file)
    if primary == sqlite3.SQLITE_NOTADB and _is_empty(file):
        return EMPTIED
    return _REASONS.get(primary or -1, ("cannot be used; SQLite says why", ErrorCode.INTERNAL, False))


def _is_empty(file: Path) -> bool:
    # SQLite takes an empty file for a new database, except in a connection that has seen content there.
    with suppress(OSError):
        return file.stat().st_size == 0
    return False


def _why_it_failed(file: Path) -> tuple[str, ErrorCode, bool]:
    """Return the reason of an I/O error, which may be a full disk."""
    # SQLite reports SQLITE_FULL only for the file itself.  For the log and its index it reports SQLITE_IOERR.
    with suppress(OSError):
        if os.statvfs(file.parent).f_bavail == 0:
            return _REASONS[sqlite3.SQLITE_FULL]
    return _REASONS[sqlite3.SQLITE_IOERR]


def _why_not_opened(file: Path, create: bool) -> tuple[str, ErrorCode, bool]:
    if _lacks_descriptors():
        return (
            "cannot be opened, this process has too many files open; raise its limit (ulimit -n)",
            ErrorCode.EXHAUSTED,
            True,
        )
    with suppress(FileNotFoundError):
        os.stat(file)  # raises for a link that leads to itself, which pathlib reports as a missing file
    if file.is_dir():
        return "is a directory; name a file in it", ErrorCode.INVALID, False
    if not file.parent.is_dir():
        return f"cannot be created, there is no directory {str(file.parent)!r}; create it", ErrorCode.NOT_FOUND, False
    if not file.exists():
        return _why_not_created(file.resolve(), create)
    if not (os.access(file, os.R_OK | os.W_OK) and os.access(file.parent, os.W_OK)):
        return (
            "cannot be opened; let this user read and write it, and write its directory, where SQLite keeps its log",
            ErrorCode.PERMISSION_DENIED,
            False,
        )
    return "could not be opened; check the disk", ErrorCode.UNAVAILABLE, True


def _lacks_descriptors() -> bool:
    """Return whether this process cannot open the three files of a connection: file, log and index."""
    try:
        with open(os.devnull), open(os.devnull), open(os.devnull):
            return False
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)


def _why_not_created(file: Path, create: bool) -> tuple[str, ErrorCode, bool]:
    if not file.parent.is_dir():
        return (
            f"is a symbolic link to {str(file)!r}, and there is no directory {str(file.parent)!r}; create it",
            ErrorCode.NOT_FOUND,
            False,
        )
    if not create:
        return "does not exist; set create=all to have it created", ErrorCode.NOT_FOUND, False
    if not os.access(file.parent, os.W_OK):
        return (
            f"does not exist and cannot be created; let this user write the directory {str(file.parent)!r}",
            ErrorCode.PERMISSION_DENIED,
            False,
        )
    return "does not exist and could not be created; check the disk", ErrorCode.UNAVAILABLE, True
