"""The memory backend: topics that live as long as the process.

It is the reference for each rule of the contract that one process can keep.  Clients of one process share topics by
project and name.  A forked child starts without topics.

Every topic, subscription and message is guarded by one lock, ``_lock``, which is held for a moment and never across an
``await``.  The engine calls ``fetch`` under the lock of its receiver.  So ``_lock`` is always the inner one: code that
holds it calls neither ``wake`` nor the log, whose handlers may take other locks.  The methods that need the lock return
the sources to wake, and their callers wake these after they have released the lock.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from typing import ClassVar, Literal, TypeVar

import attrs

from events_core import PORTABLE_LIMITS, Capabilities, ErrorCode, EventConfig, EventMessage
from events_core.engine import (
    BrokerError,
    DeadLetterLog,
    Delivery,
    Driver,
    EngineClient,
    KeyedQueue,
    Outcome,
    Settlement,
    Source,
    dead_letter_attributes,
    message_size,
    redelivery_delay,
)
from events_core.options import CommonOptions, did_you_mean, option

__all__ = ["MemoryClient", "MemoryOptions", "MemoryTopic"]

T = TypeVar("T")

# As globals, because reading a member from its class takes ten times as long (CPython 3.11).
ACK, NACK, RETURN, REJECT = Outcome

_FULL = Capabilities(
    durable="none",
    ordering="subscription",
    replay=True,
    dead_letter=True,
    reject=True,
    delivery_attempts=True,
    ack_confirmed=True,
    exactly_once=True,
    idempotent_publish=True,
    redelivery="lease",
    limits=PORTABLE_LIMITS,
)


@attrs.frozen(kw_only=True)
class MemoryOptions(CommonOptions):
    """Options of the memory backend."""

    create: Literal["never", "subscription", "all"] = option(
        default="all", help="What may be created if it is missing: nothing, the subscription, or also the topic."
    )
    retention: float = option(
        default=0.0, minimum=0, unit="seconds", help="How long the topic keeps messages for later subscriptions."
    )


class _Stored:
    """A message, shared by the subscriptions that still need it."""

    __slots__ = ("attributes", "data", "message_id", "ordering_key", "publish_time", "size", "stored_at")

    def __init__(
        self, data: bytes, attributes: Mapping[str, str], ordering_key: str | None, now: float, when: datetime
    ) -> None:
        self.message_id = str(next(_ids))
        self.data = data
        self.attributes = attributes
        self.ordering_key = ordering_key
        self.publish_time = when
        self.stored_at = now
        self.size = 0


class _Item:
    """A message in one subscription; the token of its deliveries."""

    __slots__ = ("attempts", "deadline", "delivery", "due", "order", "ordering_key", "stored")

    def __init__(self, stored: _Stored) -> None:
        self.stored = stored
        self.ordering_key = stored.ordering_key
        self.attempts = 0
        self.order = 0
        self.due = 0.0
        self.delivery: Delivery | None = None
        self.deadline = 0.0


class _Subscription:
    """The messages that a subscription has not settled, and its receivers."""

    def __init__(self, name: str, kept: Iterable[_Stored], *, ephemeral: bool = False) -> None:
        self.name = name
        self.ephemeral = ephemeral
        self.queue: KeyedQueue[_Item] = KeyedQueue()
        self.sources: set[MemorySource] = set()
        self.deleted = False
        for stored in kept:
            self.queue.push(_Item(stored))


@attrs.frozen(kw_only=True)
class MemoryTopic:
    """A snapshot of a topic in this process: the native connection of this backend, for tests that look inside."""

    name: str
    project_id: str
    unsettled: Mapping[str, int]
    """The number of messages that each subscription has not settled, with those that receivers hold."""


class _Topic:
    """A topic: its subscriptions, and the messages that it keeps for later ones."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.subscriptions: dict[str, _Subscription] = {}
        self.kept: deque[_Stored] = deque()
        self.retention = 0.0

    def store(self, messages: Sequence[_Stored]) -> None:
        for subscription in self.subscriptions.values():
            push = subscription.queue.push
            for stored in messages:
                push(_Item(stored))
        if self.retention:
            self.kept += messages
            self.prune(time.monotonic())

    def prune(self, now: float) -> None:
        while self.kept and self.kept[0].stored_at < now - self.retention:
            self.kept.popleft()

    def durable(self) -> list[str]:
        """Return the names of the subscriptions that outlive their receivers."""
        return [name for name, subscription in self.subscriptions.items() if not subscription.ephemeral]

    def unsettled(self) -> dict[str, int]:
        """Return the number of messages that each subscription has not settled."""
        return {
            name: len(each.queue) + sum(len(source._held) for source in each.sources)
            for name, each in self.subscriptions.items()
        }

    def sources(self) -> list[MemorySource]:
        return [source for subscription in self.subscriptions.values() for source in subscription.sources]


# Used without the lock: each next() is one step of the interpreter.
_ids = itertools.count(1)
_topics: dict[tuple[str, str], _Topic] = {}
_lock = threading.Lock()


def unsettled(project_id: str, topic_name: str) -> dict[str, int]:
    """Return the number of messages that each subscription of a topic has not settled, with those that are held."""
    with _lock:
        topic = _topics.get((project_id, topic_name))
        return topic.unsettled() if topic is not None else {}


def forget(project_id: str) -> None:
    """Forget all topics of *project_id* with their messages.  Clients that are connected keep theirs."""
    with _lock:
        for key in [key for key in _topics if key[0] == project_id]:
            del _topics[key]


def _start_empty() -> None:
    global _lock
    _lock = threading.Lock()  # a thread of the parent may have held the old one at the fork
    _topics.clear()


os.register_at_fork(after_in_child=_start_empty)


class MemoryDriver(Driver[MemoryOptions]):
    """A driver that puts each message into the subscriptions of its topic."""

    inline: ClassVar[bool] = True
    mixed_keys: ClassVar[bool] = True

    def __init__(self, topic_name: str, project_id: str, options: MemoryOptions) -> None:
        super().__init__(topic_name, project_id, options)
        self.capabilities = attrs.evolve(_FULL, ordering="none") if options.ordering is False else _FULL

    async def open(self) -> None:
        with _lock:
            self._topic = self._find_topic(self.topic_name)
            self._topic.retention = max(self._topic.retention, self.options.retention)
            if self.options.subscription and self.options.create != "never":
                self._join(self.options.subscription)

    def _find_topic(self, name: str) -> _Topic:
        topic = _topics.get((self.project_id, name))
        if topic is None:
            if self.options.create != "all":
                raise BrokerError(
                    f"topic {name!r} of project {self.project_id!r} does not exist in this process; "
                    "create it with a client that has create=all",
                    ErrorCode.NOT_FOUND,
                )
            topic = _topics[self.project_id, name] = _Topic(name)
        return topic

    def _join(self, name: str, *, ephemeral: bool = False) -> _Subscription:
        subscription = self._topic.subscriptions.get(name)
        if subscription is None:
            if self.options.create == "never" and not ephemeral:
                raise BrokerError(
                    f"topic {self.topic_name!r} has no subscription {name!r}; create it with create=subscription"
                    f"{self._nearest(name)}",
                    ErrorCode.NOT_FOUND,
                )
            kept = self._topic.kept if self.options.start == "earliest" else ()
            self._topic.prune(time.monotonic())
            subscription = self._topic.subscriptions[name] = _Subscription(name, kept, ephemeral=ephemeral)
        return subscription

    def _nearest(self, name: str) -> str:
        return did_you_mean(name, self._topic.durable())

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        now, when = time.monotonic(), datetime.now(UTC)
        # Before the lock is taken, because all topics of the process share it.
        stored = [_Stored(each.data, each.attributes, each.ordering_key, now, when) for each in messages]
        with _lock:
            sources = self.store(self._topic, stored)
        for source in sources:
            source.wake()
        return [each.message_id for each in stored]

    def store(self, topic: _Topic, messages: Sequence[_Stored]) -> list[MemorySource]:
        """Put *messages*, which may be dead letters, into *topic*; under the lock.  Return the sources to wake."""
        topic.store(messages)
        return topic.sources()

    def bury(self, item: _Item, subscription: str, reason: str | None = None) -> list[MemorySource]:
        """Move a dead letter to its topic; under the lock.  Return the sources to wake."""
        stored = item.stored
        topic = self._find_topic(self.options.dead_letter_topic or "")
        attributes = dead_letter_attributes(
            stored.attributes,
            topic_name=self.topic_name,
            subscription=subscription,
            message_id=stored.message_id,
            attempts=item.attempts,
            reason=reason,
        )
        letter = _Stored(stored.data, attributes, stored.ordering_key, time.monotonic(), datetime.now(UTC))
        return self.store(topic, [letter])

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
        with _lock:
            if self.options.dead_letter_topic is not None:
                self._find_topic(self.options.dead_letter_topic)
            name = subscription or f"ephemeral-{next(_ids)}"
            return MemorySource(self, name, subscription is None, wake)

    async def has_subscription(self) -> bool:
        with _lock:
            return bool(self._topic.subscriptions) or self._topic.retention > 0  # which keeps it for a later one

    async def keep_dead_letters(self, subscription: str) -> bool:
        with _lock:
            topic = self._find_topic(self.options.dead_letter_topic or "")
            if not topic.durable() and self.options.create != "never":
                topic.subscriptions[subscription] = _Subscription(subscription, topic.kept)
            return bool(topic.durable())

    async def run_native(self, work: Callable[[MemoryTopic], Awaitable[T]]) -> T:
        with _lock:
            topic = MemoryTopic(name=self.topic_name, project_id=self.project_id, unsettled=self._topic.unsettled())
        return await work(topic)

    async def delete_subscription(self, subscription: str) -> None:
        with _lock:
            gone = self._topic.subscriptions.pop(subscription, None)
            if gone is None:
                raise BrokerError(
                    f"topic {self.topic_name!r} has no subscription {subscription!r}; nothing was deleted"
                    f"{self._nearest(subscription)}",
                    ErrorCode.NOT_FOUND,
                )
            gone.deleted = True
        for source in list(gone.sources):
            source.wake()

    async def ping(self) -> None:
        with _lock:
            self._find_topic(self.topic_name)

    async def close(self) -> None:
        pass


class MemorySource(Source):
    """A receiver of a subscription."""

    def __init__(self, driver: MemoryDriver, name: str, ephemeral: bool, wake: Callable[[], None]) -> None:
        self.subscription = name
        self.capabilities = driver.capabilities
        self.wake = wake
        self._driver = driver
        self._ephemeral = ephemeral
        self._letters = DeadLetterLog(name, driver.options.dead_letter_topic or "")
        # Those with letters that this receiver has moved.  Appending and taking are atomic, so it needs no lock.
        self._unwritten: deque[DeadLetterLog] = deque()
        # In the order of their deadlines, because all leases of one receiver are equally long.
        self._held: OrderedDict[_Item, None] = OrderedDict()
        self._join()

    def _join(self) -> None:
        self._of = self._driver._join(self.subscription, ephemeral=self._ephemeral)
        self._of.sources.add(self)

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        now = time.monotonic()
        with _lock:
            if self._of.deleted:
                for item in self._held:
                    item.delivery = None
                self._held.clear()
                self._join()  # creates it again if the options allow it (F1)
            wakes, lapsed = self._reclaim(now)
            items = self._of.queue.pop(limit, now)
            deadline = now + self._driver.options.max_lease_duration
            deliveries = [self._lend(item, deadline) for item in items]
        if lapsed:
            _wake(wakes)
            self._unwritten.extend(source._letters for source in lapsed)
        return deliveries

    def _lend(self, item: _Item, deadline: float) -> Delivery:
        stored = item.stored
        # Counted at the first delivery, and once for all subscriptions.
        stored.size = stored.size or message_size(stored)
        item.attempts += 1
        item.deadline = deadline
        self._held[item] = None
        item.delivery = Delivery(
            stored.message_id,
            stored.data,
            stored.attributes,
            stored.ordering_key,
            stored.publish_time,
            item.attempts,
            item,
            stored.size,
        )
        return item.delivery

    def _reclaim(self, now: float) -> tuple[list[MemorySource], list[MemorySource]]:
        """Take back the messages that any receiver of the subscription has held beyond its lease.

        Of a key only the first message has failed, because the others waited behind it (R10).

        Return the sources to wake, and the sources whose leases lapsed.
        """
        wakes: list[MemorySource] = []
        lapsed: list[MemorySource] = []
        failed: set[str] = set()
        for source in self._of.sources:
            while source._held and next(iter(source._held)).deadline <= now:
                item = next(iter(source._held))
                key = item.ordering_key if source.capabilities.ordering != "none" else None
                if key in failed:
                    wakes += source._take_back(item, RETURN, 0.0, now)
                else:
                    wakes += source._take_back(item, NACK, redelivery_delay(item.attempts), now)
                if key is not None:
                    failed.add(key)
                lapsed.append(source)
        return wakes, lapsed

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        results: list[BrokerError | None] = []
        wakes: list[MemorySource] = []
        rejected: list[tuple[_Item, str]] = []
        now = time.monotonic()
        with _lock:
            # Backwards, because each message of a run goes back to the front of its key.
            for settlement in reversed(settlements):
                delay, item = settlement.delay, settlement.delivery.token
                if item.delivery is not settlement.delivery or self._of.deleted:
                    results.append(
                        BrokerError("the lease has expired; the message usually comes again", ErrorCode.EXPIRED)
                    )
                    continue
                if settlement.outcome is REJECT:
                    rejected.append((item, settlement.reason))
                    results.append(None)
                    continue
                if settlement.outcome is NACK and delay is None:
                    delay = redelivery_delay(item.attempts)
                wakes += self._take_back(item, settlement.outcome, delay or 0.0, now)
                results.append(None)
            # Forwards, so that the letters of a key keep their order.
            for item, reason in reversed(rejected):
                wakes += self._reject(item, reason)
            # A settlement may free the next message of a key, for which any receiver of the subscription may wait.
            wakes += self._of.sources if self._of.queue else ()
        _wake(wakes)
        results.reverse()
        return results

    def _take_back(self, item: _Item, outcome: Outcome, delay: float, now: float) -> list[MemorySource]:
        """End a delivery; under the lock.  Return the sources of other topics to wake."""
        del self._held[item]
        item.delivery = None
        if outcome is ACK:
            self._finish(item)
            return []
        maximum = self._driver.options.max_delivery_attempts
        if outcome is RETURN:
            item.attempts -= 1
        elif maximum is not None and item.attempts >= maximum:
            return self._bury(item)
        self._of.queue.restore([item], now + delay if delay else 0.0)
        return []

    def _reject(self, item: _Item, reason: str) -> list[MemorySource]:
        """Dead-letter a message that a handler has rejected; under the lock.  Return the sources to wake."""
        del self._held[item]
        item.delivery = None
        return self._bury(item, reason)

    def _bury(self, item: _Item, *reason: str) -> list[MemorySource]:
        self._letters.record(item.stored.message_id, item.attempts, *reason)
        self._unwritten.append(self._letters)
        wakes = self._driver.bury(item, self.subscription, *reason)
        self._finish(item)
        return wakes

    def _finish(self, item: _Item) -> None:
        """Remove *item* from the subscription, and free its data."""
        # The engine remembers the deliveries of settled messages for long, and with them their tokens, which are items.
        self._of.queue.release(item)
        del item.stored

    def unlocked(self) -> None:
        while self._unwritten:
            with suppress(IndexError):  # another thread has just taken the last one
                self._unwritten.popleft().write()

    def next_due(self) -> float | None:
        with _lock:
            dues = [next(iter(source._held)).deadline for source in self._of.sources if source._held]
            delayed = self._of.queue.next_due()
            return min([*dues, delayed] if delayed is not None else dues, default=None)

    async def withheld(self) -> Collection[str]:
        with _lock:
            return list(self._of.queue.blocked())

    async def close(self) -> None:
        with _lock:
            self._of.sources.discard(self)
            if self._ephemeral and not self._of.deleted:
                self._of.deleted = True
                del self._driver._topic.subscriptions[self.subscription]


def _wake(sources: Iterable[MemorySource]) -> None:
    for source in dict.fromkeys(sources):
        source.wake()


class MemoryClient(EngineClient):
    """A client of a topic in this process: ``memory:///orders``, or ``memory://space/orders``."""

    api_version = 1
    options_class = MemoryOptions
    full_capabilities = _FULL
    driver_class = MemoryDriver

    async def run_native(self, work: Callable[[MemoryTopic], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with a :class:`MemoryTopic`, in the caller's task (rule N1: native objects).

        So cancelling the caller cancels *work*, and closing the client does not.
        A message has no native form here.
        """
        return await super().run_native(work, timeout)

    @classmethod
    def scratch(cls, config: EventConfig) -> AbstractContextManager[EventConfig]:
        """Return *config*: everything in memory is gone with the process."""
        return nullcontext(config)
