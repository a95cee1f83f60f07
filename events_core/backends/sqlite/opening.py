"""Opening a file: it is recognised, then created or brought to this version where that is allowed, or refused."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import suppress
from secrets import token_hex
from typing import Literal
from urllib.parse import quote

from events_core import ErrorCode
from events_core.backends.sqlite import schema
from events_core.backends.sqlite.errors import EMPTIED, Unusable
from events_core.engine import BrokerError

__all__ = ["check_version", "open_file"]

_BUSY_TIMEOUT = 0.02
"""Seconds for which SQLite itself waits for a lock, while it blocks the thread: others of its loop must not wait."""

_LOG_SIZE = 64 * 2**20
"""Bytes to which the write-ahead log is cut back after a burst."""


def open_file(
    path: str, *, create: bool, durability: Literal["full", "normal"], restored: bool = False
) -> sqlite3.Connection:
    """Open *path*; create the tables in a new file if *create* allows, and bring an older file to this version.

    Several processes may do so at once: one of them creates or upgrades the file, and the others wait for it.

    :param restored: whether the file has had content before.  If it is empty now, a user is about to restore it.
    :raises BrokerError: for a file of another application or a newer version, an empty one, or a device.
    :raises sqlite3.Error: for a file that SQLite cannot open.
    """
    _check_kind(path)
    if create and not restored:
        _make_private(path)
    uri = f"file://{quote(path)}?mode={'rwc' if create and not restored else 'rw'}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_TIMEOUT)
    try:
        version = _version_now(connection, path)
        if version == 0 and restored:
            reason, code, retryable = EMPTIED
            raise Unusable(f"the file {path!r} {reason}", code, retryable=retryable)
        if version == 0 and not create:
            raise BrokerError(f"the file {path!r} is empty; set create=all to make topics in it", ErrorCode.NOT_FOUND)
        if version < schema.VERSION:
            _upgrade(connection, path)
        _configure(connection, path, durability)
    except BaseException:
        connection.close()
        raise
    return connection


def check_version(connection: sqlite3.Connection, path: str) -> None:
    """Raise unless the file still has the version that this program uses; inside a transaction it stays so.

    :raises BrokerError: retryable if opening the file again helps.
    """
    # The other queries of _version() would cost as much as a small transaction.
    if connection.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION:
        return
    version = _version(connection, path)
    if version < schema.VERSION:
        raise Unusable(
            f"the file {path!r} was replaced by one of schema version {version}; it will be opened again, and brought "
            f"to version {schema.VERSION}",
            ErrorCode.UNAVAILABLE,
            retryable=True,
        )


def _check_kind(path: str) -> None:
    """Raise for a device or a pipe, which SQLite takes for an empty file or a full disk."""
    with suppress(OSError):  # SQLite meets the same error and reports it
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise BrokerError(f"the file {path!r} is not a regular file; choose another path", ErrorCode.INVALID)


def _make_private(path: str) -> None:
    """Make an empty file that only this user may use, if there is none: SQLite lets every user read its new files."""
    real = os.path.realpath(path)
    if os.path.lexists(real):
        return
    # Without opening the file under its name.  If another connection of this process has the file open, closing any
    # other descriptor of the file makes the system drop that connection's locks.
    with suppress(OSError):
        os.mknod(real, stat.S_IFREG | 0o600)  # on Linux; also on file systems without hard links
        return
    passing = os.path.join(os.path.dirname(real), f".{token_hex(8)}")
    with suppress(OSError):  # SQLite then tries to make the file, and its failures have explanations
        os.close(os.open(passing, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            os.link(passing, real)
        finally:
            os.unlink(passing)


def _version_now(connection: sqlite3.Connection, path: str) -> int:
    connection.execute("BEGIN")  # one view of a file that another process may be creating
    try:
        return _version(connection, path)
    finally:
        connection.rollback()


def _version(connection: sqlite3.Connection, path: str) -> int:
    """Return the schema version of the file, 0 for an empty one.

    :raises Unusable: for a file of another application or a newer version.
    """
    application, version, entries = (
        connection.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if application == schema.APPLICATION_ID and version > schema.VERSION:
        raise Unusable(
            f"the file {path!r} has schema version {version}, this events-core knows {schema.VERSION}; upgrade "
            "events-core",
            ErrorCode.INVALID,
        )
    if application == schema.APPLICATION_ID and version > 0:
        return int(version)
    if application or version or entries:
        raise Unusable(
            f"the file {path!r} is a database of another application; choose another path", ErrorCode.INVALID
        )
    return 0


def _upgrade(connection: sqlite3.Connection, path: str) -> None:
    # Outside of the transaction, as SQLite demands; without effect in a file that has them already.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible while there are no tables
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        # The version is read again, now under the write lock: another process may have been faster.
        schema.upgrade(connection, _version(connection, path))
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _configure(connection: sqlite3.Connection, path: str, durability: Literal["full", "normal"]) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise BrokerError(
            f"the file {path!r} cannot have a write-ahead log, its journal_mode is {mode!r}; put it on a local disk",
            ErrorCode.INVALID,
        )
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_SIZE}")
    connection.execute(f"PRAGMA synchronous = {durability}")
    if durability == "full":
        connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone does not reach the platter
