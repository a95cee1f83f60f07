"""Topics, subscriptions and deliveries as SQL.

Each subscription has a *cursor*, the highest message id that it has looked at; beyond it messages cost nothing but
their own row, however many subscriptions there are.  What was looked at and is not settled has a row in
``deliveries``.  Rules for the rows of one key in one subscription:

1. While one is leased, by whomever, no other is leased: a run is fetched at once and settled before the next.
2. Otherwise the first is ready (once it is available), and the others are blocked.

So order per key holds over all processes (R8), and what goes back stands before what was fetched after it (R10).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from events_core import ErrorCode, EventMessage
from events_core.backends.sqlite.database import Database
from events_core.engine import BrokerError, Outcome, dead_letter_attributes, redelivery_delay

__all__ = ["Lease", "Policy", "Row", "Store"]

READY, LEASED, BLOCKED = 0, 1, 2

SCAN = 1000
"""Messages that one fetch looks at: bounds its transaction when most of them are blocked."""


class Lease(NamedTuple):
    """A claim on one message: it is void once the session or the number of attempts is another."""

    session_id: int
    attempts: int


class Row(NamedTuple):
    """A message as it was leased."""

    message_id: int
    data: bytes
    attributes: dict[str, str]
    ordering_key: str | None
    published: float
    lease: Lease


class Policy(NamedTuple):
    """When a message is a dead letter, and where it goes."""

    max_attempts: int | None
    topic_id: int | None
    source_topic: str
    source_subscription: str


class Store:
    """The operations of a broker on one database; the caller puts them into transactions."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # Topics

    def topic(self, project: str, name: str, *, create: bool) -> int:
        """The id of a topic, made when it is missing and *create*."""
        found = self._db.value("SELECT id FROM topics WHERE project = ? AND name = ?", project, name)
        if found is None:
            if not create:
                raise BrokerError(
                    f"there is no topic {name!r} of project {project!r}; create it with create=all",
                    ErrorCode.NOT_FOUND,
                )
            found = self._db.execute("INSERT INTO topics (project, name) VALUES (?, ?)", (project, name)).lastrowid
        return _id(found)

    def retain(self, topic_id: int, retention: float) -> None:
        """Keep messages of a topic for *retention* seconds, or for longer if somebody asked for that."""
        self._db.execute("UPDATE topics SET retention = ? WHERE id = ? AND retention < ?", (retention, topic_id, retention))

    def append(self, topic_id: int, messages: Sequence[EventMessage]) -> list[int]:
        """Store messages; their ids."""
        first = _id(self._db.value("SELECT seq FROM sqlite_sequence WHERE name = 'messages'") or 0) + 1
        now = time.time()
        rows = [
            (number, topic_id, message.data, _dumps(message), message.ordering_key, now)
            for number, message in enumerate(messages, first)
        ]
        self._db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)", rows)
        return [row[0] for row in rows]

    # Subscriptions

    def subscription(self, topic_id: int, name: str) -> int | None:
        """The id of a subscription, if there is one."""
        found = self._db.value("SELECT id FROM subscriptions WHERE topic_id = ? AND name = ?", topic_id, name)
        return None if found is None else _id(found)

    def create_subscription(self, topic_id: int, name: str, *, earliest: bool) -> int:
        """A new subscription, which begins with the next message, or the oldest that is kept."""
        last = self._db.value("SELECT max(id) FROM messages WHERE topic_id = ?", topic_id)
        created = self._db.execute(
            "INSERT INTO subscriptions (topic_id, name, cursor) VALUES (?, ?, ?)",
            (topic_id, name, 0 if earliest else last or 0),
        )
        return _id(created.lastrowid)

    def delete_subscription(self, subscription_id: int) -> None:
        """Remove a subscription with all that it has not delivered; :meth:`collect` finds what nobody needs then."""
        for table, column in (("deliveries", "subscription_id"), ("sessions", "subscription_id"), ("subscriptions", "id")):
            self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (subscription_id,))

    # Sessions

    def begin_session(self, subscription_id: int, expires: float, *, owner: bool = False) -> int:
        """A new session; with *owner* the subscription lives as long as it."""
        session = self._db.execute(
            "INSERT INTO sessions (subscription_id, expires) VALUES (?, ?)", (subscription_id, expires)
        )
        if owner:
            self._db.execute("UPDATE subscriptions SET owner = ? WHERE id = ?", (session.lastrowid, subscription_id))
        return _id(session.lastrowid)

    def renew_session(self, session_id: int, expires: float) -> bool:
        """Prolong a session; whether there still was one."""
        return self._db.execute("UPDATE sessions SET expires = ? WHERE id = ?", (expires, session_id)).rowcount > 0

    def lapsed(self, subscription_id: int, now: float) -> list[int]:
        """Sessions of a subscription whose process has died."""
        found = self._db.execute(
            "SELECT id FROM sessions WHERE subscription_id = ? AND expires < ?", (subscription_id, now)
        )
        return [row[0] for row in found]

    def end_session(self, session_id: int, outcome: Outcome, policy: Policy, subscription_id: int) -> None:
        """Take back whatever a session still holds, the first of each key with *outcome*, its successors uncounted."""
        held = self._db.execute(
            "SELECT message_id, ordering_key, attempts FROM deliveries WHERE session_id = ? ORDER BY message_id",
            (session_id,),
        ).fetchall()
        keys: set[str] = set()
        for message_id, key, attempts in held:
            what = Outcome.RETURN if key in keys else outcome
            self.settle(subscription_id, message_id, Lease(session_id, attempts), what, None, policy)
            if key is not None:
                keys.add(key)
        self.unblock(subscription_id, keys)
        self._db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))

    def abandoned(self, before: float) -> list[int]:
        """Ephemeral subscriptions whose session lapsed *before* then, or is gone."""
        found = self._db.execute(
            "SELECT s.id FROM subscriptions s LEFT JOIN sessions o ON o.id = s.owner "
            "WHERE s.owner IS NOT NULL AND (o.id IS NULL OR o.expires < ?)",
            (before,),
        )
        return [row[0] for row in found]

    # Fetching

    def has_work(self, topic_id: int, subscription_id: int, now: float) -> bool:
        """Whether a fetch may find something; reads only."""
        cursor = self._db.value("SELECT cursor FROM subscriptions WHERE id = ?", subscription_id)
        if cursor is None:
            raise BrokerError("the subscription has been deleted; subscribe again", ErrorCode.NOT_FOUND)
        fresh = self._db.value("SELECT 1 FROM messages WHERE topic_id = ? AND id > ? LIMIT 1", topic_id, cursor)
        due = self.next_due(subscription_id)
        return fresh is not None or (due is not None and due <= now)

    def next_due(self, subscription_id: int) -> float | None:
        """When the next message that went back is available."""
        found = self._db.value(
            "SELECT min(available) FROM deliveries WHERE subscription_id = ? AND state = 0", subscription_id
        )
        return None if found is None else float(found)

    def fetch(self, topic_id: int, subscription_id: int, session_id: int, limit: int, now: float) -> list[Row]:
        """Lease up to *limit* messages, in order per key."""
        leased = self._lease_returned(subscription_id, session_id, limit, now)
        if len(leased) < limit:
            leased += self._lease_fresh(topic_id, subscription_id, session_id, limit - len(leased))
        return [self._read(message_id, Lease(session_id, attempts)) for message_id, attempts in leased]

    def _lease_returned(
        self, subscription_id: int, session_id: int, limit: int, now: float
    ) -> list[tuple[int, int]]:
        heads = self._db.execute(
            "SELECT message_id, ordering_key, attempts FROM deliveries "
            "WHERE subscription_id = ? AND state = 0 AND available <= ? ORDER BY available, message_id LIMIT ?",
            (subscription_id, now, limit),
        ).fetchall()
        chosen: list[tuple[int, int]] = []
        for message_id, key, attempts in heads:
            if len(chosen) >= limit:
                break
            if key is None:
                chosen.append((message_id, attempts + 1))
            else:
                chosen += self._run(subscription_id, key, limit - len(chosen), now)
        self._db.executemany(
            "UPDATE deliveries SET state = 1, attempts = ?, session_id = ? WHERE subscription_id = ? AND message_id = ?",
            [(attempts, session_id, subscription_id, message_id) for message_id, attempts in chosen],
        )
        return chosen

    def _run(self, subscription_id: int, key: str, limit: int, now: float) -> list[tuple[int, int]]:
        """The first messages of a key, up to one that is not available yet."""
        run: list[tuple[int, int]] = []
        rows = self._db.execute(
            "SELECT message_id, attempts, available FROM deliveries "
            "WHERE subscription_id = ? AND ordering_key = ? ORDER BY message_id LIMIT ?",
            (subscription_id, key, limit),
        )
        for message_id, attempts, available in rows:
            if available > now:
                break
            run.append((message_id, attempts + 1))
        return run

    def _lease_fresh(
        self, topic_id: int, subscription_id: int, session_id: int, limit: int
    ) -> list[tuple[int, int]]:
        """Look beyond the cursor: lease what is free, remember what is blocked."""
        cursor = self._db.value("SELECT cursor FROM subscriptions WHERE id = ?", subscription_id)
        rows = self._db.execute(
            "SELECT id, ordering_key FROM messages WHERE topic_id = ? AND id > ? ORDER BY id LIMIT ?",
            (topic_id, cursor, max(limit, SCAN)),
        )
        looked_at: list[tuple[int, int, str | None, int, int, int | None]] = []
        chosen: list[tuple[int, int]] = []
        free: dict[str, bool] = {}
        for message_id, key in rows:
            if len(chosen) >= limit:
                break
            if key is not None and key not in free:
                free[key] = not self._is_known(subscription_id, key)
            if key is None or free[key]:
                chosen.append((message_id, 1))
                looked_at.append((subscription_id, message_id, key, LEASED, 1, session_id))
            else:
                looked_at.append((subscription_id, message_id, key, BLOCKED, 0, None))
        if looked_at:
            self._db.executemany("INSERT INTO deliveries VALUES (?, ?, ?, ?, 0, ?, ?)", looked_at)
            last = looked_at[-1][1]
            self._db.execute("UPDATE subscriptions SET cursor = ? WHERE id = ?", (last, subscription_id))
        return chosen

    def _is_known(self, subscription_id: int, key: str) -> bool:
        found = self._db.value(
            "SELECT 1 FROM deliveries WHERE subscription_id = ? AND ordering_key = ? LIMIT 1", subscription_id, key
        )
        return found is not None

    def _read(self, message_id: int, lease: Lease) -> Row:
        data, attributes, key, published = self._db.execute(
            "SELECT data, attributes, ordering_key, published FROM messages WHERE id = ?", (message_id,)
        ).fetchone()
        return Row(message_id, data, json.loads(attributes) if attributes else {}, key, published, lease)

    # Settling

    def settle(
        self, subscription_id: int, message_id: int, lease: Lease, outcome: Outcome, delay: float | None, policy: Policy
    ) -> bool:
        """End one lease; whether it was still valid.  :meth:`unblock` must follow for its key."""
        attempts = lease.attempts
        dead = outcome is Outcome.NACK and policy.max_attempts is not None and attempts >= policy.max_attempts
        if outcome is Outcome.ACK or dead:
            if not self._remove(subscription_id, message_id, lease):
                return False
            if dead:
                self._bury(message_id, attempts, policy)
            self._drop_unneeded(message_id)
            return True
        if outcome is Outcome.RETURN:
            return self._put_back(subscription_id, message_id, lease, attempts - 1, 0.0)
        pause = redelivery_delay(attempts) if delay is None else delay
        return self._put_back(subscription_id, message_id, lease, attempts, time.time() + pause if pause else 0.0)

    def _remove(self, subscription_id: int, message_id: int, lease: Lease) -> bool:
        removed = self._db.execute(
            "DELETE FROM deliveries WHERE subscription_id = ? AND message_id = ? AND session_id = ? AND attempts = ?",
            (subscription_id, message_id, *lease),
        )
        return removed.rowcount > 0

    def _put_back(
        self, subscription_id: int, message_id: int, lease: Lease, attempts: int, available: float
    ) -> bool:
        returned = self._db.execute(
            "UPDATE deliveries SET state = CASE WHEN ordering_key IS NULL THEN 0 ELSE 2 END, "
            "attempts = ?, available = ?, session_id = NULL "
            "WHERE subscription_id = ? AND message_id = ? AND session_id = ? AND attempts = ?",
            (attempts, available, subscription_id, message_id, *lease),
        )
        return returned.rowcount > 0

    def unblock(self, subscription_id: int, keys: Iterable[str]) -> None:
        """Make the first message of each key ready, unless some of the key are leased."""
        for key in keys:
            busy = self._db.value(
                "SELECT 1 FROM deliveries WHERE subscription_id = ? AND ordering_key = ? AND state = 1 LIMIT 1",
                subscription_id,
                key,
            )
            if busy is None:
                self._db.execute(
                    "UPDATE deliveries SET state = 0 WHERE subscription_id = ?1 AND message_id = ("
                    "SELECT message_id FROM deliveries WHERE subscription_id = ?1 AND ordering_key = ?2 "
                    "ORDER BY message_id LIMIT 1)",
                    (subscription_id, key),
                )

    def _bury(self, message_id: int, attempts: int, policy: Policy) -> None:
        assert policy.topic_id is not None
        row = self._read(message_id, Lease(0, attempts))
        attributes = dead_letter_attributes(
            row.attributes,
            topic_name=policy.source_topic,
            subscription=policy.source_subscription,
            message_id=str(message_id),
            attempts=attempts,
        )
        self.append(policy.topic_id, [EventMessage(row.data, attributes, ordering_key=row.ordering_key)])

    def _drop_unneeded(self, message_id: int) -> None:
        """Delete a message that this subscription is done with, unless another needs it or it is retained."""
        self._db.execute(
            "DELETE FROM messages WHERE id = ?1 "
            "AND (SELECT retention FROM topics t WHERE t.id = topic_id) = 0 "
            "AND NOT EXISTS (SELECT 1 FROM subscriptions s WHERE s.topic_id = messages.topic_id AND ("
            "s.cursor < ?1 OR EXISTS ("
            "SELECT 1 FROM deliveries d WHERE d.subscription_id = s.id AND d.message_id = ?1)))",
            (message_id,),
        )

    def collect(self, topic_id: int, after: int, now: float) -> int:
        """Delete what nobody needs and is past its retention, among the next messages *after* an id.

        :returns: the last id looked at; 0 when there are no more.
        """
        retention = float(self._db.value("SELECT retention FROM topics WHERE id = ?", topic_id) or 0)
        rows = self._db.execute(
            "SELECT id, published FROM messages WHERE topic_id = ? AND id > ? ORDER BY id LIMIT ?",
            (topic_id, after, SCAN),
        ).fetchall()
        for message_id, published in rows:
            if published > now - retention:
                return 0
            self._db.execute(
                "DELETE FROM messages WHERE id = ?1 AND NOT EXISTS ("
                "SELECT 1 FROM subscriptions s WHERE s.topic_id = messages.topic_id AND (s.cursor < ?1 OR EXISTS ("
                "SELECT 1 FROM deliveries d WHERE d.subscription_id = s.id AND d.message_id = ?1)))",
                (message_id,),
            )
        return _id(rows[-1][0]) if len(rows) == SCAN else 0

    def withheld(self, subscription_id: int) -> list[str]:
        """Keys that have blocked messages behind leased ones."""
        rows = self._db.execute(
            "SELECT DISTINCT d.ordering_key FROM deliveries d WHERE d.subscription_id = ?1 AND d.state = 1 "
            "AND d.ordering_key IS NOT NULL AND EXISTS (SELECT 1 FROM deliveries b WHERE b.subscription_id = ?1 "
            "AND b.ordering_key = d.ordering_key AND b.state = 2) LIMIT 10",
            (subscription_id,),
        )
        return [row[0] for row in rows]


def _id(value: object) -> int:
    assert isinstance(value, int)
    return value


def _dumps(message: EventMessage) -> str | None:
    return json.dumps(dict(message.attributes), ensure_ascii=False) if message.attributes else None
