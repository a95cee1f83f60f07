"""The source of one receiver: what the engine fetches from and settles with.

:mod:`~events_kafka.consumer` is the thread in which librdkafka works, and :mod:`~events_kafka.claims` keeps what is
settled.  An acknowledgement is a note there; the next commit tells the broker.

**Deliveries that come back.**  Kafka cannot take back a single record, so this receiver keeps it.  While the partition
is here, the next :meth:`KafkaSource.fetch` returns it again, with a new token, before all that has come since.  So the
position stays at it, and the order of its key holds.

**A partition that moves.**  What was not settled comes to its next receiver, and is ``EXPIRED`` here.

All of it runs on the engine's I/O loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

import attrs

from events_core import Capabilities, ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery, Letters, Outcome, Settlement, Source, uptime
from events_kafka.claims import Claim, Token
from events_kafka.consumer import Consumer, Listener
from events_kafka.options import KafkaOptions
from events_kafka.room import Room
from events_kafka.settings import given, settings
from events_kafka.topology import Topology

__all__ = ["Context", "KafkaSource", "join"]

_log = logging.getLogger("events_kafka")

_ACK, _NACK, _RETURN, _REJECT = Outcome  # reading a member from its class takes ten times as long (CPython 3.11)

_BUFFER_MESSAGES = 250
"""Deliveries between the consumer's thread and the engine.

So many fill the room for which the engine fetches.  More of them would wait here in vain: they fall out of the
processor's caches, and the garbage collector looks at them again and again.  With 1,000 a message costs about a third
more CPU time.
"""

_BUFFER_BYTES = 16 * 2**20
"""Bytes of those."""

_HEARTBEAT = 1.0
"""Seconds between two signs of life.  A receiver that joins waits for one of each other member."""

_BROKERS_HEARTBEAT = 5.0
"""The same with KIP-848, where the broker says it (``group.consumer.heartbeat.interval.ms``)."""

_CLOSE_SHARE = 0.8
"""The part of its time to close after which the source leaves the rest to the consumer's thread."""

_UNCERTAIN = BrokerError(
    "the broker has not confirmed yet that this receiver still has its partitions",
    ErrorCode.UNAVAILABLE,
    retryable=True,
)


@attrs.frozen
class Context:
    """The things that a source needs of its driver."""

    subscription: str
    """Name of the subscription; a generated name if it is ephemeral."""
    capabilities: Capabilities
    topology: Topology
    """The requests of an administrator."""
    store_letter: Callable[[EventMessage], Awaitable[None]]
    """Publishes to the dead-letter topic, and returns when the letter is stored.  Raises ``BrokerError``."""
    wake: Callable[[], None]
    """The ``wake`` of :meth:`events_core.engine.Driver.subscribe`."""


class KafkaSource(Source, Listener):
    """One receiver."""

    redelivers_locally = True
    keeps_delays = False
    close_time = 5.0  # a rebalance delays the last commit, usually for less

    def __init__(
        self, options: KafkaOptions, topic: str, group: str | None, begin: dict[int, int] | None, context: Context
    ) -> None:
        self.subscription = context.subscription
        self.capabilities: Capabilities = context.capabilities
        self.local_attempts = options.max_delivery_attempts
        self._is_ordered = context.capabilities.ordering != "none"
        self._wake = context.wake
        self._topic = topic
        self._topology = context.topology
        self._restores = options.create == "all"
        self._letters = Letters(
            context.store_letter,
            topic_name=topic,
            subscription=context.subscription,
            dead_letter_topic=options.dead_letter_topic,
            last_attempt=self.local_attempts,
        )
        self._ready: list[Delivery] = []
        """What has come and was not fetched, in order."""
        self._again: list[Delivery] = []
        """What came back, in the order of its offsets."""
        self._failure: BrokerError | None = None
        self._end: BrokerError | None = None
        """The reason why nothing will be received any more."""
        self._has_recovered = False
        self._waiting: asyncio.Future[None] | None = None
        messages = min(_BUFFER_MESSAGES, options.max_outstanding_messages)
        self._room = Room(messages, min(_BUFFER_BYTES, options.max_outstanding_bytes))
        configured = _settings(options, group or context.subscription)
        self._consumer = Consumer(
            configured,
            topic,
            begin,
            self,
            room=self._room,
            session=options.session_timeout,
            safe_time=_safe_time(options.session_timeout, configured),
            max_gap=options.max_gap,
            secrets=given(options).values(),
        )
        self._claims = self._consumer.claims

    async def start(self) -> None:
        """Begin to receive.

        :raises BrokerError: if that failed.
        """
        await self._consumer.start()

    # Receiving

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while not self._again and not self._ready and not self._has_recovered:
            if self._may_restore:
                await self._restore()
            elif self._failure is not None:
                break
            else:
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
        taken = self._take_again(limit)
        new = self._ready[: limit - len(taken)]
        if new:
            del self._ready[: len(new)]
            self._room.took(new)
            taken += new
        if not taken and self._failure is not None:
            failure, self._failure = self._failure, self._end
            raise failure
        self._has_recovered = False
        return taken

    @property
    def _may_restore(self) -> bool:
        """Return whether the topic is missing, and the options allow the receiver to create it."""
        failure = self._failure if self._end is None else None
        return self._restores and failure is not None and failure.code is ErrorCode.NOT_FOUND

    async def _restore(self) -> None:
        """Create the topic again, which was deleted, as the options allow (F1).

        :raises BrokerError: if that failed.
        """
        await self._topology.create(again=True)
        self._failure = self._end  # another report may have come meanwhile
        _log.warning("topic %r was deleted and has been created again; the messages in it are lost", self._topic)

    def _take_again(self, limit: int) -> list[Delivery]:
        """Take what came back and is not settled meanwhile."""
        if not self._again:
            return []
        with self._claims.lock:
            self._again = [each for each in self._again if self._claims.is_unsettled(each.token)]
        taken = self._again[:limit]
        del self._again[:limit]
        return taken

    def _stir(self) -> None:
        """Let :meth:`fetch` look again."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def arrived(self, deliveries: Sequence[Delivery]) -> None:
        self._ready += deliveries
        self._failure = None
        self._stir()

    def revoked(self, claims: Collection[Claim]) -> None:
        dropped = [each for each in self._ready if each.token.claim in claims]
        if dropped:
            self._ready = [each for each in self._ready if each.token.claim not in claims]
            self._room.took(dropped)
        self._again = [each for each in self._again if each.token.claim not in claims]
        self.lost(lambda delivery: delivery.token.claim in claims)

    def failed(self, error: BrokerError) -> None:
        self._failure = error
        self._stir()

    def ended(self, error: BrokerError) -> None:
        self._end = error
        self.failed(error)

    def recovered(self) -> None:
        self._failure = None
        self._has_recovered = True
        self._stir()

    def safe(self, until: float) -> None:
        before, self.safe_until = self.safe_until, until
        if before is not None and uptime() >= before:
            self._wake()

    # Settling

    def acknowledge_at_once(self, deliveries: Sequence[Delivery]) -> Sequence[BrokerError | None] | None:
        if not self._is_safe() or self._letters.is_busy:
            return None
        with self._claims.lock:
            settle = self._claims.settle
            return [None if settle(delivery.token) else _expired(delivery) for delivery in deliveries]

    def _is_safe(self) -> bool:
        return self.safe_until is None or uptime() < self.safe_until

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        if not self._is_safe():
            # The process was stopped, and others may have the partitions.  The consumer's thread is asking.
            return [_UNCERTAIN] * len(settlements)
        returned: list[Delivery] = []
        with self._claims.lock:
            results = [self._settle(settlement, returned) for settlement in settlements]
        if returned:
            self._deliver_again(returned)
        self._letters.forget(
            settlement.delivery.message_id
            for settlement, error in zip(settlements, results, strict=True)
            if error is None
        )
        return results

    def _settle(self, settlement: Settlement, returned: list[Delivery]) -> BrokerError | None:
        """Settle; add what comes again to *returned*."""
        delivery = settlement.delivery
        token: Token = delivery.token
        if settlement.outcome is _ACK:
            return None if self._claims.settle(token) else _expired(delivery)
        if not self._claims.has(token):
            return _expired(delivery)
        if not self._claims.is_unsettled(token):
            return None  # the engine asks again after a cancellation
        if self._letters.takes(settlement):
            error = self._letters.move(settlement)
            if error is None:
                self._claims.settle(token)
            return error
        returned.append(_again(delivery, settlement.outcome is _NACK))
        return None

    def _deliver_again(self, returned: list[Delivery]) -> None:
        """Deliver again what came back, in order."""
        if self._is_ordered:
            returned += self._successors(returned)
        self._again = sorted([*self._again, *returned], key=_offset)
        self._stir()

    def _successors(self, returned: Iterable[Delivery]) -> list[Delivery]:
        """Take back what the engine has buffered of the keys of *returned*, behind them.

        A record that came meanwhile would otherwise be handed out before those.
        """
        first: dict[tuple[Claim, str], int] = {}
        for delivery in returned:
            if delivery.ordering_key:
                first.setdefault((delivery.token.claim, delivery.ordering_key), delivery.token.offset)

        def is_behind(delivery: Delivery) -> bool:
            key = (delivery.token.claim, delivery.ordering_key or "")
            return key in first and delivery.token.offset > first[key]

        return [_again(delivery, failed=False) for delivery in self.take_back(is_behind)] if first else []

    async def close(self) -> None:
        now = asyncio.get_running_loop().time
        ends = now() + _CLOSE_SHARE * self.close_time
        await self._letters.close()
        await self._consumer.close(ends - now())


def _again(delivery: Delivery, failed: bool) -> Delivery:
    """Return a new delivery of the same message."""
    attempt = delivery.delivery_attempt
    return Delivery(
        delivery.message_id,
        delivery.data,
        delivery.attributes,
        delivery.ordering_key,
        delivery.publish_time,
        attempt + 1 if failed and attempt is not None else attempt,
        Token(*delivery.token),
        delivery.size,
    )


def _offset(delivery: Delivery) -> int:
    offset: int = delivery.token.offset
    return offset


def _expired(delivery: Delivery) -> BrokerError:
    return BrokerError(
        f"partition {delivery.token.claim.partition} went to another receiver of the subscription, and message "
        f"{delivery.message_id!r} with it; settle the new delivery",
        ErrorCode.EXPIRED,
    )


def _safe_time(session: float, configured: Mapping[str, object]) -> float:
    """Return the seconds for which the group certainly keeps a member after a turn of its thread.

    The last sign of life is older than the turn by up to one interval between two of them, or two if one is late.
    """
    heartbeat = _BROKERS_HEARTBEAT
    if "heartbeat.interval.ms" in configured:  # not with KIP-848
        try:
            heartbeat = int(str(configured["heartbeat.interval.ms"]), 0) / 1000
        except ValueError:
            heartbeat = session  # librdkafka refuses the value, and the error does not show it
    return max(session - 2 * heartbeat, session / 4)


def _settings(options: KafkaOptions, group: str) -> dict[str, object]:
    """Return the settings of the consumer.  Those above the options may be changed by the option ``librdkafka``."""
    milliseconds = 1000
    classic: dict[str, object] = {}
    if options.group_protocol == "classic":
        classic = {
            "heartbeat.interval.ms": int(min(_HEARTBEAT, options.session_timeout / 4) * milliseconds),
            # A member keeps what it has while another one joins.
            "partition.assignment.strategy": "cooperative-sticky",
        }
    session = int(options.session_timeout * milliseconds)
    required: dict[str, object] = {
        "group.id": group,
        "group.protocol": options.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": options.isolation,
        "allow.auto.create.topics": False,
        # The thread asks for records all the time, so this bounds only how long others wait for one that hangs.
        "max.poll.interval.ms": max(300_000, session),
    }
    if options.group_protocol == "classic":
        required["session.timeout.ms"] = session
    if options.static_member is not None:
        required["group.instance.id"] = options.static_member
    return {
        **classic,
        # A topic that got partitions is noticed after this time.
        "topic.metadata.refresh.interval.ms": 30_000,
        # librdkafka fetches so much ahead, besides what the engine bounds.
        "queued.max.messages.kbytes": max(1024, min(65_536, options.max_outstanding_bytes // 1024)),
        # After its queue was full, librdkafka waits so long before it fetches again.
        "fetch.queue.backoff.ms": 100,
        **settings(options, "consumer"),
        **required,
    }


async def join(options: KafkaOptions, topic: str, group: str | None, context: Context) -> KafkaSource:
    """Join the consumer group *group*, which exists, or read *topic* without a group for ``None``.

    The driver has made sure before that the group has committed its start for all partitions that the topic had.

    :raises BrokerError: if that failed.  Nothing is left behind.
    """
    begin = None if group is not None else dict(await context.topology.starts(topic))
    source = KafkaSource(options, topic, group, begin, context)
    try:
        await source.start()
    except BaseException:
        await source.close()
        raise
    return source
