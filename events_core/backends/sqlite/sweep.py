"""The sweep: it deletes what is no longer needed, in small steps, while others send and receive.

Without retention, a message is deleted when its last subscription acknowledges it.  The sweep is for everything else.
"""

from __future__ import annotations

import sqlite3
import time

__all__ = ["NEEDED", "Sweep", "drop_subscription"]

SWEEP = 1000
"""Messages looked at, deliveries deleted, and free pages given back, in one step."""

SPARE = 4096
"""Free pages that a file always keeps for the next messages."""

NEEDED = """EXISTS (
    SELECT 1 FROM subscriptions AS s WHERE s.topic_id = m.topic_id AND (s.cursor < m.id OR EXISTS (
        SELECT 1 FROM deliveries AS d WHERE d.subscription_id = s.id AND d.message_id = m.id
    ))
)"""
"""The condition that a subscription has not yet delivered, or not yet settled, the message ``m``."""

_LAPSED = "SELECT id, expires_at FROM subscriptions WHERE topic_id = :topic AND expires_at < :now"
_DROP = (
    """
    DELETE FROM deliveries
    WHERE session_id IN (SELECT id FROM sessions WHERE subscription_id = :subscription)
    """,
    "DELETE FROM sessions WHERE subscription_id = :subscription",
    "DELETE FROM subscriptions WHERE id = :subscription",
)
# Up to the lowest cursor: messages that every subscription has looked at.
_LOOKED_AT = f"""
    SELECT m.id, m.publish_time, {NEEDED} FROM messages AS m
    WHERE m.topic_id = :topic AND m.id > :swept
        AND m.id <= ifnull((SELECT min(cursor) FROM subscriptions WHERE topic_id = :topic), {2**63 - 1})
    ORDER BY m.id LIMIT :limit
"""
_DELETE_MESSAGE = "DELETE FROM messages WHERE id = :message"
# Finds a subscription that is gone and has left deliveries.  It goes from one subscription's first delivery to the next
# one's, by the primary key, so its cost does not grow with the number of deliveries.
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
_DELETE_ORPHANS = """
    DELETE FROM deliveries WHERE subscription_id = :subscription AND message_id IN (
        SELECT message_id FROM deliveries WHERE subscription_id = :subscription ORDER BY message_id LIMIT :limit
    )
"""


def drop_subscription(connection: sqlite3.Connection, subscription_id: int) -> None:
    """Delete a subscription and what its receivers hold; the sweep deletes the rest of its deliveries."""
    for statement in _DROP:
        connection.execute(statement, {"subscription": subscription_id})


class Sweep:
    """A sweep of the topic *topic_id*, and of what deleted subscriptions of any topic have left.

    :param patience: seconds for which an ephemeral subscription is kept after it has lapsed.
    """

    def __init__(self, connection: sqlite3.Connection, topic_id: int, *, patience: float) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._topic_id = topic_id
        self._patience = patience
        self._swept = 0
        self._lapsed: dict[tuple[int, float], float] = {}

    def step(self, now: float, *, oldest_kept: float) -> bool:
        """Delete some of what is no longer needed, in the caller's transaction; return whether to go on at once.

        That is: lapsed ephemeral subscriptions, deliveries of deleted subscriptions, and messages past the retention.
        Most of the space of a past backlog is given back to the disk.  Each step looks at :data:`SWEEP` messages, and
        the next step goes on after them.

        :param oldest_kept: the time before which messages are past the topic's retention.
        """
        for subscription_id in self._deserted(now):
            drop_subscription(self._connection, subscription_id)
        has_deleted_deliveries = self._delete_orphans()
        has_deleted_messages = self._delete_messages(oldest_kept)
        has_shrunk = self._shrink()
        return has_deleted_deliveries or has_deleted_messages or has_shrunk

    def _deserted(self, now: float) -> list[int]:
        """Return the ephemeral subscriptions that lapsed, and were not renewed while the sweep was patient."""
        # The patience is for a clock that was set forward: then the subscriptions of running receivers look lapsed too,
        # until they are renewed.
        lapsed = self._execute(_LAPSED, {"topic": self._topic_id, "now": now}).fetchall()
        passed = time.monotonic()
        self._lapsed = {each: self._lapsed.get(each, passed) for each in lapsed}
        return [number for (number, _), seen in self._lapsed.items() if passed - seen >= self._patience]

    def _delete_messages(self, oldest_kept: float) -> bool:
        """Delete old messages among the next ones; return whether there were some, and others may follow."""
        part = {"topic": self._topic_id, "swept": self._swept, "limit": SWEEP}
        seen = self._execute(_LOOKED_AT, part).fetchall()
        doomed = [{"message": number} for number, at, needed in seen if at <= oldest_kept and not needed]
        self._connection.executemany(_DELETE_MESSAGE, doomed)
        at_end = len(seen) < SWEEP or seen[-1][1] > oldest_kept
        # If the transaction fails, the next round deletes what this step has not.
        self._swept = 0 if at_end else seen[-1][0]
        return bool(doomed) and not at_end

    def _delete_orphans(self) -> bool:
        orphaned = self._execute(_ORPHANED).fetchone()
        if orphaned is None:
            return False
        self._execute(_DELETE_ORPHANS, {"subscription": orphaned[0], "limit": SWEEP})
        return True

    def _shrink(self) -> bool:
        """Give free pages back to the disk if more pages are free than in use."""
        (free,) = self._execute("PRAGMA freelist_count").fetchone()
        (pages,) = self._execute("PRAGMA page_count").fetchone()
        if free <= max(SPARE, pages // 2):
            return False
        self._execute(f"PRAGMA incremental_vacuum({SWEEP})").fetchall()
        return True
