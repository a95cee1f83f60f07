"""The driver: a store, a thread's worth of blocking calls, and looking out for other processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Literal

import attrs

from events_core import Capabilities, ConfigurationError, ErrorCode, EventMessage, Limits
from events_core.backends.sqlite.database import Database
from events_core.backends.sqlite.store import Policy, Row, Store
from events_core.engine import BrokerError, Delivery, Driver, EngineClient, Outcome, Settlement, Source
from events_core.interface import Location
from events_core.options import CommonOptions, option

__all__ = ["SQLiteClient", "SQLiteOptions"]

POLL_INTERVAL = 0.01
"""Seconds between two looks at whether another process has written: 10 ms cost about 0.4 % of a core."""
COLLECT_INTERVAL = 5.0
"""Seconds between two looks for messages that nobody needs any more."""
EPHEMERAL_IDLE = 60.0
"""Seconds after which the ephemeral subscription of a dead process is removed (Q1)."""

_FULL = Capabilities(
    durable="power_loss",
    ordering="subscription",
    replay=True,
    dead_letter=True,
    delivery_attempts=True,
    ack_confirmed=True,
    exactly_once=True,
    redelivery="lease",
    limits=Limits(
        max_message_bytes=10_000_000,
        max_attributes=100,
        max_attribute_key_bytes=256,
        max_attribute_value_bytes=1024,
        max_ordering_key_bytes=1024,
    ),
)


@attrs.frozen(kw_only=True)
class SQLiteOptions(CommonOptions):
    """Options of the SQLite backend."""

    path: str = option(help="The file; a URL's path without its last part, which is the topic.")
    durability: Literal["full", "normal"] = option(
        default="full", help="What a confirmed message survives: a power loss, or the crash of a process."
    )
    retention: float = option(
        default=0.0, minimum=0, unit="seconds", help="How long messages are kept for subscriptions yet to come."
    )
    session_timeout: float = option(
        default=15.0, minimum=1, unit="seconds", help="How soon what a dead process held goes to others."
    )
    create: Literal["never", "subscription", "all"] = option(
        default="all",
        help="What may be created when it is missing: nothing, the subscription, or the file and topic as well.",
    )


class SQLiteDriver(Driver[SQLiteOptions]):
    """One connection to the file, shared by the sources of one client."""

    mixed_keys: ClassVar[bool] = True

    def __init__(self, topic_name: str, project_id: str, options: SQLiteOptions) -> None:
        super().__init__(topic_name, project_id, options)
        self.capabilities = attrs.evolve(
            _FULL,
            durable="power_loss" if options.durability == "full" else "process_crash",
            ordering="none" if options.ordering is False else "subscription",
        )
        self._database: Database | None = None
        self._sources: set[SQLiteSource] = set()
        self._collector: asyncio.Task[None] | None = None

    async def open(self) -> None:
        options = self.options
        database = Database(
            options.path,
            create=options.create == "all",
            sync="FULL" if options.durability == "full" else "NORMAL",
        )
        try:
            self._set_up(database)
        except BaseException:
            database.close()
            raise
        self._collector = asyncio.ensure_future(self._collect_forever())

    def _set_up(self, database: Database) -> None:
        options = self.options
        self.store = Store(database)
        with database.transaction():
            self.topic_id = self.store.topic(self.project_id, self.topic_name, create=options.create == "all")
            self.store.retain(self.topic_id, options.retention)
            if options.subscription and options.create != "never":
                self.join(options.subscription)
        self._database = database

    @property
    def database(self) -> Database:
        """The open database."""
        assert self._database is not None
        return self._database

    def join(self, name: str) -> int:
        """The id of a subscription, made where options allow; in a transaction."""
        found = self.store.subscription(self.topic_id, name)
        if found is not None:
            return found
        if self.options.create == "never":
            raise BrokerError(
                f"topic {self.topic_name!r} has no subscription {name!r}; create it with create=subscription",
                ErrorCode.NOT_FOUND,
            )
        return self.create(name)

    def create(self, name: str) -> int:
        """A new subscription; in a transaction."""
        return self.store.create_subscription(self.topic_id, name, earliest=self.options.start == "earliest")

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        with self.database.transaction(durable=True):
            ids = self.store.append(self.topic_id, messages)
        self.notify()
        return [str(number) for number in ids]

    def notify(self) -> None:
        """Something of this connection's own may concern its sources; SQLite tells only of other connections."""
        for source in self._sources:
            source.changed.set()

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> SQLiteSource:
        options = self.options
        name = subscription or f"ephemeral-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        with self.database.transaction():
            dead_letters = (
                self.store.topic(self.project_id, options.dead_letter_topic, create=options.create == "all")
                if options.dead_letter_topic
                else None
            )
            joined = self.join(name) if subscription else self.create(name)
            policy = Policy(options.max_delivery_attempts, dead_letters, self.topic_name, name)
            source = SQLiteSource(self, name, joined, policy, ephemeral=subscription is None)
            source.begin_session()
        self._sources.add(source)
        source.start()
        return source

    def forget(self, source: SQLiteSource) -> None:
        """*source* has closed."""
        self._sources.discard(source)

    async def delete_subscription(self, subscription: str) -> None:
        with self.database.transaction(durable=True):
            found = self.store.subscription(self.topic_id, subscription)
            if found is None:
                raise BrokerError(
                    f"topic {self.topic_name!r} has no subscription {subscription!r}; nothing was deleted",
                    ErrorCode.NOT_FOUND,
                )
            self.store.delete_subscription(found)
        self.notify()

    async def _collect_forever(self) -> None:
        after = 0
        while True:
            await asyncio.sleep(COLLECT_INTERVAL)
            with contextlib.suppress(BrokerError):  # it comes round again
                after = self._collect(after)

    def _collect(self, after: int) -> int:
        now = time.time()
        with self.database.transaction():
            for subscription_id in self.store.abandoned(now - EPHEMERAL_IDLE):
                self.store.delete_subscription(subscription_id)
            return self.store.collect(self.topic_id, after, now)

    async def ping(self) -> None:
        with self.database.translated():
            self.database.value("SELECT 1 FROM topics WHERE id = ?", self.topic_id)

    async def close(self) -> None:
        if self._collector is not None:
            self._collector.cancel()
        if self._database is not None:
            self._database.close()


class SQLiteSource(Source):
    """One receiver: a session in the file, which lapses when its process dies."""

    prefetch = 200

    def __init__(
        self, driver: SQLiteDriver, name: str, subscription_id: int, policy: Policy, *, ephemeral: bool
    ) -> None:
        self.subscription = name
        self.capabilities = driver.capabilities
        self.changed = asyncio.Event()
        self._driver = driver
        self._subscription_id = subscription_id
        self._policy = policy
        self._ephemeral = ephemeral
        self._seen_version: object = None
        self._reclaim_at = 0.0

    def begin_session(self) -> None:
        """Claim a session; in a transaction."""
        expires = time.time() + self._driver.options.session_timeout
        self._session = self._driver.store.begin_session(self._subscription_id, expires, owner=self._ephemeral)

    def start(self) -> None:
        """Keep the session alive from now on."""
        self._heart = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        timeout = self._driver.options.session_timeout
        while True:
            await asyncio.sleep(timeout / 4)
            with contextlib.suppress(BrokerError), self._driver.database.transaction():
                if not self._driver.store.renew_session(self._session, time.time() + timeout):
                    self.begin_session()  # it had lapsed and was taken for dead: what it held is gone

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while True:
            self.changed.clear()
            rows = self._fetch(limit)
            if rows:
                return [_delivery(row) for row in rows]
            await self._change()

    def _fetch(self, limit: int) -> list[Row]:
        driver, store, now = self._driver, self._driver.store, time.time()
        with driver.database.translated():
            lapsed = self._lapsed(now)
            if not lapsed and not self._has_work(now):
                return []
        with driver.database.transaction():
            for session_id in lapsed:
                store.end_session(session_id, Outcome.NACK, self._policy, self._subscription_id)
            return store.fetch(driver.topic_id, self._subscription_id, self._session, limit, now)

    def _has_work(self, now: float) -> bool:
        try:
            return self._driver.store.has_work(self._driver.topic_id, self._subscription_id, now)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND or self._driver.options.create == "never":
                raise
            self._rejoin()  # created anew where options allow (F1)
            return True

    def _rejoin(self) -> None:
        with self._driver.database.transaction():
            self._subscription_id = self._driver.join(self.subscription)
            self.begin_session()

    def _lapsed(self, now: float) -> list[int]:
        if now < self._reclaim_at:
            return []
        self._reclaim_at = now + 1.0
        return [session for session in self._driver.store.lapsed(self._subscription_id, now) if session != self._session]

    async def _change(self) -> None:
        """Return when another process may have written, this client has, or a message is due."""
        database = self._driver.database
        with database.translated():
            due = self._driver.store.next_due(self._subscription_id)
        ends = min(self._reclaim_at, time.time() + 1.0 if due is None else due)
        while not self.changed.is_set() and time.time() < ends:
            with database.translated():
                version = database.value("PRAGMA data_version")
            if version != self._seen_version:
                self._seen_version = version
                return
            await asyncio.sleep(POLL_INTERVAL)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        store = self._driver.store
        results: list[BrokerError | None] = []
        with self._driver.database.transaction(durable=True):
            for delivery, outcome, delay in settlements:
                valid = store.settle(
                    self._subscription_id, int(delivery.message_id), delivery.token, outcome, delay, self._policy
                )
                results.append(None if valid else _expired())
            keys = {each.delivery.ordering_key: None for each in settlements if each.delivery.ordering_key}
            store.unblock(self._subscription_id, [key for key in keys if key])
        self._driver.notify()
        return results

    async def withheld(self) -> Collection[str]:
        with self._driver.database.translated():
            return self._driver.store.withheld(self._subscription_id)

    async def close(self) -> None:
        self._heart.cancel()
        self._driver.forget(self)
        store = self._driver.store
        with self._driver.database.transaction():
            store.end_session(self._session, Outcome.RETURN, self._policy, self._subscription_id)
            if self._ephemeral:
                store.delete_subscription(self._subscription_id)
        self._driver.notify()


def _delivery(row: Row) -> Delivery:
    return Delivery(
        str(row.message_id),
        row.data,
        row.attributes,
        row.ordering_key,
        datetime.fromtimestamp(row.published, UTC),
        row.lease.attempts,
        row.lease,
    )


def _expired() -> BrokerError:
    return BrokerError(
        "the session of this receiver had lapsed, and the message went to another; raise session_timeout if the "
        "process was only slow",
        ErrorCode.EXPIRED,
    )


class SQLiteClient(EngineClient):
    """A client of a topic in a file: ``sqlite:///path/to/events.db/orders``, or ``sqlite:events.db/orders``."""

    api_version = 1
    options_class = SQLiteOptions
    full_capabilities = _FULL
    driver_class = SQLiteDriver

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """The last part of the path is the topic, the rest the file."""
        file, _, topic = path.rpartition("/")
        if authority or not file or not topic:
            raise ConfigurationError(
                f"the URL's authority is {authority!r} and its path {path!r}; write sqlite:///absolute/file.db/topic or "
                "sqlite:relative/file.db/topic"
            )
        return Location(topic, options={"path": file})
