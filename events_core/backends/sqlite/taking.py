"""Taking: which messages one transaction leases to a receiver, in order per key.

First come messages that are due again, then new ones beyond the subscription's cursor.
"""

from __future__ import annotations

import sqlite3

from events_core.backends.sqlite.codec import MESSAGE, decode
from events_core.backends.sqlite.schema import BLOCKED, LEASED, READY
from events_core.engine import Delivery

__all__ = ["NO_SECOND_SUSPECT", "Taking"]

SCAN = 1000
"""New messages looked at in one transaction, so that a key with a long queue does not delay others."""
RUN = 100
"""Messages of one key leased at once, so that a key does not crowd out others."""
TAKE_BYTES = 16 * 2**20
"""Bytes of data after which a transaction takes no more."""

# A process that dies fails everything that it has fetched, but only one of these messages may have killed it.  If that
# was the last attempt of several messages, they become suspects.  A session gets one suspect at a time, so the next
# death tells which message it is.
NO_SECOND_SUSPECT = """(d.attempts < :most OR NOT EXISTS (
    SELECT 1 FROM deliveries AS held WHERE held.session_id = :session AND held.attempts >= :most
))"""
"""The condition that ``:session`` may take the delivery ``d``."""

_READY = f"""
    SELECT message_id, attempts, ordering_key FROM deliveries AS d
    WHERE subscription_id = :subscription AND state = {READY} AND available_at <= :now AND {NO_SECOND_SUSPECT}
    ORDER BY available_at, message_id LIMIT :limit
"""
_QUEUED = f"""
    SELECT message_id, attempts, available_at FROM deliveries
    WHERE subscription_id = :subscription AND ordering_key = :key AND state = {BLOCKED}
    ORDER BY message_id LIMIT :limit
"""
_FRESH = f"""
    SELECT m.id, m.ordering_key, m.ordering_key IS NOT NULL AND EXISTS (
        SELECT 1 FROM deliveries AS d WHERE d.subscription_id = s.id AND d.ordering_key = m.ordering_key
    )
    FROM subscriptions AS s JOIN messages AS m ON m.topic_id = s.topic_id AND m.id > s.cursor
    WHERE s.id = :subscription ORDER BY m.id LIMIT {SCAN}
"""
_MOVE_CURSOR = "UPDATE subscriptions SET cursor = :message WHERE id = :subscription"
# Positional: it runs once for each message.
_LEASE = f"""
    INSERT INTO deliveries (subscription_id, message_id, ordering_key, state, attempts, session_id)
    VALUES (?, ?, ?, {LEASED}, ?, ?)
    ON CONFLICT (subscription_id, message_id) DO UPDATE SET state = {LEASED}, session_id = excluded.session_id
"""
_BLOCK = f"""
    INSERT INTO deliveries (subscription_id, message_id, ordering_key, state)
    VALUES (:subscription, :message, :key, {BLOCKED})
"""


class Taking:
    """The messages that one transaction leases to a session."""

    def __init__(
        self, connection: sqlite3.Connection, *, subscription: int, session: int, most_attempts: int, limit: int
    ) -> None:
        """Prepare to take.

        :param most_attempts: failed attempts from which on a message is a suspect.
        :param limit: how many messages to take at most.
        """
        self.deliveries: list[Delivery] = []
        self._execute = connection.execute
        self._executemany = connection.executemany
        self._subscription = subscription
        self._session = session
        self._most_attempts = most_attempts
        self._limit = limit
        self._size = 0
        self._runs: dict[str, int] = {}
        self._leases: list[tuple[int, int, str | None, int, int]] = []

    def take(self, now: float) -> list[Delivery]:
        """Lease messages; return them as deliveries."""
        self._take_ready(now)
        self._take_fresh()
        # Only now, because the queries above read the same table.
        self._executemany(_LEASE, self._leases)
        return self.deliveries

    @property
    def _is_full(self) -> bool:
        return len(self.deliveries) >= self._limit or self._size >= TAKE_BYTES

    def _has_enough_of(self, key: str | None) -> bool:
        return key is not None and self._runs.get(key, 0) >= RUN

    def _take_ready(self, now: float) -> None:
        most, has_suspect = self._most_attempts, False
        asked = {
            "subscription": self._subscription,
            "now": now,
            "most": most,
            "session": self._session,
            "limit": self._limit,
        }
        for message_id, failed, key in self._execute(_READY, asked).fetchall():
            if self._is_full:
                return
            if failed >= most:
                if has_suspect:
                    continue
                has_suspect = True
            self._add(message_id, failed)
            if key is not None:
                self._take_run(key, now)

    def _take_run(self, key: str, now: float) -> None:
        """Take the messages that wait behind the first one of *key*, up to one with another delay."""
        asked = {"subscription": self._subscription, "key": key, "limit": RUN}
        for message_id, failed, available_at in self._execute(_QUEUED, asked).fetchall():
            if available_at > now or self._is_full or self._has_enough_of(key):
                return
            self._add(message_id, failed)

    def _take_fresh(self) -> None:
        """Look at messages beyond the cursor, and move it."""
        blocked: list[dict[str, object]] = []
        message_id = None
        fresh = self._execute(_FRESH, {"subscription": self._subscription})
        while not self._is_full and (row := fresh.fetchone()) is not None:
            message_id, key, is_busy = row
            if is_busy or self._has_enough_of(key):
                blocked.append({"subscription": self._subscription, "message": message_id, "key": key})
            else:
                self._add(message_id, 0)
        fresh.close()  # before deliveries change, which it reads
        if message_id is not None:
            self._executemany(_BLOCK, blocked)
            self._execute(_MOVE_CURSOR, {"message": message_id, "subscription": self._subscription})

    def _add(self, message_id: int, failed: int) -> None:
        row = self._execute(MESSAGE, (message_id,)).fetchone()
        delivery = decode(message_id, row, failed=failed, session=self._session)
        key = delivery.ordering_key
        self.deliveries.append(delivery)
        self._leases.append((self._subscription, message_id, key, failed, self._session))
        self._size += len(delivery.data)
        if key is not None:
            self._runs[key] = self._runs.get(key, 0) + 1
