"""The file as one client uses it: its topic, what is published, subscriptions, and what nobody needs any more.

Synchronous, each method one transaction.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

from events_core import ErrorCode, EventMessage
from events_core.backends.sqlite.options import SQLiteOptions
from events_core.backends.sqlite.place import Place
from events_core.backends.sqlite.schema import VERSION, check_version, next_id, open_file
from events_core.engine import BrokerError
from events_core.options import did_you_mean

__all__ = ["Store"]

SWEEP = 1000
"""Messages looked at, deliveries deleted, and free pages given back, by one step of :meth:`Store.sweep`."""

SPARE = 4096
"""Free pages that a file keeps in any case, for the next messages."""

LONG_LOG = 16 * 2**20
"""Bytes of the log from which on it is emptied."""
LOOK_PAUSE = 0.005
"""Seconds between two looks at its size, of which each lets go of the interpreter."""

ROWS = 256
"""Messages that one statement inserts, at most: SQLite may allow no more than 999 parameters
(sqlite.org/limits.html#max_variable_number), and each message has three."""

_Row = tuple[str | None, Mapping[str, str], bytes]
"""Ordering key, attributes, data."""

NEEDED = """EXISTS (
    SELECT 1 FROM subscriptions AS s WHERE s.topic_id = m.topic_id AND (s.cursor < m.id OR EXISTS (
        SELECT 1 FROM deliveries AS d WHERE d.subscription_id = s.id AND d.message_id = m.id
    ))
)"""
"""Whether a subscription has yet to deliver, or to settle, the message ``m``."""

_LOOKED_AT = f"""
    SELECT m.id, m.publish_time, {NEEDED} FROM messages AS m
    WHERE m.topic_id = ? AND m.id > ?
        AND m.id <= ifnull((SELECT min(cursor) FROM subscriptions WHERE topic_id = ?), {2**63 - 1})
    ORDER BY m.id LIMIT ?
"""
"""Messages that every subscription has looked at."""

_ORPHANED = """
    WITH RECURSIVE present (id) AS (
        SELECT min(subscription_id) FROM deliveries
        UNION ALL
        SELECT (SELECT min(subscription_id) FROM deliveries WHERE subscription_id > present.id) FROM present
        WHERE present.id IS NOT NULL
    )
    SELECT id FROM present
    WHERE id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM subscriptions AS s WHERE s.id = present.id) LIMIT 1
"""
"""A subscription that is gone and has left deliveries; looks at one of each subscription."""

_DELETE_ORPHANS = """
    DELETE FROM deliveries WHERE subscription_id = ? AND message_id IN (
        SELECT message_id FROM deliveries WHERE subscription_id = ? ORDER BY message_id LIMIT ?
    )
"""


_FIRST_ID = next_id("messages", "?")


@cache
def _insertion(rows: int) -> str:
    """A statement that inserts the first of *rows* messages, as many as its last parameter says.

    One statement for many, since each lets go of the interpreter's lock and must win it back from busy threads.  For
    the same reason it looks at the file's version itself, and inserts nothing into a newer one.
    """
    values = ", ".join(f"({place}, ?, ?, ?)" for place in range(rows))
    return f"""
        INSERT INTO messages (id, topic_id, publish_time, ordering_key, attributes, data)
        SELECT {_FIRST_ID} + column1, ?, ?, column2, column3, column4 FROM (VALUES {values})
        WHERE (SELECT user_version FROM pragma_user_version) = {VERSION} LIMIT ?
    """


class Store:
    """One connection.

    :raises BrokerError: from any method, for what is missing or was refused.
    :raises sqlite3.Error: from any method; nothing was changed then.
    """

    def __init__(self, project: str, topic_name: str, options: SQLiteOptions, *, restored: bool = False) -> None:
        """Open the file.

        :param restored: as :func:`open_file` has it.
        """
        self.options = options
        self.topic_name = topic_name
        self._project = project
        self._is_closed = False
        self._swept = 0
        self._lapsed: dict[tuple[int, float], float] = {}
        self._long_log = LONG_LOG
        self._look_at = 0.0
        self.place = Place(options.path)
        try:
            self._open(restored)
        except BaseException:
            self.place.closed()
            raise

    def _open(self, restored: bool) -> None:
        options = self.options
        self.connection = open_file(
            options.path,
            create=options.create == "all",
            durability=options.durability,
            restored=restored,
        )
        try:
            self._prepare()
            self.place.opened()
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self) -> None:
        """The topic and the configured subscription, created where options allow (Q2)."""
        options = self.options
        with self.transaction():
            self.topic_id = self.find_topic(self.topic_name)
            # Also where it changes nothing: SQLite opens what it must not write, and says so at the first write.
            self.connection.execute(
                "UPDATE topics SET retention = ifnull(?, retention) WHERE id = ?", (options.retention, self.topic_id)
            )
            if options.subscription is not None and options.create != "never":
                self.find_subscription(options.subscription)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Write, all or nothing.

        :param durable: False for what may be lost by a power loss, such as who holds what: that spares a sync, and
            since the log is replayed in order, it is never lost without also losing all that came after it.
        """
        execute = self.connection.execute
        relax = not durable and self.options.durability == "full"
        if relax:
            execute("PRAGMA synchronous = normal")
        try:
            execute("BEGIN IMMEDIATE")
            try:
                self.check_version()
                yield
                execute("COMMIT")
            except BaseException:
                self.connection.rollback()
                raise
        finally:
            if relax:
                execute("PRAGMA synchronous = full")

    def version(self) -> int:
        """A number that another one replaces when another connection has changed the file; asked often."""
        version: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
        return version

    def check_version(self) -> None:
        """Raise when a newer program has taken over the file."""
        check_version(self.connection, self.options.path)

    def ping(self) -> None:
        """Read the topic."""
        self.check_version()
        self.connection.execute("SELECT name FROM topics WHERE id = ?", (self.topic_id,)).fetchone()

    def close(self) -> None:
        """Close the connection; the last one of all processes removes the log.  Closing twice is a no-op."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._close()
        finally:
            self.place.closed()

    def _close(self) -> None:
        if not self.place.is_deserted:
            self._leave()
            return
        folded = False
        with suppress(sqlite3.Error):  # what was moved away keeps all that is in it
            _, pages, done = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            folded = pages == done
        self.connection.close()
        self.place.clear(folded=folded)

    def _leave(self) -> None:
        if self.place.has_another_log:
            self.place.close_leaving_log(self.connection)
            return
        if not self.place.is_current:  # no other process can read the log any more: bring it into the file
            with suppress(sqlite3.Error):
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self.connection.close()

    # Inside a transaction

    def find_topic(self, name: str) -> int:
        """Id of the topic *name*, created where options allow."""
        found: int | None = self._value("SELECT id FROM topics WHERE project = ? AND name = ?", (self._project, name))
        if found is not None:
            return found
        if self.options.create != "all":
            raise BrokerError(
                f"the file {self.options.path!r} has no topic {name!r} of project {self._project!r}; "
                "create it with create=all",
                ErrorCode.NOT_FOUND,
            )
        created = self.connection.execute("INSERT INTO topics (project, name) VALUES (?, ?)", (self._project, name))
        return created.lastrowid or 0

    def find_subscription(self, name: str, *, expires_at: float | None = None) -> int:
        """Id of the subscription *name*, created where options allow, or where it is ephemeral.

        :param expires_at: until when it is kept if it is ephemeral and its receiver vanishes.
        """
        found = self._subscription_id(name)
        if found is not None:
            return found
        if self.options.create == "never" and expires_at is None:
            raise BrokerError(
                f"topic {self.topic_name!r} has no subscription {name!r}; create it with create=subscription"
                f"{self._nearest(name)}",
                ErrorCode.NOT_FOUND,
            )
        cursor = self._oldest_kept() if self.options.start == "earliest" else self._last_id()
        return self._create_subscription(self.topic_id, name, cursor=cursor, expires_at=expires_at)

    def _nearest(self, name: str) -> str:
        rows = self.connection.execute(
            "SELECT name FROM subscriptions WHERE topic_id = ? AND expires_at IS NULL", (self.topic_id,)
        )
        return did_you_mean(name, [known for (known,) in rows])

    def _create_subscription(self, topic_id: int, name: str, *, cursor: int, expires_at: float | None = None) -> int:
        created = self.connection.execute(
            "INSERT INTO subscriptions (topic_id, name, cursor, expires_at) VALUES (?, ?, ?, ?)",
            (topic_id, name, cursor, expires_at),
        )
        return created.lastrowid or 0

    def insert(self, topic_id: int, messages: Sequence[_Row], now: float) -> range:
        """Append messages, each an ordering key, attributes and data; returns their ids.

        Up to :data:`ROWS` of them need no transaction around this.
        """
        last = 0
        first_id = int(now * 1e6)
        for start in range(0, len(messages), ROWS):
            chunk = messages[start : start + ROWS]
            rows = 1 << (len(chunk) - 1).bit_length()  # few sizes, so that SQLite compiles few statements
            parameters: list[object] = [first_id, topic_id, now]
            for key, attributes, data in chunk:
                parameters += (key, json.dumps(dict(attributes)) if attributes else None, data)
            parameters += [None] * (3 * (rows - len(chunk)))
            parameters.append(len(chunk))
            while not (inserted := self.connection.execute(_insertion(rows), parameters)).rowcount:
                self.check_version()
            last = inserted.lastrowid or 0
        return range(last + 1 - len(messages), last + 1)  # one writer at a time: its ids are consecutive

    def reclaim(self, message_ids: Iterable[int]) -> None:
        """Delete those of *message_ids* that no subscription needs, unless the topic keeps them."""
        if not self._retention():
            self.connection.executemany(
                f"DELETE FROM messages AS m WHERE m.id = ? AND NOT {NEEDED}", [(number,) for number in message_ids]
            )

    def drop_subscription(self, subscription_id: int) -> None:
        """Delete a subscription and what its receivers hold; what it has not delivered is left to :meth:`sweep`."""
        for statement in (
            "DELETE FROM deliveries WHERE session_id IN (SELECT id FROM sessions WHERE subscription_id = ?)",
            "DELETE FROM sessions WHERE subscription_id = ?",
            "DELETE FROM subscriptions WHERE id = ?",
        ):
            self.connection.execute(statement, (subscription_id,))

    def has_subscription(self, topic_id: int, *, until: float) -> bool:
        """Return whether the topic of that id has a subscription that does not expire before *until*."""
        query = "SELECT 1 FROM subscriptions WHERE topic_id = ? AND (expires_at IS NULL OR expires_at >= ?)"
        return self._value(query, (topic_id, until)) is not None

    def _subscription_id(self, name: str) -> int | None:
        found: int | None = self._value(
            "SELECT id FROM subscriptions WHERE topic_id = ? AND name = ?", (self.topic_id, name)
        )
        return found

    def _last_id(self) -> int:
        return int(self._value("SELECT seq FROM sqlite_sequence WHERE name = 'messages'") or 0)

    def _oldest_kept(self) -> int:
        """Return a cursor before every message, except those that are past the retention and not yet swept away.

        The id of a message is the time of its insertion, in microseconds.
        """
        retention = self._retention()
        return int((time.time() - retention) * 1e6) if retention else 0

    def _retention(self) -> float:
        return float(self._value("SELECT retention FROM topics WHERE id = ?", (self.topic_id,)))

    def _value(self, query: str, parameters: Sequence[object] = ()) -> Any:
        row = self.connection.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    # Whole transactions

    def publish(self, messages: Sequence[EventMessage]) -> Sequence[str]:
        """Store *messages* in order; their ids."""
        rows = [(message.ordering_key, message.attributes, message.data) for message in messages]
        with self.transaction() if len(rows) > ROWS else nullcontext():
            return [str(number) for number in self.insert(self.topic_id, rows, time.time())]

    def is_heard(self) -> bool:
        """Return whether what is published reaches a subscription, or is kept for one yet to come."""
        return self.has_subscription(self.topic_id, until=time.time()) or self._retention() > 0

    def keep_dead_letters(self, subscription: str) -> bool:
        """Create *subscription* of the dead-letter topic unless it has a durable one; return whether it has one now."""
        with self.transaction():
            topic_id = self.find_topic(self.options.dead_letter_topic or "")
            if self.has_subscription(topic_id, until=math.inf):
                return True
            if self.options.create == "never":
                return False
            self._create_subscription(topic_id, subscription, cursor=0)
            return True

    def delete_subscription(self, name: str) -> None:
        """Delete the subscription *name*."""
        with self.transaction():
            found = self._subscription_id(name)
            if found is None:
                raise BrokerError(
                    f"topic {self.topic_name!r} has no subscription {name!r}; nothing was deleted{self._nearest(name)}",
                    ErrorCode.NOT_FOUND,
                )
            self.drop_subscription(found)

    def bound_log(self) -> None:
        """Empty the log where it has become long, if others let go of it for a moment.

        SQLite does so by itself once all of the log is in the file, which busy processes never let come about.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_PAUSE
        size = self.place.log_size
        if size > self._long_log:
            (busy, *_) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._long_log = size + LONG_LOG if busy else LONG_LOG  # waiting has its price, also in vain

    def sweep(self) -> bool:
        """Delete some of what nobody needs.

        That is lapsed ephemeral subscriptions, what deleted ones had not delivered, messages past the topic's
        retention, and most of the space that a backlog has left.  What is acknowledged goes at once where nothing is
        retained; this is for the rest.  Looks at :data:`SWEEP` messages, and next time at those after them.

        :returns: whether it is worth going on at once.
        """
        now = time.time()
        with self.transaction(durable=False):
            for subscription_id in self._deserted(now):
                self.drop_subscription(subscription_id)
            orphans = self._delete_orphans()
            seen = self.connection.execute(_LOOKED_AT, (self.topic_id, self._swept, self.topic_id, SWEEP)).fetchall()
            oldest_kept = now - self._retention()
            doomed = [(number,) for number, published, needed in seen if published <= oldest_kept and not needed]
            self.connection.executemany("DELETE FROM messages WHERE id = ?", doomed)
            shrunk = self._shrink()
        at_end = len(seen) < SWEEP or seen[-1][1] > oldest_kept
        self._swept = 0 if at_end else seen[-1][0]
        return orphans or shrunk or (bool(doomed) and not at_end)

    def _deserted(self, now: float) -> list[int]:
        """Return the ephemeral subscriptions that lapsed and were not renewed for a session timeout since then.

        If the clock is set forward, those of running receivers look lapsed too, until they are renewed.
        """
        query = "SELECT id, expires_at FROM subscriptions WHERE topic_id = ? AND expires_at < ?"
        lapsed = self.connection.execute(query, (self.topic_id, now)).fetchall()
        passed = time.monotonic()
        self._lapsed = {each: self._lapsed.get(each, passed) for each in lapsed}
        patience = self.options.session_timeout
        return [number for (number, _), seen in self._lapsed.items() if passed - seen >= patience]

    def _delete_orphans(self) -> bool:
        orphaned = self._value(_ORPHANED)
        if orphaned is None:
            return False
        self.connection.execute(_DELETE_ORPHANS, (orphaned, orphaned, SWEEP))
        return True

    def _shrink(self) -> bool:
        """Give free pages back to the disk, where more are free than in use."""
        free, pages = self._value("PRAGMA freelist_count"), self._value("PRAGMA page_count")
        if free <= max(SPARE, pages // 2):
            return False
        self.connection.execute(f"PRAGMA incremental_vacuum({SWEEP})").fetchall()
        return True
