"""The file as one client uses it: its topic, the messages sent to it, and its subscriptions.

All of it is synchronous.  :class:`~events_core.backends.sqlite.connection.FileConnection` calls it and holds its own
lock meanwhile.  Each public method is one transaction, except those under "Inside a transaction".
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from events_core import ErrorCode, EventMessage
from events_core.backends.sqlite import schema
from events_core.backends.sqlite.codec import encode_attributes
from events_core.backends.sqlite.opening import check_version, open_file
from events_core.backends.sqlite.options import SQLiteOptions
from events_core.backends.sqlite.place import Place
from events_core.backends.sqlite.sweep import NEEDED, Sweep, drop_subscription
from events_core.engine import BrokerError
from events_core.options import did_you_mean

__all__ = ["Store"]

LONG_LOG = 16 * 2**20
"""Size of the write-ahead log, in bytes, from which on a client empties it."""
LOOK_PAUSE = 0.005
"""Seconds between two looks at the size of the log.  Each look releases the interpreter's lock, which busy threads may
then keep for a while."""

ROWS = 256
"""Messages that one statement inserts, at most: SQLite may allow no more than 999 parameters
(sqlite.org/limits.html#max_variable_number), and each message has three."""

_Row = tuple[str | None, Mapping[str, str], bytes]
"""Ordering key, attributes, data."""

_FIND_TOPIC = "SELECT id FROM topics WHERE project = :project AND name = :name"
_CREATE_TOPIC = "INSERT INTO topics (project, name) VALUES (:project, :name)"
_SET_RETENTION = "UPDATE topics SET retention = ifnull(:retention, retention) WHERE id = :topic"
_RETENTION = "SELECT retention FROM topics WHERE id = :topic"
_FIND_SUBSCRIPTION = "SELECT id FROM subscriptions WHERE topic_id = :topic AND name = :name"
_CREATE_SUBSCRIPTION = """
    INSERT INTO subscriptions (topic_id, name, cursor, expires_at) VALUES (:topic, :name, :cursor, :expires_at)
"""
_DURABLE_NAMES = "SELECT name FROM subscriptions WHERE topic_id = :topic AND expires_at IS NULL"
_HAS_SUBSCRIPTION = """
    SELECT 1 FROM subscriptions WHERE topic_id = :topic AND (expires_at IS NULL OR expires_at >= :until)
"""
# With a positional parameter, which is quicker, because this runs once for each message.
_RECLAIM = f"DELETE FROM messages AS m WHERE m.id = ? AND NOT {NEEDED}"

_FIRST_ID = schema.next_id("messages", "?")


@cache
def _insertion(rows: int, version: int) -> str:
    """Return a statement with places for *rows* messages; its last parameter says how many of them it inserts.

    It inserts nothing if the file does not have the given *version*.
    """
    # One statement inserts many messages and checks the version too.  Each statement releases the interpreter's lock,
    # and must win it back from busy threads.
    values = ", ".join(f"({place}, ?, ?, ?)" for place in range(rows))
    return f"""
        INSERT INTO messages (id, topic_id, publish_time, ordering_key, attributes, data)
        SELECT {_FIRST_ID} + column1, ?, ?, column2, column3, column4 FROM (VALUES {values})
        WHERE (SELECT user_version FROM pragma_user_version) = {version} LIMIT ?
    """


class Store:
    """A connection to the file.

    :raises BrokerError: from any method, if something is missing or was refused.
    :raises sqlite3.Error: from any method; the file is then unchanged.
    """

    def __init__(self, project: str, topic_name: str, options: SQLiteOptions, *, restored: bool = False) -> None:
        """Open the file.

        :param restored: True if the file is known to have had content before (see :func:`open_file`).
        """
        self.options = options
        self.topic_name = topic_name
        self._project = project
        self._is_closed = False
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
        """Find the topic and the configured subscription; create them if the options allow it (Q2)."""
        options = self.options
        with self.transaction():
            self.topic_id = self.find_topic(self.topic_name)
            self._sweep = Sweep(self.connection, self.topic_id, patience=options.session_timeout)
            # Write even if nothing changes.  SQLite opens a file that it may not write, and reports that only at the
            # first write.
            self.connection.execute(_SET_RETENTION, {"retention": options.retention, "topic": self.topic_id})
            if options.subscription is not None and options.create != "never":
                self.find_subscription(options.subscription)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Run the statements of the ``with`` block in one transaction; roll it back if the block raises.

        :param durable: False if a power loss may undo the changes, which saves a sync.  This suits the record of who
            holds which message.  The log is replayed in order, so the next durable transaction makes them durable too.
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
        """Return a number that changes when another connection changes the file.  It is cheap, so you may poll it."""
        version: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
        return version

    def check_version(self) -> None:
        """Raise if another version of this library has upgraded the file."""
        check_version(self.connection, self.options.path)

    def ping(self) -> None:
        """Read the topic."""
        self.check_version()
        self._value(_RETENTION, {"topic": self.topic_id})

    def close(self) -> None:
        """Close the connection; the last one of all processes removes the log.  Closing again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.place.close(self.connection)
        finally:
            self.place.closed()

    # Inside a transaction

    def find_topic(self, name: str) -> int:
        """Return the id of the topic *name*; create the topic if the options allow it."""
        topic = {"project": self._project, "name": name}
        found: int | None = self._value(_FIND_TOPIC, topic)
        if found is not None:
            return found
        if self.options.create != "all":
            raise BrokerError(
                f"the file {self.options.path!r} has no topic {name!r} of project {self._project!r}; "
                "create it with create=all",
                ErrorCode.NOT_FOUND,
            )
        return self.connection.execute(_CREATE_TOPIC, topic).lastrowid or 0

    def find_subscription(self, name: str, *, expires_at: float | None = None) -> int:
        """Return the id of the subscription *name*; create it if it is ephemeral or the options allow it.

        :param expires_at: ``None`` for a durable subscription.  For an ephemeral one, the ``time.time()`` until which
            it is kept if its receiver vanishes.
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
        rows = self.connection.execute(_DURABLE_NAMES, {"topic": self.topic_id})
        return did_you_mean(name, [known for (known,) in rows])

    def _create_subscription(self, topic_id: int, name: str, *, cursor: int, expires_at: float | None = None) -> int:
        subscription = {"topic": topic_id, "name": name, "cursor": cursor, "expires_at": expires_at}
        return self.connection.execute(_CREATE_SUBSCRIPTION, subscription).lastrowid or 0

    def insert(self, topic_id: int, messages: Sequence[_Row], now: float) -> range:
        """Append messages, each an ordering key, attributes and data; return their ids.

        Up to :data:`ROWS` messages take one statement, which needs no transaction around it.
        """
        last = 0
        first_id = int(now * 1e6)
        for start in range(0, len(messages), ROWS):
            chunk = messages[start : start + ROWS]
            rows = 1 << (len(chunk) - 1).bit_length()  # few sizes, so that SQLite compiles few statements
            parameters: list[object] = [first_id, topic_id, now]
            for key, attributes, data in chunk:
                parameters += (key, encode_attributes(attributes), data)
            parameters += [None] * (3 * (rows - len(chunk)))
            parameters.append(len(chunk))
            # No row is inserted if the version of the file has changed; then the check raises.
            while not (inserted := self.connection.execute(_insertion(rows, schema.VERSION), parameters)).rowcount:
                self.check_version()
            last = inserted.lastrowid or 0
        # The ids are consecutive, because SQLite has one writer at a time.
        return range(last + 1 - len(messages), last + 1)

    def reclaim(self, message_ids: Iterable[int]) -> None:
        """Delete the messages that no subscription needs any more, unless the topic retains them."""
        if not self._retention():
            self.connection.executemany(_RECLAIM, [(number,) for number in message_ids])

    def has_subscription(self, topic_id: int, *, until: float) -> bool:
        """Return whether the topic *topic_id* has a subscription that does not expire before *until*."""
        return self._value(_HAS_SUBSCRIPTION, {"topic": topic_id, "until": until}) is not None

    def _subscription_id(self, name: str) -> int | None:
        found: int | None = self._value(_FIND_SUBSCRIPTION, {"topic": self.topic_id, "name": name})
        return found

    def _last_id(self) -> int:
        return int(self._value("SELECT seq FROM sqlite_sequence WHERE name = 'messages'") or 0)

    def _oldest_kept(self) -> int:
        """Return a cursor before every message that is within the retention."""
        # The id of a message is the time of its insertion in microseconds, or a larger number.  Messages past the
        # retention may still be in the file, until a sweep deletes them.
        retention = self._retention()
        return int(max(0.0, time.time() - retention) * 1e6) if retention else 0

    def _retention(self) -> float:
        return float(self._value(_RETENTION, {"topic": self.topic_id}))

    def _value(self, query: str, parameters: Mapping[str, object] | None = None) -> Any:
        row = self.connection.execute(query, parameters or {}).fetchone()
        return None if row is None else row[0]

    # Whole transactions

    def publish(self, messages: Sequence[EventMessage]) -> Sequence[str]:
        """Store *messages* in order; return their ids."""
        rows = [(message.ordering_key, message.attributes, message.data) for message in messages]
        with self.transaction() if len(rows) > ROWS else nullcontext():
            return [str(number) for number in self.insert(self.topic_id, rows, time.time())]

    def is_heard(self) -> bool:
        """Return whether a message that is sent now reaches a subscription, or is kept for a later one."""
        return self.has_subscription(self.topic_id, until=time.time()) or self._retention() > 0

    def keep_dead_letters(self, subscription: str) -> bool:
        """Make sure that the dead-letter topic has a durable subscription; return whether it has one now.

        If it has none, create *subscription*, as far as the options allow it.
        """
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
            drop_subscription(self.connection, found)

    def bound_log(self) -> None:
        """Empty the log if it has become long and no other process is using it at the moment."""
        # SQLite writes to the log from its beginning again when all of it has been copied into the file and no process
        # reads from it.  If several processes are busy, that moment never comes, and the log grows without end.
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_PAUSE
        size = self.place.log_size
        if size > self._long_log:
            (busy, *_) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            # Each try waits for the other processes, even if it then fails.  So let the log grow before the next try.
            self._long_log = size + LONG_LOG if busy else LONG_LOG

    def sweep(self) -> bool:
        """Delete some messages and subscriptions that no one needs; return whether to call this again at once."""
        now = time.time()
        with self.transaction(durable=False):
            return self._sweep.step(now, oldest_kept=now - self._retention())
