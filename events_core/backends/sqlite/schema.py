"""The tables, and how a file is recognised, created or refused.

A message is one row whatever the number of subscriptions.  A subscription has a ``cursor``, the highest message it has
looked at, and a row in ``deliveries`` for each message up to there that it has not settled; so a backlog costs nothing.

States of a delivery.  Of one ordering key either one row, the first, is READY, or some are LEASED; all others are
BLOCKED.  So a key is with one receiver at a time, and a nacked message holds back its successors, in every process.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import suppress
from secrets import token_hex
from typing import Literal
from urllib.parse import quote

from events_core import ErrorCode
from events_core.backends.sqlite.translation import Unusable
from events_core.engine import BrokerError

__all__ = ["BLOCKED", "LEASED", "READY", "VERSION", "check_version", "next_id", "open_file"]

READY = 0
"""May be delivered from ``available_at`` on."""
LEASED = 1
"""With the receiver that has the session ``session_id``, as long as that is renewed."""
BLOCKED = 2
"""Behind others of its key."""

APPLICATION_ID = 0x65766E74
"""``evnt``: tells this application's files from others' (sqlite.org/pragma.html#pragma_application_id)."""
VERSION = 1

_TABLES = f"""
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    retention REAL NOT NULL DEFAULT 0,
    UNIQUE (project, name)
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- as next_id() has it, so that it can be the message_id
    topic_id INTEGER NOT NULL,
    publish_time REAL NOT NULL,
    ordering_key TEXT,
    attributes TEXT, -- JSON, NULL for none
    data BLOB NOT NULL -- last, so that the others are read without it
);
CREATE INDEX messages_of_topic ON messages (topic_id);
CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    cursor INTEGER NOT NULL,
    expires_at REAL, -- NULL for a durable one
    UNIQUE (topic_id, name)
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- as next_id() has it
    subscription_id INTEGER NOT NULL,
    expires_at REAL NOT NULL
);
CREATE TABLE deliveries (
    subscription_id INTEGER NOT NULL,
    message_id INTEGER NOT NULL,
    ordering_key TEXT,
    state INTEGER NOT NULL,
    available_at REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, -- that failed
    session_id INTEGER, -- where LEASED
    PRIMARY KEY (subscription_id, message_id)
) WITHOUT ROWID;
CREATE INDEX deliveries_ready ON deliveries (subscription_id, available_at) WHERE state = {READY};
CREATE INDEX deliveries_of_key ON deliveries (subscription_id, ordering_key, state) WHERE ordering_key IS NOT NULL;
CREATE INDEX deliveries_of_session ON deliveries (session_id) WHERE session_id IS NOT NULL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

_LOG_SIZE = 64 * 2**20
"""Bytes to which the write-ahead log is cut back after a burst."""


def next_id(table: str, micros: str) -> str:
    """An SQL expression for a new id; *micros* is one for the time in microseconds.

    Such an id was used neither in this file, nor in one that was at its path before, nor in a newer copy of it: so a
    receiver that still holds messages of those takes none of this file's for them.
    """
    return f"max({micros}, 1 + ifnull((SELECT seq FROM sqlite_sequence WHERE name = '{table}'), 0))"


def open_file(
    path: str, *, create: bool, durability: Literal["full", "normal"], restored: bool = False
) -> sqlite3.Connection:
    """Open *path*, made a broker's file first where it is new and *create* allows.

    :param restored: whether it is there and had content: then an empty one is about to be written by somebody else.
    :raises BrokerError: for a file of another application or a newer version, an empty one, or a device.
    :raises sqlite3.Error: for what SQLite cannot open.
    """
    _check_kind(path)
    if create and not restored:
        _make_private(path)
    uri = f"file://{quote(path)}?mode={'rwc' if create and not restored else 'rw'}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0.02)
    try:
        if not _is_ours_now(connection, path):
            if restored:
                raise Unusable(
                    f"the file {path!r} is empty, which it was not; restore it, or remove it to have it made anew",
                    ErrorCode.UNAVAILABLE,
                    retryable=True,
                )
            if not create:
                text = f"the file {path!r} is empty; set create=all to make topics in it"
                raise BrokerError(text, ErrorCode.NOT_FOUND)
            _create(connection, path)
        _configure(connection, path, durability)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_kind(path: str) -> None:
    """Raise for a device or a pipe, which SQLite takes for an empty file or a full disk."""
    with suppress(OSError):  # SQLite meets it as well
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise BrokerError(f"the file {path!r} is no regular file; name one", ErrorCode.INVALID)


def _make_private(path: str) -> None:
    """Make an empty file that only this user may use, if there is none: SQLite lets every user read its new files.

    It is made without being opened, or gets its name when it is closed.  If this process closed a file that another of
    its connections has open, the system would end the locks of that connection.
    """
    real = os.path.realpath(path)
    if os.path.lexists(real):
        return
    with suppress(OSError):
        os.mknod(real, stat.S_IFREG | 0o600)  # on Linux; also on file systems without hard links
        return
    passing = os.path.join(os.path.dirname(real), f".{token_hex(8)}")
    with suppress(OSError):  # SQLite then tries to make it, and its failures have explanations
        os.close(os.open(passing, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            os.link(passing, real)
        finally:
            os.unlink(passing)


def check_version(connection: sqlite3.Connection, path: str) -> None:
    """Whether the file is still of the version that it was opened as; inside a transaction it stays so.

    :raises BrokerError: as :func:`open_file`.
    """
    if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        _is_ours(connection, path)


def _is_ours_now(connection: sqlite3.Connection, path: str) -> bool:
    connection.execute("BEGIN")  # one view of a file that another process may be creating
    try:
        return _is_ours(connection, path)
    finally:
        connection.rollback()


def _is_ours(connection: sqlite3.Connection, path: str) -> bool:
    """True for a broker's file, False for an empty one."""
    application, version, entries = (
        connection.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if application == APPLICATION_ID and version == VERSION:
        return True
    if application == APPLICATION_ID and version > VERSION:
        raise Unusable(
            f"the file {path!r} has schema version {version}, this events-core knows {VERSION}; upgrade events-core",
            ErrorCode.INVALID,
        )
    if application or version or entries:
        raise Unusable(
            f"the file {path!r} is a database of another application; choose another path", ErrorCode.INVALID
        )
    return False


def _create(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # cannot be had later without rewriting the file
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _is_ours(connection, path):  # another process may have been faster
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
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
