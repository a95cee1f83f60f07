"""A broker in one file, for mutants: as an author who never saw the engine's inside would write a backend.

The file holds everything as JSON, and each request rewrites it under a lock, so that processes share it.  A message is
leased to one receiver at a time; each hand-over has an owner of its own.  Order per key holds over the subscription.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs

from events_core import Capabilities, ErrorCode, EventMessage
from events_core.engine import (
    BrokerError,
    Delivery,
    Driver,
    EngineClient,
    Outcome,
    Settlement,
    Source,
    redelivery_delay,
)
from events_core.options import CommonOptions, option

CAPABILITIES = Capabilities(
    durable="process_crash",
    ordering="subscription",
    replay=True,
    delivery_attempts=True,
    ack_confirmed=True,
    exactly_once=True,
    idempotent_publish=True,
)
POLL = 0.02
"""Seconds between two looks at the file."""

Entry = dict[str, Any]
"""A message in a subscription: ``owner`` has it until ``until``, and no receiver gets it before ``due``."""


@attrs.frozen(kw_only=True)
class FileOptions(CommonOptions):
    """Options of the broker."""

    path: str = option(help="The file.")
    create: Literal["never", "subscription", "all"] = option(default="all", help="What may be created.")
    lease: float = option(default=60.0, minimum=0.1, unit="seconds", help="How long a receiver may be silent.")
    retention: float = option(default=0.0, minimum=0, unit="seconds", help="How long messages are kept for others.")


class Broker:
    """The file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    @contextlib.contextmanager
    def changed(self) -> Iterator[Any]:
        """Yield the state, and store it afterwards.  Raise while the network is cut, or if the answer is lost."""
        if self.fault("cut").exists():
            raise _unreachable()
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = json.loads(self._path.read_text()) if self._path.exists() else {"ids": 0, "sent": {}, "topics": {}}
            yield state
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(state))
            part.rename(self._path)
        if self.fault("deaf").exists():
            raise _unreachable()

    def fault(self, name: str) -> Path:
        """Return the path of a file that makes a fault as long as it exists."""
        return self._path.with_suffix(f".{name}")

    @contextlib.contextmanager
    def while_fault(self, name: str) -> Iterator[None]:
        """Make a fault while the context is entered."""
        self.fault(name).touch()
        try:
            yield
        finally:
            self.fault(name).unlink()

    def restart(self) -> None:
        """Lose the changes that were only in the broker's memory."""
        with self.changed() as state:
            for topic in state["topics"].values():
                for entries in topic["subscriptions"].values():
                    entries[:] = [entry for entry in entries if not entry.get("in memory")]
                    for entry in entries:
                        entry.pop("acknowledged in memory", None)


def _unreachable() -> BrokerError:
    return BrokerError("the broker cannot be reached", ErrorCode.UNAVAILABLE, retryable=True)


def _missing(what: str) -> BrokerError:
    return BrokerError(f"{what} does not exist; create it with create=all", ErrorCode.NOT_FOUND)


class FileDriver(Driver[FileOptions]):
    """One topic."""

    blocking = True
    mixed_keys = True
    capabilities = CAPABILITIES
    source_class: ClassVar[type[FileSource]]

    def __init__(self, topic_name: str, project_id: str, options: FileOptions) -> None:
        super().__init__(topic_name, project_id, options)
        if options.ordering is False:
            self.capabilities = attrs.evolve(self.capabilities, ordering="none")
        self.broker = Broker(options.path)
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._unanswered: dict[int, tuple[EventMessage, str]] = {}

    async def open(self) -> None:
        if self.options.dead_letter_topic:
            raise BrokerError("dead_letter_topic is not offered; leave it out", ErrorCode.UNSUPPORTED)
        with self.broker.changed() as state:
            if self.topic_name not in state["topics"] and self.options.create != "all":
                raise _missing(f"topic {self.topic_name!r}")
            state["topics"].setdefault(self.topic_name, {"kept": [], "retention": 0.0, "subscriptions": {}})
            self.topic(state)["retention"] = max(self.topic(state)["retention"], self.options.retention)
            if self.options.subscription and self.options.create != "never":
                self.join(state, self.options.subscription)

    def topic(self, state: Any) -> Any:
        """Return the topic in *state*."""
        try:
            return state["topics"][self.topic_name]
        except KeyError:
            raise _missing(f"topic {self.topic_name!r}") from None

    def join(self, state: Any, subscription: str, *, ephemeral: bool = False) -> list[Entry]:
        """Return the entries of a subscription, which is created if that is allowed."""
        topic = self.topic(state)
        if subscription not in topic["subscriptions"]:
            if self.options.create == "never" and not ephemeral:
                raise _missing(f"subscription {subscription!r} of topic {self.topic_name!r}")
            earliest = self.options.start == "earliest"
            topic["subscriptions"][subscription] = [dict(entry) for entry in topic["kept"]] if earliest else []
        entries: list[Entry] = topic["subscriptions"][subscription]
        return entries

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        numbers = [self.number(message) for message in messages]
        with self.broker.changed() as state:
            ids = [self.store(state, *each) for each in zip(messages, numbers, strict=True)]
            self.prune(self.topic(state), time.time())
        for message in messages:
            del self._unanswered[id(message)]
        return ids

    def number(self, message: EventMessage) -> str:
        """Return a number by which the broker recognises *message* when it is sent again."""
        new = (message, f"{self._name}-{next(self._numbers)}")
        return self._unanswered.setdefault(id(message), new)[1]

    def store(self, state: Any, message: EventMessage, number: str) -> str:
        """Store *message* in each subscription.  Return its id."""
        if number in state["sent"]:
            return str(state["sent"][number])
        state["ids"] += 1
        message_id = state["sent"][number] = str(state["ids"])
        entry = self.entry(message, message_id)
        topic = self.topic(state)
        for entries in topic["subscriptions"].values():
            entries.append(dict(entry))
        if topic["retention"]:
            topic["kept"].append(entry)
        return message_id

    def entry(self, message: EventMessage, message_id: str) -> Entry:
        """Return the entry that is stored for *message*."""
        return {
            "id": message_id,
            "data": message.data.decode("latin-1"),
            "attributes": dict(message.attributes),
            "key": message.ordering_key,
            "published": time.time(),
            "attempts": 0,
            "owner": "",
            "until": 0.0,
            "due": 0.0,
        }

    def prune(self, topic: Any, now: float) -> None:
        """Drop the messages that are older than the retention of *topic*."""
        topic["kept"] = [entry for entry in topic["kept"] if entry["published"] >= now - topic["retention"]]

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> FileSource:
        name = subscription or f"ephemeral-{uuid.uuid4().hex}"
        with self.broker.changed() as state:
            self.prune(self.topic(state), time.time())
            self.join(state, name, ephemeral=subscription is None)
        return self.source_class(self, name, ephemeral=subscription is None)

    async def delete_subscription(self, subscription: str) -> None:
        with self.broker.changed() as state:
            if self.topic(state)["subscriptions"].pop(subscription, None) is None:
                raise _missing(f"subscription {subscription!r} of topic {self.topic_name!r}")

    async def ping(self) -> None:
        with self.broker.changed() as state:
            self.topic(state)

    async def close(self) -> None:
        pass


class FileSource(Source):
    """One receiver."""

    def __init__(self, driver: FileDriver, subscription: str, *, ephemeral: bool) -> None:
        self.subscription = subscription
        self.capabilities = driver.capabilities
        self.lease = driver.options.lease
        self.driver = driver
        self.ephemeral = ephemeral

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while not (deliveries := self.take(limit)):
            await asyncio.sleep(POLL)
        return deliveries

    def take(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* messages that are free now."""
        now = time.time()
        taken: list[Delivery] = []
        blocked: set[str] = set()
        with self.driver.broker.changed() as state:
            entries = self.driver.join(state, self.subscription, ephemeral=self.ephemeral)
            for entry in self.queue(entries, now):
                if entry["key"] in blocked or len(taken) == limit:
                    continue
                if self.is_free(entry, now):
                    taken.append(self.lend(entry, now))
                elif entry["key"]:
                    blocked.add(entry["key"])
        return taken

    def queue(self, entries: list[Entry], now: float) -> list[Entry]:
        """Return *entries* in the order in which they are handed out."""
        return entries

    def is_free(self, entry: Entry, now: float) -> bool:
        """Return whether no receiver has *entry* and no delay keeps it."""
        return bool(entry["until"] <= now and entry["due"] <= now)

    def lend(self, entry: Entry, now: float) -> Delivery:
        """Lease *entry* to this receiver."""
        entry.update(owner=uuid.uuid4().hex, until=now + self.lease, attempts=entry["attempts"] + 1)
        return Delivery(
            entry["id"],
            entry["data"].encode("latin-1"),
            entry["attributes"],
            entry["key"],
            datetime.fromtimestamp(entry["published"], UTC),
            entry["attempts"],
            entry["owner"],
        )

    def owned(self, entries: list[Entry], delivery: Delivery) -> Entry | None:
        """Return the entry of *delivery*, if this receiver still has it."""
        return next((entry for entry in entries if entry["owner"] == delivery.token), None)

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        lost: list[Delivery] = []
        with self.driver.broker.changed() as state:
            entries = self.driver.join(state, self.subscription, ephemeral=self.ephemeral)
            for delivery in deliveries:
                entry = self.owned(entries, delivery)
                if entry is None:
                    lost.append(delivery)
                else:
                    entry["until"] = time.time() + self.lease
        return lost

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        with self.driver.broker.changed() as state:
            entries = self.driver.join(state, self.subscription, ephemeral=self.ephemeral)
            return [self.settle_one(entries, each) for each in settlements]

    def settle_one(self, entries: list[Entry], settlement: Settlement) -> BrokerError | None:
        """Apply one outcome."""
        entry = self.owned(entries, settlement.delivery)
        if entry is None:
            return BrokerError("the lease has lapsed; the message comes again", ErrorCode.EXPIRED)
        if settlement.outcome is Outcome.ACK:
            entries.remove(entry)
            return None
        entry.update(owner="", until=0.0)
        if settlement.outcome is Outcome.RETURN:
            entry["attempts"] -= 1
        else:
            delay = redelivery_delay(entry["attempts"]) if settlement.delay is None else settlement.delay
            entry["due"] = time.time() + delay
        return None

    async def close(self) -> None:
        if self.ephemeral:
            with contextlib.suppress(BrokerError):
                await self.driver.delete_subscription(self.subscription)


FileDriver.source_class = FileSource


class FileClient(EngineClient):
    """A client of the broker."""

    api_version = 1
    options_class = FileOptions
    full_capabilities = CAPABILITIES
    driver_class: ClassVar[Any] = FileDriver
