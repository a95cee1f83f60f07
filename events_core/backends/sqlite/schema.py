"""The tables, and how a file of an older version gets them.

A message is one row, however many subscriptions there are.  A subscription has a ``cursor``: the highest message that
it has looked at.  For each message up to the cursor that is not settled, it has a row in ``deliveries``.  So a
backlog beyond the cursor costs a subscription nothing.

A delivery is READY, LEASED or BLOCKED.  For each ordering key, either one delivery is READY, the first one, or some are
LEASED; all others of the key are BLOCKED.  So one receiver at a time has messages of a key, and a nacked message holds
back the later ones of its key, in every process.

A version of the schema is a step in :data:`STEPS`.  A new file goes through all steps; an older file goes through those
that it lacks.  So a file has the same tables either way.  To change the schema, add a step.  Never change one that was
released.
"""

from __future__ import annotations

import sqlite3

__all__ = ["APPLICATION_ID", "BLOCKED", "LEASED", "READY", "STEPS", "VERSION", "next_id", "upgrade"]

READY = 0
"""May be delivered from ``available_at`` on."""
LEASED = 1
"""With the receiver that has the session ``session_id``, as long as the session is renewed."""
BLOCKED = 2
"""Waiting behind others of its key."""

APPLICATION_ID = 0x65766E74
"""``evnt``, which tells the files of this library from others (sqlite.org/pragma.html#pragma_application_id)."""

STEPS: tuple[str, ...] = (
    f"""
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
""",
)
"""The SQL of each version: the first step makes version 1 of an empty file, the next one version 2 of version 1."""

VERSION = len(STEPS)
"""The version that this program reads and writes."""


def upgrade(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file from *version*, 0 for an empty one, to :data:`VERSION`.

    Call it in a transaction that has the write lock, and find out *version* in the same transaction: several processes
    may open an old file at once.
    """
    for step in STEPS[version:]:
        # Not executescript(), which commits the transaction first.
        for statement in step.split(";\n"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def next_id(table: str, micros: str) -> str:
    """Return an SQL expression for a new id in *table*; *micros* is an expression for the time in microseconds.

    The id was never used before: not in this file, nor in an earlier file at the same path, nor in a newer copy of this
    one.  So when a receiver still holds messages of another file, it does not take one of this file for one of those.
    """
    return f"max({micros}, 1 + ifnull((SELECT seq FROM sqlite_sequence WHERE name = '{table}'), 0))"
