"""The file: its schema, how it is opened, and what goes wrong with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["Database"]

APPLICATION_ID = 0x65766E74
"""``evnt``: tells our files from other programs' (sqlite.org/pragma.html#pragma_application_id)."""
SCHEMA_VERSION = 1

BUSY_TIMEOUT = 1.0
"""Seconds that one statement waits for another process's transaction; the engine then tries again."""

_SCHEMA = """
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    retention REAL NOT NULL DEFAULT 0,
    UNIQUE (project, name)
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused, and in the order of commits: there is one writer at a time
    topic_id INTEGER NOT NULL,
    data BLOB NOT NULL,
    attributes TEXT,                        -- JSON
    ordering_key TEXT,
    published REAL NOT NULL                 -- seconds since the epoch
);
CREATE INDEX messages_by_topic ON messages (topic_id, id);
CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    cursor INTEGER NOT NULL,                -- highest message id looked at
    owner INTEGER,                          -- the session that an ephemeral one lives with
    UNIQUE (topic_id, name)
);
CREATE INDEX subscriptions_by_owner ON subscriptions (owner) WHERE owner IS NOT NULL;
CREATE TABLE sessions (                     -- one for each receiver; a dead process's lapses
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription_id INTEGER NOT NULL,
    expires REAL NOT NULL
);
CREATE TABLE deliveries (                   -- what a subscription has looked at and not settled
    subscription_id INTEGER NOT NULL,
    message_id INTEGER NOT NULL,
    ordering_key TEXT,
    state INTEGER NOT NULL,                 -- 0 ready, 1 leased, 2 blocked behind an earlier message of its key
    available REAL NOT NULL,                -- not before then
    attempts INTEGER NOT NULL,
    session_id INTEGER,
    PRIMARY KEY (subscription_id, message_id)
) WITHOUT ROWID;
CREATE INDEX deliveries_ready ON deliveries (subscription_id, available, message_id) WHERE state = 0;
CREATE INDEX deliveries_by_key ON deliveries (subscription_id, ordering_key, message_id)
    WHERE ordering_key IS NOT NULL;
CREATE INDEX deliveries_busy ON deliveries (subscription_id, ordering_key)
    WHERE state = 1 AND ordering_key IS NOT NULL;
CREATE INDEX deliveries_by_session ON deliveries (session_id, message_id) WHERE session_id IS NOT NULL;
"""


class Database:
    """One connection.  Its calls block, for the time of a transaction, and belong to one thread."""

    def __init__(self, path: str, *, create: bool, sync: str) -> None:
        """Open the file, and make it when *create*.

        :param sync: ``FULL`` survives a power loss, ``NORMAL`` a crash of the process.
        :raises BrokerError: saying what is wrong with the file.
        """
        self._path = path
        self._sync = sync
        with self.translated():
            uri = f"{Path(path).absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
            self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        self.execute = self._connection.execute
        self.executemany = self._connection.executemany

    def _prepare(self) -> None:
        execute = self._connection.execute
        version = execute("PRAGMA user_version").fetchone()[0]
        application = execute("PRAGMA application_id").fetchone()[0]
        empty = execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if not empty and application != APPLICATION_ID:
            raise BrokerError(f"{self._path!r} is a database of another program; name another file", ErrorCode.INVALID)
        if version > SCHEMA_VERSION:
            raise BrokerError(
                f"{self._path!r} has schema version {version}, and this events-core knows {SCHEMA_VERSION}; "
                "upgrade events-core",
                ErrorCode.INVALID,
            )
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA journal_size_limit = {64 * 2**20}")
        if empty:
            self._create()

    def _create(self) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            if execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:  # nobody was faster
                for statement in _SCHEMA.split(";\n"):
                    execute(statement)
                execute(f"PRAGMA application_id = {APPLICATION_ID}")
                execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            raise

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """Write, all or nothing; *durable* ones are on the disk, as far as options say, when it ends.

        Leases need not be: a power loss ends them anyway.
        """
        with self.translated():
            self.execute(f"PRAGMA synchronous = {self._sync if durable else 'NORMAL'}")
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")
                raise

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn SQLite's errors into the engine's."""
        try:
            yield
        except sqlite3.Error as error:
            raise _translate(self._path, error) from error

    def value(self, sql: str, *parameters: object) -> int | float | str | None:
        """The first column of the first row, or ``None``."""
        row = self.execute(sql, parameters).fetchone()
        value: int | float | str | None = row[0] if row else None
        return value

    def close(self) -> None:
        """Close the file; a checkpoint leaves it without its log where nobody else has it open."""
        with self.translated():
            self._connection.close()


_ERRORS = {
    "SQLITE_BUSY": ("is locked by another program for too long; end its transaction", ErrorCode.UNAVAILABLE, True),
    "SQLITE_LOCKED": ("is locked; end the other transaction", ErrorCode.UNAVAILABLE, True),
    "SQLITE_FULL": ("cannot grow: the disk is full; make room", ErrorCode.EXHAUSTED, True),
    "SQLITE_IOERR": ("cannot be read or written; look at the disk", ErrorCode.UNAVAILABLE, True),
    "SQLITE_CANTOPEN": ("cannot be opened; does it exist, and may it be written?", ErrorCode.NOT_FOUND, False),
    "SQLITE_READONLY": ("may not be written; change its permissions", ErrorCode.PERMISSION_DENIED, False),
    "SQLITE_PERM": ("may not be opened; change its permissions", ErrorCode.PERMISSION_DENIED, False),
    "SQLITE_NOTADB": ("is no SQLite database; name another file", ErrorCode.INVALID, False),
    "SQLITE_CORRUPT": ("is damaged; restore it from a backup", ErrorCode.INTERNAL, False),
}


def _translate(path: str, error: sqlite3.Error) -> BrokerError:
    name = getattr(error, "sqlite_errorname", "") or ""
    for known, (text, code, retryable) in _ERRORS.items():
        if name == known or name.startswith(f"{known}_"):
            return BrokerError(f"the file {path!r} {text} ({error})", code, retryable=retryable)
    return BrokerError(f"the file {path!r}: {error}", ErrorCode.INTERNAL)
