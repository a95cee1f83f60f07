"""A subscription as one receiver uses it: a session that takes messages, settles them, and takes over from the dead.

Synchronous.  Each public method is one transaction, and is called under the lock of
:class:`~events_core.backends.sqlite.connection.FileConnection`.  The states of a delivery are in
:mod:`~events_core.backends.sqlite.schema`.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex

from events_core import ErrorCode
from events_core.backends.sqlite.codec import MESSAGE, decode_attributes
from events_core.backends.sqlite.schema import BLOCKED, LEASED, READY, next_id
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.sweep import drop_subscription
from events_core.backends.sqlite.taking import NO_SECOND_SUSPECT, Taking
from events_core.engine import (
    BrokerError,
    DeadLetterLog,
    Delivery,
    Outcome,
    Settlement,
    dead_letter_attributes,
    redelivery_delay,
    uptime,
)

__all__ = ["IDLE_TIMEOUTS", "Subscription"]

_log = logging.getLogger("events_core.sqlite")

PATIENCE = 0.5
"""The part of a session timeout for which a receiver that is new or late does not take over from others.  In that
time every running receiver renews its session twice."""
_NEVER = 2**62
"""More failed attempts than any message has."""
IDLE_TIMEOUTS = 4
"""Session timeouts for which an ephemeral subscription is kept after the last sign of its receiver (Q1)."""

_BEGIN_SESSION = f"""
    INSERT INTO sessions (id, subscription_id, expires_at)
    VALUES ({next_id("sessions", ":micros")}, :subscription, :expires_at)
"""
_RENEW_SESSION = "UPDATE sessions SET expires_at = :expires_at WHERE id = :session"
_RENEW_EPHEMERAL = "UPDATE subscriptions SET expires_at = :expires_at WHERE id = :subscription"
_END_SESSION = "DELETE FROM sessions WHERE id = :session"
# The receiver's own session is never among them: it was renewed in the same transaction.
_DEAD = "SELECT id FROM sessions WHERE subscription_id = :subscription AND expires_at < :now"
_PENDING = f"""
    SELECT
        EXISTS (SELECT 1 FROM messages AS m WHERE m.topic_id = s.topic_id AND m.id > s.cursor),
        (
            SELECT min(available_at) FROM deliveries AS d
            WHERE d.subscription_id = s.id AND d.state = {READY} AND {NO_SECOND_SUSPECT}
        ),
        (SELECT min(expires_at) FROM sessions WHERE subscription_id = s.id AND id <> :session)
    FROM subscriptions AS s WHERE s.id = :subscription
"""
_PUT_BACK = f"""
    UPDATE deliveries SET state = CASE WHEN ordering_key IS NULL THEN {READY} ELSE {BLOCKED} END,
        available_at = :available_at, attempts = :failed, session_id = NULL
    WHERE subscription_id = :subscription AND message_id = :message
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
# Positional: it runs once for each message.
_OURS = "subscription_id = ? AND message_id = ? AND session_id = ?"
_REMOVE = f"DELETE FROM deliveries WHERE {_OURS}"
_REMOVE_LETTER = "DELETE FROM deliveries WHERE subscription_id = :subscription AND message_id = :message"
_ATTEMPTS = f"SELECT attempts FROM deliveries WHERE {_OURS}"
_HELD = """
    SELECT message_id, attempts, ordering_key FROM deliveries
    WHERE session_id = :session ORDER BY subscription_id, message_id
"""
_WITHHELD = f"""
    SELECT DISTINCT held.ordering_key FROM deliveries AS held
    WHERE held.session_id = :session AND held.ordering_key IS NOT NULL AND EXISTS (
        SELECT 1 FROM deliveries AS d
        WHERE d.subscription_id = :subscription AND d.ordering_key = held.ordering_key AND d.state = {BLOCKED}
    )
"""


class Subscription:
    """A session on a subscription; its methods raise the errors of :class:`Store`."""

    def __init__(self, store: Store, name: str | None) -> None:
        """Join *name*, or a new ephemeral subscription for ``None``."""
        self._ephemeral = name is None
        self.name = name or f"ephemeral-{token_hex(8)}"
        self._id = self._session = 0
        self._expires_at = -math.inf
        self._patient_until = -math.inf
        self.safe_until = -math.inf
        """The :func:`uptime` until which no other receiver takes this session for dead."""
        self.letters = DeadLetterLog(self.name, store.options.dead_letter_topic or "")
        """The dead letters of the last transaction; write them to the log once it is committed."""
        self._use(store)

    def on(self, store: Store) -> Subscription:
        """Return this session on *store*, the file opened again; it keeps its leases if the file still knows them."""
        if store is self._store:
            return self
        moved = copy.copy(self)  # so that the old one is unchanged if this fails
        moved._use(store)
        return moved

    @property
    def session(self) -> int:
        """The token of each delivery that is leased to this receiver."""
        return self._session

    def forget(self) -> None:
        """Give up everything that is leased: the file may be another one, or an older copy."""
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
        session = {"micros": int(now * 1e6), "subscription": self._id, "expires_at": self._expires_at}
        self._session = self._execute(_BEGIN_SESSION, session).lastrowid or 0

    @property
    def _most_attempts(self) -> int:
        """The number of failed attempts after which a message is dead-lettered."""
        most = self._options.max_delivery_attempts
        return _NEVER if self._dead_letters is None or most is None else most

    def _expiry(self, now: float) -> float | None:
        return now + IDLE_TIMEOUTS * self._options.session_timeout if self._ephemeral else None

    # Taking

    def next_due(self) -> float:
        """Return the ``time.time()`` from which :meth:`take` may find something; infinity if that is never.

        The answer is true until the file changes.
        """
        self._store.check_version()
        asked = {"most": self._most_attempts, "session": self._session, "subscription": self._id}
        row = self._execute(_PENDING, asked).fetchone()
        if row is None:
            return 0.0  # the subscription was deleted; take() creates it again, or reports that it is gone
        fresh, ready, lapse = row
        if lapse is not None:
            lapse = max(lapse, time.time() + self._patient_until - time.monotonic())
        return 0.0 if fresh else min(math.inf if due is None else due for due in (ready, lapse))

    def take(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* messages: first those that are due again, then new ones, in order per key."""
        self.letters.clear()
        with self._bookkeeping() as now:
            self._take_over(now)
            return Taking(
                self._store.connection,
                subscription=self._id,
                session=self._session,
                most_attempts=self._most_attempts,
                limit=limit,
            ).take(now)

    def renew(self) -> None:
        """Keep everything that is leased."""
        with self._bookkeeping():
            pass

    @contextmanager
    def _bookkeeping(self) -> Iterator[float]:
        """Renew the session in a transaction; yield the time at which it began."""
        known = self._id, self._session, self._expires_at
        began, now = uptime(), time.time()
        try:
            with self._store.transaction(durable=False):
                self._renew(now)
                yield now
        except BaseException:
            # The ids of a transaction that was rolled back may be given to other sessions.
            self._id, self._session, self._expires_at = known
            raise
        # Counted from before the transaction: others count from the time that it has written.
        self.safe_until = began + self._options.session_timeout

    def _renew(self, now: float) -> None:
        timeout = self._options.session_timeout
        # Each receiver renews its session four times within its timeout.  If this one is late or new, the file may have
        # been locked, or the clock set forward: then the sessions of running receivers look lapsed.
        if self._expires_at < now + timeout / 2:
            self._patient_until = time.monotonic() + PATIENCE * timeout
        self._expires_at = now + timeout
        if not self._execute(_RENEW_SESSION, {"expires_at": self._expires_at, "session": self._session}).rowcount:
            self._join_again(now)
        if self._ephemeral:
            self._execute(_RENEW_EPHEMERAL, {"expires_at": self._expiry(now), "subscription": self._id})

    def _join_again(self, now: float) -> None:
        """Join because the session is new, was taken for dead, or lost its subscription (F1)."""
        lapsed = self._session
        self._join(now)
        if lapsed:
            _log.warning(
                "subscription %r: joined again, because it was deleted or this receiver did not renew its session "
                "within session_timeout=%g s; messages that it holds are delivered again",
                self.name,
                self._options.session_timeout,
            )

    def _take_over(self, now: float) -> None:
        """Make available again what dead sessions held; end those sessions."""
        if time.monotonic() < self._patient_until:
            return
        for (session,) in self._execute(_DEAD, {"subscription": self._id, "now": now}).fetchall():
            self._lapse(self._execute(_HELD, {"session": session}).fetchall(), now)
            self._execute(_END_SESSION, {"session": session})

    def _lapse(self, held: Iterable[tuple[int, int, str | None]], now: float) -> None:
        """Fail the messages that a dead session *held*: message, failed attempts and ordering key of each.

        Of a key only the first message has failed, because the others waited behind it.
        """
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
        """Apply outcomes; return one result for each, ``EXPIRED`` if this receiver no longer has the lease."""
        now = time.time()
        results: list[BrokerError | None] = []
        done: list[int] = []
        keys: dict[str, None] = {}
        self.letters.clear()
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
        back = {"available_at": available_at, "failed": failed, "subscription": self._id, "message": message_id}
        self._execute(_PUT_BACK, back)

    def _bury(self, message_id: int, failed: int, now: float, reason: str | None = None) -> None:
        """Move a dead letter to its topic."""
        assert self._dead_letters is not None
        _, key, attributes, data = self._execute(MESSAGE, (message_id,)).fetchone()
        marked = dead_letter_attributes(
            decode_attributes(attributes),
            topic_name=self._store.topic_name,
            subscription=self.name,
            message_id=str(message_id),
            attempts=failed,
            reason=reason,
        )
        self._store.insert(self._dead_letters, [(key, marked, data)], now)
        self.letters.record(str(message_id), failed, reason)
        self._execute(_REMOVE_LETTER, {"subscription": self._id, "message": message_id})
        self._store.reclaim([message_id])

    def _unblock(self, keys: Iterable[str]) -> None:
        """Make ready the first message of each of *keys*, unless another message of the key is still leased."""
        self._executemany(_UNBLOCK, [{"subscription": self._id, "key": key} for key in keys])

    # Leaving

    def withheld(self) -> Collection[str]:
        """Return the ordering keys of which this receiver holds messages while others wait."""
        return [key for (key,) in self._execute(_WITHHELD, {"session": self._session, "subscription": self._id})]

    def leave(self) -> None:
        """Return what is leased, without counting an attempt; delete the subscription if it is ephemeral."""
        with self._store.transaction():
            held = self._execute(_HELD, {"session": self._session}).fetchall()
            for message_id, failed, _ in held:
                self._put_back(message_id, failed, 0.0)
            self._unblock({key for _, _, key in held if key is not None})
            self._execute(_END_SESSION, {"session": self._session})
            if self._ephemeral:
                drop_subscription(self._store.connection, self._id)


def _expired(message_id: str) -> BrokerError:
    return BrokerError(
        f"the delivery of message {message_id!r} is over: its lease lapsed or its subscription was deleted",
        ErrorCode.EXPIRED,
    )
