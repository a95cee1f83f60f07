"""From SQLite's errors to what the engine understands: what was found, what to do, whether to try again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["is_locked", "translated"]

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


def is_locked(error: sqlite3.Error) -> bool:
    """Whether another connection is in the way, for now."""
    return _primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Raise :class:`BrokerError` for whatever SQLite raises about the file *path*."""
    try:
        yield
    except sqlite3.Error as error:
        reason, code, retryable = _explain(path, error)
        raise BrokerError(f"the file {path!r} {reason} (SQLite: {error})", code, retryable=retryable) from error


def _primary(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY


def _explain(path: str, error: sqlite3.Error) -> tuple[str, ErrorCode, bool]:
    primary = _primary(error)
    if primary == sqlite3.SQLITE_CANTOPEN:
        try:
            return _why_not_opened(Path(path))
        except PermissionError:  # a directory on the way may not be entered
            return _REASONS[sqlite3.SQLITE_PERM]
    return _REASONS.get(primary or -1, ("cannot be used", ErrorCode.INTERNAL, False))


def _why_not_opened(file: Path) -> tuple[str, ErrorCode, bool]:
    if file.is_dir():
        return "is a directory; name a file in it", ErrorCode.INVALID, False
    if not file.parent.is_dir():
        return f"cannot be: there is no directory {str(file.parent)!r}; create it", ErrorCode.NOT_FOUND, False
    if not file.exists():
        return (
            "does not exist and cannot be created; set create=all, and let this user write the directory",
            ErrorCode.NOT_FOUND,
            False,
        )
    return (
        "cannot be opened; let this user read and write it, and write its directory, where SQLite keeps its log",
        ErrorCode.PERMISSION_DENIED,
        False,
    )
