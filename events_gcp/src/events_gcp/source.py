"""The receiving side of one receiver: inlets, and requests to settle."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from events_core import ErrorCode, EventMessage
from events_core.engine import (
    BrokerError,
    Delivery,
    Outcome,
    Settlement,
    Source,
    dead_letter_attributes,
    log_dead_letter,
    redelivery_delay,
)
from events_gcp.inlet import Inlet, Pulls
from events_gcp.late import LateAcknowledgements
from events_gcp.letters import DeadLetters
from events_gcp.limits import MAX_ACK_IDS, MAX_ATTRIBUTES
from events_gcp.pace import Pace

if TYPE_CHECKING:
    from events_gcp.admin import Joined
    from events_gcp.driver import GcpDriver

__all__ = ["GcpSource"]

_log = logging.getLogger("events_gcp")

_SETTLED_IN = 10.0
"""Seconds after which the end of a stream is routine, since the service ends each now and then, and not an outage."""

_REFUSED_IN = 1.0
"""Seconds within which a server refuses a stream, if it does: one that lives on means that an outage is over, though no
message has come yet."""

_CLOSE_TIMEOUT = 5.0

_REMEMBERED_FAILURES = 10_000


class GcpSource(Source):
    """One receiver of a subscription."""

    redelivers_locally = True
    """Pub/Sub would deliver a nacked key again in the order of the requests, and count an attempt of each message that
    goes back, so a run stays here; it goes back as a whole, in one request, when the receiver closes.  A subscription
    without order has no runs: Pub/Sub sees each failure, and moves dead letters itself."""

    def __init__(self, driver: GcpDriver, name: str, joined: Joined, *, ephemeral: bool) -> None:
        self.subscription = name
        self.capabilities = joined.capabilities
        pulls = driver.options.receive_mode == "pull"
        self.lease: float = joined.ack_deadline if pulls else driver.options.ack_deadline
        self.local_attempts = joined.dead_letter[1] if joined.dead_letter else None
        self._driver = driver
        self._joined = joined
        self._path = driver.subscription_path(name)
        self._ephemeral = ephemeral
        self._loop = asyncio.get_running_loop()
        self._client_id = uuid.uuid4().hex
        self._pulls = pulls
        self._pace = Pace()
        self.pushes = not pulls
        self._inlets: list[Inlet] = []
        self._changing = asyncio.Lock()
        self._budget = 0
        self._patience: float | None = None
        self._has_renewed = False
        self._fetching = False
        self._read_at = math.inf
        self._arrived: list[Delivery] = []
        self._keyed: list[str] = []
        self._failures: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._letters = DeadLetters(self._store_letter)
        self._late = LateAcknowledgements(patience=3 * self.lease)
        self._closing = asyncio.Event()
        self._postponed: set[asyncio.Task[None]] = set()

    # Receiving

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        self._fetching = True
        try:
            await self._prepare(limit)
            if not self._arrived:
                await self._read(limit)
            taken, self._arrived = self._arrived[:limit], self._arrived[limit:]
            return taken
        except asyncio.CancelledError:
            await self._stop()  # at once: an open stream would be given what the receiver is about to return
            raise
        finally:
            self._fetching = False

    async def _prepare(self, limit: int) -> None:
        """See to it that there are inlets, and that they may bring what there is room for."""
        is_stale = self._loop.time() - self._read_at > self.lease / 4  # less of a lease than the engine would think
        # The bounds that a stream was told are its own: one that was opened while others' deliveries were held was told
        # less than there is room for once these are settled.
        is_narrow = not self._pulls and limit >= 2 * self._budget
        async with self._changing:
            if self._inlets and (is_stale or is_narrow):
                await self._end()
            if not self._inlets:
                await self._give_back_keyed()
                self._inlets = self._open(limit)

    async def _read(self, limit: int) -> None:
        share = max(1, min(limit, 1000) // len(self._inlets))
        reads = [inlet.reading(share) for inlet in self._inlets]
        patience, self._patience = self._patience, None
        done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED, timeout=patience)
        if not done and not self._driver.api.is_connected:
            await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
        self._read_at = self._loop.time()
        for inlet in self._inlets:
            try:
                self._arrived += inlet.take()
                self._learn(inlet.properties)
            except BrokerError as error:
                self._driver.api.look_out()
                await self._restart()
                if error.code is ErrorCode.NOT_FOUND:
                    await self._recreate(error)
                if error.code is ErrorCode.UNAUTHENTICATED and not self._has_renewed:
                    self._has_renewed = self._driver.api.renew_credentials()
                    if self._has_renewed:
                        return
                if not error.retryable or self._read_at - inlet.began < _SETTLED_IN:
                    raise
                return
        self._has_renewed = False
        if self.capabilities.exactly_once:
            await self._confirm_receipt()
        elif self._late:
            await self._acknowledge_again()
        self._number(self._arrived)

    def _learn(self, found: Any) -> None:
        """Take the stream's word for what the account might not look up, or somebody has changed.

        :raises BrokerError: where the options ask for something else.
        """
        if found is None:
            return
        is_ordered, exactly_once = found.message_ordering_enabled, found.exactly_once_delivery_enabled
        promised = self.capabilities
        ordering = promised.ordering if is_ordered else "none"
        if (ordering, exactly_once) != (promised.ordering, promised.exactly_once):
            self._driver.admin.check(self._path, is_ordered=is_ordered, exactly_once=exactly_once)
            self.capabilities = attrs.evolve(promised, ordering=ordering, exactly_once=exactly_once)

    def _open(self, limit: int) -> list[Inlet]:
        options, api = self._driver.options, self._driver.api
        self._budget = limit
        self._patience = _REFUSED_IN
        if self._pulls:
            return [Pulls(partial(api.pull, self._path), self._pace, self.subscription) for _ in range(options.streams)]
        settings = {
            "stream_ack_deadline_seconds": options.ack_deadline,
            # What is more would lie in the streams unread, without anybody renewing its lease.
            "max_outstanding_messages": max(1, limit // options.streams),
            "max_outstanding_bytes": max(1, options.max_outstanding_bytes // options.streams),
            "client_id": self._client_id,
            "protocol_version": 1,  # the service answers pings
        }
        return [api.stream(self._path, **settings) for _ in range(options.streams)]

    async def _acknowledge_again(self) -> None:
        """Acknowledge what has been acknowledged too late and came again, instead of handing it out."""
        again = self._late.came_again(self._arrived, self._loop.time())
        if not again:
            return
        try:
            for start in range(0, len(again), MAX_ACK_IDS):
                tokens = [delivery.token for delivery in again[start : start + MAX_ACK_IDS]]
                await self._driver.api.acknowledge(self._path, tokens)
        except BrokerError:
            await self._restart()
            raise
        known = set(again)
        self._arrived = [delivery for delivery in self._arrived if delivery not in known]

    async def _confirm_receipt(self) -> None:
        """Start the leases anew, and drop what is not ours any more: with exactly-once delivery nothing else counts."""
        try:
            lost = await self.extend(self._arrived)
        except BrokerError:
            await self._restart()
            raise
        if not lost:
            return
        arrived, self._arrived = self._arrived, []
        behind: list[str] = []
        keys: set[str] = set()
        for delivery in arrived:
            if delivery in lost:
                keys.add(delivery.ordering_key or "")
            elif delivery.ordering_key in keys:
                behind.append(delivery.token)  # it must not come before its predecessor, which comes again
            else:
                self._arrived.append(delivery)
        await self._give_back(behind)

    def _number(self, deliveries: Iterable[Delivery]) -> None:
        """Count attempts where Pub/Sub does not: those that failed here, and this one."""
        if self.local_attempts is not None:
            for delivery in deliveries:
                known, _ = self._failures.get(delivery.message_id, (0, ""))
                delivery.delivery_attempt = max(known + 1, delivery.delivery_attempt or 1)

    async def _recreate(self, error: BrokerError) -> None:
        """Create the subscription anew where options allow (F1).

        :raises BrokerError: when they do not, or to have the engine read again.
        """
        try:
            await self._driver.admin.join(self._path, ephemeral=self._ephemeral, trusting=False)
        except BrokerError as why:
            raise (error if why.code is ErrorCode.PERMISSION_DENIED else why) from why
        raise BrokerError(
            f"subscription {self.subscription!r} was gone and is there again; what was in it is lost",
            ErrorCode.UNAVAILABLE,
            retryable=True,
        ) from error

    async def _restart(self) -> None:
        """End the inlets, if there are any, and give back all that they had."""
        async with self._changing:
            await self._end()
            await self._give_back_keyed()

    async def _stop(self) -> None:
        """End the inlets; of what they had, keyed messages stay here, to go back behind their predecessors."""
        async with self._changing:
            await self._end()

    async def _end(self) -> None:
        inlets, self._inlets = self._inlets, []
        unread, self._arrived = self._arrived, []
        for late in await asyncio.gather(*(inlet.finish() for inlet in inlets)):
            unread += late
        self._keyed += [delivery.token for delivery in unread if self._is_ordered(delivery)]
        await self._give_back([delivery.token for delivery in unread if not self._is_ordered(delivery)])

    def _is_ordered(self, delivery: Delivery) -> bool:
        """Return whether Pub/Sub keeps it behind others of its key; a key alone, without order, means nothing."""
        return bool(delivery.ordering_key) and self.capabilities.ordering != "none"

    async def _give_back_keyed(self) -> None:
        keyed, self._keyed = self._keyed, []
        await self._give_back(keyed)

    async def _give_back(self, ack_ids: list[str]) -> None:
        try:
            await self._driver.api.give_back(self._path, ack_ids)
        except BrokerError as error:
            _log.debug("%s: not given back, they come again when their leases run out: %s", self.subscription, error)

    # Settling

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        if not self._fetching and any(settlement.outcome is Outcome.RETURN for settlement in settlements):
            await self._stop()
        asked = self._loop.time()
        failed = [each.delivery for each in settlements if self._has_failed_too_often(each)]
        letters = {delivery: self._letters.move(delivery) for delivery in failed}
        results = [letters.get(each.delivery) for each in settlements]
        groups = self._grouped(settlements, letters)
        lost: list[BrokerError] = []
        for wait, indices in groups.items():
            try:
                errors = await self._tell([settlements[index].delivery.token for index in indices], wait)
            except BrokerError as error:
                errors = [error] * len(indices)
                lost.append(error)
            for index, each in zip(indices, errors, strict=True):
                results[index] = each
        ended = [each for each, why in zip(settlements, results, strict=True) if why is None]
        self._letters.forget(each.delivery.message_id for each in ended)
        if not self.capabilities.exactly_once:
            self._late.note((each.delivery for each in ended if each.outcome is Outcome.ACK), asked)
        if lost and len(lost) == len(groups) and None not in results:
            raise lost[0]
        return results

    def _grouped(
        self, settlements: Sequence[Settlement], letters: Mapping[Delivery, BrokerError | None]
    ) -> Mapping[float | None, list[int]]:
        """Return those that go into one request, by the delay of it; ``None`` acknowledges, also stored letters."""
        groups: defaultdict[float | None, list[int]] = defaultdict(list)
        for index, settlement in enumerate(settlements):
            if settlement.delivery not in letters:
                groups[self._wait(settlement)].append(index)
            elif letters[settlement.delivery] is None:
                groups[None].append(index)
        for indices in groups.values():
            # In order, since exactly-once delivery refuses an acknowledgement before that of a predecessor.
            indices.sort(key=lambda index: settlements[index].delivery.order)
        return groups

    def _wait(self, settlement: Settlement) -> float | None:
        """Seconds until the message shall come again, in whole seconds from one second on; ``None`` for never."""
        delivery, outcome, delay = settlement.delivery, settlement.outcome, settlement.delay
        if outcome is Outcome.ACK:
            if self._failures:
                self._failures.pop(delivery.message_id, None)
            return None
        if outcome is Outcome.RETURN:
            return 0.0
        failures = self._fail(delivery)
        if self._is_ordered(delivery):
            return 0.0  # all of a key in one request, whose order is that of redelivery
        if delay is None:
            delay = 0.0 if self._joined.has_backoff else redelivery_delay(failures)
        return delay if delay < 1 else float(math.ceil(delay))

    def _fail(self, delivery: Delivery) -> int:
        """Count a failure, once for each delivery: how often the message has failed, here or as Pub/Sub counted."""
        known, token = self._failures.pop(delivery.message_id, (0, ""))
        attempts = max(known + int(token != delivery.token), delivery.delivery_attempt or 1)
        self._failures[delivery.message_id] = attempts, delivery.token
        if len(self._failures) > _REMEMBERED_FAILURES:
            self._failures.popitem(last=False)
        return attempts

    async def _tell(self, ack_ids: list[str], wait: float | None) -> Sequence[BrokerError | None]:
        """What became of each delivery.

        :raises BrokerError: when that of none is known.
        """
        api = self._driver.api
        try:
            if wait is None:
                await api.acknowledge(self._path, ack_ids)
            elif 0 < wait < 1:  # Pub/Sub counts in seconds
                task = self._loop.create_task(self._postpone(ack_ids, wait))
                self._postponed.add(task)
                task.add_done_callback(self._postponed.discard)
            else:
                await api.set_deadline(self._path, ack_ids, int(wait))
        except BrokerError as error:
            return self._failed(ack_ids, error)
        return [None] * len(ack_ids)

    def _failed(self, ack_ids: Sequence[str], error: BrokerError) -> Sequence[BrokerError | None]:
        """What a failed request means for each of its deliveries.

        :raises BrokerError: *error*, where it concerns them all.
        """
        from events_gcp.errors import refused_ack_ids

        refused = refused_ack_ids(error)
        if not refused:
            raise error
        return [refused.get(ack_id) for ack_id in ack_ids]

    async def _postpone(self, ack_ids: list[str], wait: float) -> None:
        """Give back in less than a second, which the lease outlasts, or on closing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._closing.wait()
        await self._give_back(ack_ids)

    # Dead letters, where Pub/Sub would lose the order

    def _has_failed_too_often(self, settlement: Settlement) -> bool:
        if self.local_attempts is None or settlement.outcome is not Outcome.NACK:
            return False
        return (settlement.delivery.delivery_attempt or 1) >= self.local_attempts

    async def _store_letter(self, delivery: Delivery) -> None:
        assert self._joined.dead_letter is not None
        topic, _ = self._joined.dead_letter
        attempts = delivery.delivery_attempt or 1
        attributes = dead_letter_attributes(
            delivery.attributes,
            topic_name=self._driver.topic_name,
            subscription=self.subscription,
            message_id=delivery.message_id,
            attempts=attempts,
        )
        if len(attributes) > MAX_ATTRIBUTES:
            attributes = dict(delivery.attributes)  # no room to say where it came from
        letter = EventMessage(delivery.data, attributes, ordering_key=delivery.ordering_key)
        await self._driver.api.publish(topic, [letter])
        log_dead_letter(
            delivery.message_id,
            attempts=attempts,
            subscription=self.subscription,
            dead_letter_topic=topic.rpartition("/")[2],
        )

    # Leases

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        lost: list[Delivery] = []
        for start in range(0, len(deliveries), MAX_ACK_IDS):
            some = deliveries[start : start + MAX_ACK_IDS]
            ack_ids = [delivery.token for delivery in some]
            try:
                await self._driver.api.set_deadline(self._path, ack_ids, int(self.lease))
            except BrokerError as error:
                errors = self._failed(ack_ids, error)
                for why in errors:
                    if why is not None and why.retryable:
                        raise why from error
                lost += [each for each, why in zip(some, errors, strict=True) if why and why.code is ErrorCode.EXPIRED]
        return lost

    # Closing

    async def close(self) -> None:
        self._closing.set()
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await self._letters.close()
            await self._restart()
            await asyncio.gather(*self._postponed)
            if self._ephemeral:
                await self._driver.api.delete_subscription(self._path)
