"""A subscription as one receiver uses it: what it takes, what it settles, what it takes over from the dead.

Synchronous, each method one transaction.  The rules of a delivery's state are in :mod:`.schema`.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from secrets import token_hex

from events_core import ErrorCode
from events_core.backends.sqlite.schema import BLOCKED, LEASED, READY, next_id
from events_core.backends.sqlite.store import Store
from events_core.engine import (
    BrokerError,
    Delivery,
    Outcome,
    Settlement,
    dead_letter_attributes,
    log_dead_letter,
    redelivery_delay,
    uptime,
)

__all__ = ["IDLE_TIMEOUTS", "Subscription"]

_log = logging.getLogger("events_core.sqlite")

SCAN = 1000
"""New messages looked at in one transaction, so that a key with a long queue keeps nobody waiting."""
RUN = 100
"""Messages of one key leased at once; beyond that it would crowd out other keys."""
TAKE_BYTES = 16 * 2**20
"""Bytes of data after which a transaction takes no more."""
PATIENCE = 0.5
"""Part of a session timeout for which a receiver that is new or late takes over from nobody.  In that time every
running receiver renews its session twice."""
_NEVER = 2**62
"""More failed attempts than any message has."""
IDLE_TIMEOUTS = 4
"""An ephemeral subscription is kept for so many session timeouts after its receiver was last heard of (Q1)."""

_BEGIN_SESSION = f"INSERT INTO sessions (id, subscription_id, expires_at) VALUES ({next_id('sessions', '?')}, ?, ?)"
_NO_SECOND_SUSPECT = """(d.attempts < ? OR NOT EXISTS (
    SELECT 1 FROM deliveries AS held WHERE held.session_id = ? AND held.attempts >= ?
))"""
"""Whether a session may take the delivery ``d``.

A process that dies fails all that it has fetched, and only one of that may be what has killed it.  Where that was the
last attempt of several messages they are suspects, which a session has one at a time: the next death tells.
"""
_PENDING = f"""
    SELECT
        EXISTS (SELECT 1 FROM messages AS m WHERE m.topic_id = s.topic_id AND m.id > s.cursor),
        (
            SELECT min(available_at) FROM deliveries AS d
            WHERE d.subscription_id = s.id AND d.state = {READY} AND {_NO_SECOND_SUSPECT}
        ),
        (SELECT min(expires_at) FROM sessions WHERE subscription_id = s.id AND id <> ?)
    FROM subscriptions AS s WHERE s.id = ?
"""
_READY = f"""
    SELECT message_id, attempts, ordering_key FROM deliveries AS d
    WHERE subscription_id = ? AND state = {READY} AND available_at <= ? AND {_NO_SECOND_SUSPECT}
    ORDER BY available_at, message_id LIMIT ?
"""
_QUEUED = f"""
    SELECT message_id, attempts, available_at FROM deliveries
    WHERE subscription_id = ? AND ordering_key = ? AND state = {BLOCKED} ORDER BY message_id LIMIT ?
"""
_FRESH = f"""
    SELECT m.id, m.ordering_key, m.ordering_key IS NOT NULL AND EXISTS (
        SELECT 1 FROM deliveries AS d WHERE d.subscription_id = s.id AND d.ordering_key = m.ordering_key
    )
    FROM subscriptions AS s JOIN messages AS m ON m.topic_id = s.topic_id AND m.id > s.cursor
    WHERE s.id = ? ORDER BY m.id LIMIT {SCAN}
"""
_MESSAGE = "SELECT publish_time, ordering_key, attributes, data FROM messages WHERE id = ?"
_LEASE = f"""
    INSERT INTO deliveries (subscription_id, message_id, ordering_key, state, attempts, session_id)
    VALUES (?, ?, ?, {LEASED}, ?, ?)
    ON CONFLICT (subscription_id, message_id) DO UPDATE SET state = {LEASED}, session_id = excluded.session_id
"""
_BLOCK = f"INSERT INTO deliveries (subscription_id, message_id, ordering_key, state) VALUES (?, ?, ?, {BLOCKED})"
_PUT_BACK = f"""
    UPDATE deliveries SET state = CASE WHEN ordering_key IS NULL THEN {READY} ELSE {BLOCKED} END,
        available_at = ?, attempts = ?, session_id = NULL
    WHERE subscription_id = ? AND message_id = ?
"""
_UNBLOCK = f"""
    UPDATE deliveries SET state = {READY} WHERE subscription_id = :subscription AND message_id = (
        SELECT min(message_id) FROM deliveries
        WHERE subscription_id = :subscription AND ordering_key = :key AND state = {BLOCKED}
    ) AND NOT EXISTS (
        SELECT 1 FROM deliveries
        WHERE subscription_id = :subscription AND ordering_key = :key AND state = {LEASED}
    )
"""
_OURS = "subscription_id = ? AND message_id = ? AND session_id = ?"
_REMOVE = f"DELETE FROM deliveries WHERE {_OURS}"
_ATTEMPTS = f"SELECT attempts FROM deliveries WHERE {_OURS}"
_HELD = """
    SELECT message_id, attempts, ordering_key FROM deliveries WHERE session_id = ? ORDER BY subscription_id, message_id
"""
_WITHHELD = f"""
    SELECT DISTINCT held.ordering_key FROM deliveries AS held
    WHERE held.session_id = ? AND held.ordering_key IS NOT NULL AND EXISTS (
        SELECT 1 FROM deliveries AS d
        WHERE d.subscription_id = ? AND d.ordering_key = held.ordering_key AND d.state = {BLOCKED}
    )
"""


class _Taking:
    """What one transaction takes for a receiver."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._size = 0
        self._runs: dict[str, int] = {}
        self.deliveries: list[Delivery] = []
        self.leases: list[tuple[int, str | None, int]] = []
        """Message, ordering key and failed attempts of each."""

    @property
    def is_full(self) -> bool:
        return len(self.deliveries) >= self.limit or self._size >= TAKE_BYTES

    def is_long(self, key: str | None) -> bool:
        """Whether no more of *key* should be taken."""
        return key is not None and self._runs.get(key, 0) >= RUN

    def add(self, delivery: Delivery, lease: tuple[int, str | None, int]) -> None:
        self.deliveries.append(delivery)
        self.leases.append(lease)
        self._size += len(delivery.data)
        key = delivery.ordering_key
        if key is not None:
            self._runs[key] = self._runs.get(key, 0) + 1


class Subscription:
    """A session on a subscription; raises as :class:`Store` does."""

    def __init__(self, store: Store, name: str | None) -> None:
        """Join *name*, or a new ephemeral subscription for ``None``."""
        self._ephemeral = name is None
        self.name = name or f"ephemeral-{token_hex(8)}"
        self._id = self._session = 0
        self._expires_at = -math.inf
        self._patient_until = -math.inf
        self.safe_until = -math.inf
        """The :func:`uptime` until which nobody takes this session for dead."""
        self._buried: list[tuple[int, int, str | None]] = []  # by the last transaction: message, attempts, reason
        self._use(store)

    def on(self, store: Store) -> Subscription:
        """The same on *store*, the file opened again: with what is leased, if the file still knows of it."""
        if store is self._store:
            return self
        moved = copy.copy(self)
        moved._use(store)
        return moved

    @property
    def session(self) -> int:
        """The token of each delivery that is leased to this receiver."""
        return self._session

    def forget(self) -> None:
        """Take what is leased for lost, since the file may be another one or an older copy."""
        self._session = 0

    def _use(self, store: Store) -> None:
        self._store = store
        self._options = store.options
        self._execute = store.connection.execute
        self._executemany = store.connection.executemany
        began = uptime()
        with store.transaction():
            dead_letters = self._options.dead_letter_topic
            self._dead_letters = None if dead_letters is None else store.find_topic(dead_letters)
            self._renew(time.time())
        self.safe_until = began + self._options.session_timeout

    def _join(self, now: float) -> None:
        self._id = self._store.find_subscription(self.name, expires_at=self._expiry(now))
        begun = self._execute(_BEGIN_SESSION, (int(now * 1e6), self._id, self._expires_at))
        self._session = begun.lastrowid or 0

    @property
    def _most_attempts(self) -> int:
        """Failed attempts after which a message is dead-lettered."""
        most = self._options.max_delivery_attempts
        return _NEVER if self._dead_letters is None or most is None else most

    def _expiry(self, now: float) -> float | None:
        return now + IDLE_TIMEOUTS * self._options.session_timeout if self._ephemeral else None

    # Taking

    def next_due(self) -> float:
        """The ``time.time()`` from which :meth:`take` may find something, as the file stands; infinity for none."""
        self._store.check_version()
        most, session = self._most_attempts, self._session
        row = self._execute(_PENDING, (most, session, most, session, self._id)).fetchone()
        if row is None:
            return 0.0  # the subscription was deleted, which take() mends or reports
        fresh, ready, lapse = row
        if lapse is not None:
            lapse = max(lapse, time.time() + self._patient_until - time.monotonic())
        return 0.0 if fresh else min(math.inf if due is None else due for due in (ready, lapse))

    def take(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* messages: what is due again, then new ones, in order per key."""
        self._buried.clear()
        with self._bookkeeping() as now:
            self._take_over(now)
            taking = _Taking(limit)
            self._take_ready(taking, now)
            self._take_fresh(taking)
            self._executemany(
                _LEASE, [(self._id, number, key, failed, self._session) for number, key, failed in taking.leases]
            )
        return taking.deliveries

    def renew(self) -> None:
        """Keep what is leased."""
        with self._bookkeeping():
            pass

    @contextmanager
    def _bookkeeping(self) -> Iterator[float]:
        """Renew the session in a transaction; yield the time of that."""
        known = self._id, self._session, self._expires_at
        began, now = uptime(), time.time()
        try:
            with self._store.transaction(durable=False):
                self._renew(now)
                yield now
        except BaseException:
            self._id, self._session, self._expires_at = known  # what was rolled back may become somebody else's
            raise
        self.safe_until = began + self._options.session_timeout

    def _renew(self, now: float) -> None:
        timeout = self._options.session_timeout
        # Each receiver renews its session four times within its timeout.  If this one is late or new, the file may have
        # been locked, or the clock set forward: then the sessions of running receivers look lapsed.
        if self._expires_at < now + timeout / 2:
            self._patient_until = time.monotonic() + PATIENCE * timeout
        self._expires_at = now + timeout
        renewed = self._execute("UPDATE sessions SET expires_at = ? WHERE id = ?", (self._expires_at, self._session))
        if not renewed.rowcount:
            # Taken for dead: what it had is with others.  Or deleted: created anew where options allow (F1).
            lapsed = self._session
            self._join(now)
            if lapsed:
                _log.warning(
                    "subscription %r: joined again, it was deleted or this receiver not heard of for "
                    "session_timeout=%g s; what is held comes again",
                    self.name,
                    timeout,
                )
        if self._ephemeral:
            self._execute("UPDATE subscriptions SET expires_at = ? WHERE id = ?", (self._expiry(now), self._id))

    def _take_ready(self, taking: _Taking, now: float) -> None:
        most, has_suspect = self._most_attempts, False
        ready = self._execute(_READY, (self._id, now, most, self._session, most, taking.limit))
        for message_id, failed, key in ready.fetchall():
            if taking.is_full:
                return
            if failed >= most:
                if has_suspect:
                    continue
                has_suspect = True
            self._load(taking, message_id, failed)
            if key is not None:
                self._take_run(taking, key, now)

    def _take_run(self, taking: _Taking, key: str, now: float) -> None:
        """What follows the first message of *key*, up to one that has a delay of its own."""
        for message_id, failed, available_at in self._execute(_QUEUED, (self._id, key, RUN)).fetchall():
            if available_at > now or taking.is_full or taking.is_long(key):
                return
            self._load(taking, message_id, failed)

    def _take_fresh(self, taking: _Taking) -> None:
        """Look at messages beyond the cursor, and move it."""
        blocked: list[tuple[int, int, str]] = []
        message_id = None
        fresh = self._execute(_FRESH, (self._id,))
        while not taking.is_full and (row := fresh.fetchone()) is not None:
            message_id, key, busy = row
            if busy or taking.is_long(key):
                blocked.append((self._id, message_id, key))
            else:
                self._load(taking, message_id, 0)
        fresh.close()  # before deliveries change, which it reads
        if message_id is not None:
            self._executemany(_BLOCK, blocked)
            self._execute("UPDATE subscriptions SET cursor = ? WHERE id = ?", (message_id, self._id))

    def _load(self, taking: _Taking, message_id: int, failed: int) -> None:
        published, key, attributes, data = self._execute(_MESSAGE, (message_id,)).fetchone()
        delivery = Delivery(
            str(message_id),
            data,
            json.loads(attributes) if attributes else {},
            key,
            datetime.fromtimestamp(published, UTC),
            failed + 1,
            self._session,
        )
        taking.add(delivery, (message_id, key, failed))

    def _take_over(self, now: float) -> None:
        """What the dead held has failed once more; of a key only the first, behind which the others waited."""
        if time.monotonic() < self._patient_until:
            return
        dead = "SELECT id FROM sessions WHERE subscription_id = ? AND expires_at < ?"  # its own is renewed
        for (session,) in self._execute(dead, (self._id, now)).fetchall():
            self._lapse(self._execute(_HELD, (session,)).fetchall(), now)
            self._execute("DELETE FROM sessions WHERE id = ?", (session,))

    def _lapse(self, held: Iterable[tuple[int, int, str | None]], now: float) -> None:
        """One of the dead *held* these: message, failed attempts and ordering key."""
        keys: set[str] = set()
        failed: list[tuple[int, int]] = []
        for message_id, attempts, key in held:
            if key in keys:
                self._put_back(message_id, attempts, 0.0)
            else:
                failed.append((message_id, attempts))
            if key is not None:
                keys.add(key)
        last = self._most_attempts - 1
        are_suspects = sum(attempts == last for _, attempts in failed) > 1
        for message_id, attempts in failed:
            if attempts == last and are_suspects:
                self._put_back(message_id, attempts + 1, 0.0)
            else:
                self._fail(message_id, attempts, 0.0, now)
        self._unblock(keys)

    # Settling

    def settle(self, settlements: Sequence[Settlement]) -> list[BrokerError | None]:
        """Tell outcomes; one result for each, ``EXPIRED`` where the lease is no longer this receiver's."""
        now = time.time()
        results: list[BrokerError | None] = []
        done: list[int] = []
        keys: dict[str, None] = {}
        self._buried.clear()
        with self._store.transaction():
            for settlement in settlements:
                delivery = settlement.delivery
                message_id = int(delivery.message_id)
                if settlement.outcome is Outcome.ACK:
                    ours = self._remove(message_id, delivery.token)
                    done += [message_id] if ours else []
                else:
                    ours = self._give_back(message_id, delivery.token, settlement, now)
                results.append(None if ours else _expired(delivery.message_id))
                if ours and delivery.ordering_key is not None:
                    keys[delivery.ordering_key] = None
            self._unblock(keys)
            self._store.reclaim(done)
        return results

    def _remove(self, message_id: int, session: int) -> bool:
        return bool(self._execute(_REMOVE, (self._id, message_id, session)).rowcount)

    def _give_back(self, message_id: int, session: int, settlement: Settlement, now: float) -> bool:
        row = self._execute(_ATTEMPTS, (self._id, message_id, session)).fetchone()
        if row is None:
            return False
        (failed,) = row
        delay = settlement.delay
        if settlement.outcome is Outcome.RETURN:
            self._put_back(message_id, failed, 0.0)
        elif settlement.outcome is Outcome.REJECT:
            self._bury(message_id, failed + 1, now, settlement.reason)
        else:
            self._fail(message_id, failed, now + (redelivery_delay(failed + 1) if delay is None else delay), now)
        return True

    def _fail(self, message_id: int, failed: int, available_at: float, now: float) -> None:
        if failed + 1 < self._most_attempts:
            self._put_back(message_id, failed + 1, available_at)
        else:
            self._bury(message_id, failed + 1, now)

    def _put_back(self, message_id: int, failed: int, available_at: float) -> None:
        self._execute(_PUT_BACK, (available_at, failed, self._id, message_id))

    def _bury(self, message_id: int, failed: int, now: float, reason: str | None = None) -> None:
        """Move a dead letter to its topic."""
        assert self._dead_letters is not None
        _, key, attributes, data = self._execute(_MESSAGE, (message_id,)).fetchone()
        told = dead_letter_attributes(
            json.loads(attributes) if attributes else {},
            topic_name=self._store.topic_name,
            subscription=self.name,
            message_id=str(message_id),
            attempts=failed,
            reason=reason,
        )
        self._store.insert(self._dead_letters, [(key, told, data)], now)
        self._buried.append((message_id, failed, reason))
        self._execute("DELETE FROM deliveries WHERE subscription_id = ? AND message_id = ?", (self._id, message_id))
        self._store.reclaim([message_id])

    def log_buried(self) -> None:
        """Log the letters that the last transaction has moved, once that is committed."""
        for message_id, failed, reason in self._buried:
            log_dead_letter(
                str(message_id),
                attempts=failed,
                subscription=self.name,
                dead_letter_topic=self._options.dead_letter_topic or "",
                reason=reason,
            )

    def _unblock(self, keys: Iterable[str]) -> None:
        """Make ready the first message of each of *keys*, unless another is still leased."""
        self._executemany(_UNBLOCK, [{"subscription": self._id, "key": key} for key in keys])

    # Leaving

    def withheld(self) -> Collection[str]:
        """Ordering keys that this receiver holds and of which messages wait."""
        return [key for (key,) in self._execute(_WITHHELD, (self._session, self._id))]

    def leave(self) -> None:
        """Return what is leased, uncounted, and delete the subscription if it is ephemeral."""
        with self._store.transaction():
            held = self._execute(_HELD, (self._session,)).fetchall()
            for message_id, failed, _ in held:
                self._put_back(message_id, failed, 0.0)
            self._unblock({key for _, _, key in held if key is not None})
            self._execute("DELETE FROM sessions WHERE id = ?", (self._session,))
            if self._ephemeral:
                self._store.drop_subscription(self._id)


def _expired(message_id: str) -> BrokerError:
    return BrokerError(
        f"the delivery of message {message_id!r} is over: its lease lapsed or its subscription was deleted",
        ErrorCode.EXPIRED,
    )
