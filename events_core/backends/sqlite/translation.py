"""From SQLite's errors to what the engine understands: what was found, what to do, whether to try again."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["Locked", "Lost", "Unusable", "translated"]

_PRIMARY = 0xFF
"""Extended result codes carry the primary one in their lowest byte (sqlite.org/rescode.html)."""

_REASONS: dict[int, tuple[str, ErrorCode, bool]] = {
    sqlite3.SQLITE_BUSY: ("is locked by another program; end that program's transaction", ErrorCode.UNAVAILABLE, True),
    sqlite3.SQLITE_LOCKED: ("is locked by another connection", ErrorCode.UNAVAILABLE, True),
    sqlite3.SQLITE_FULL: ("cannot grow, the disk is full; make room", ErrorCode.EXHAUSTED, True),
    sqlite3.SQLITE_IOERR: ("could not be read or written; check the disk", ErrorCode.UNAVAILABLE, True),
    sqlite3.SQLITE_CORRUPT: ("is damaged; restore it from a backup or move it away", ErrorCode.INTERNAL, False),
    sqlite3.SQLITE_NOTADB: ("is no SQLite database; choose another path", ErrorCode.INVALID, False),
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
    sqlite3.SQLITE_TOOBIG: ("does not take a value of this size", ErrorCode.INVALID, False),
}


class Locked(BrokerError):
    """Another connection is in the way, for now."""


class Lost(BrokerError):
    """The connection is of no more use; the file must be opened again."""

    has_changed = False
    """Whether the file, when it can be used again, may be another one or an older copy."""
    is_in_the_way = False
    """Whether the connection must be closed before the file can be opened again."""


class Unusable(Lost):
    """What is there is no database of this application and version, or no whole one."""

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
    """Raise :class:`BrokerError` for whatever SQLite raises about the file *path*.

    :param create: whether the file was to be created if it is missing.
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
        except OSError as failed:  # such as a name that is too long
            return f"cannot be opened: {failed.strerror}; choose another path", ErrorCode.INVALID, False
    if primary == sqlite3.SQLITE_IOERR:
        return _why_it_failed(file)
    return _REASONS.get(primary or -1, ("cannot be used", ErrorCode.INTERNAL, False))


def _why_it_failed(file: Path) -> tuple[str, ErrorCode, bool]:
    """SQLite tells a full disk from a broken one only where it writes the file itself, not beside it."""
    with suppress(OSError):
        if os.statvfs(file.parent).f_bavail == 0:
            return _REASONS[sqlite3.SQLITE_FULL]
    return _REASONS[sqlite3.SQLITE_IOERR]


def _why_not_opened(file: Path, create: bool) -> tuple[str, ErrorCode, bool]:
    if _lacks_descriptors():
        return (
            "cannot be opened, this process has too many files open; let it open more (ulimit -n)",
            ErrorCode.EXHAUSTED,
            True,
        )
    with suppress(FileNotFoundError):
        os.stat(file)  # raises what pathlib takes for a missing file, such as a link that leads to itself
    if file.is_dir():
        return "is a directory; name a file in it", ErrorCode.INVALID, False
    if not file.parent.is_dir():
        return f"cannot be: there is no directory {str(file.parent)!r}; create it", ErrorCode.NOT_FOUND, False
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
    """Return whether this process may not open as many files as a connection needs: file, log and index."""
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
