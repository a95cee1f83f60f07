"""The source of one receiver: the object that the engine fetches from and settles with.

:class:`GcpSource` combines parts that each do one thing:

* :mod:`~events_gcp.subscription` describes the subscription that was joined,
* :mod:`~events_gcp.reading` opens streams or pulls and reads from them (``stream``, ``pulls``, ``pull_pace``),
* :mod:`~events_gcp.settling` turns settlements into requests,
* :mod:`~events_gcp.leases` makes the requests about leases,
* :mod:`~events_gcp.attempts` and :mod:`~events_gcp.late_acknowledgements` remember failures and late acknowledgements.

All of it runs on the engine's I/O loop, so no lock is needed.  The engine may call ``fetch``, ``settle`` and ``extend``
at the same time, but each of them only once at a time.  It calls ``close`` when they have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery, Letters, Outcome, Settlement, Source
from events_gcp.attempts import Attempts
from events_gcp.late_acknowledgements import LateAcknowledgements
from events_gcp.leases import Leases
from events_gcp.limits import MAX_ACK_IDS, MAX_ATTRIBUTES
from events_gcp.reading import MAX_AGE, Reader
from events_gcp.settling import Settling

if TYPE_CHECKING:
    from events_gcp.driver import GcpDriver
    from events_gcp.subscription import JoinedSubscription

__all__ = ["GcpSource"]

ResultT = TypeVar("ResultT")

_CLOSE_TIMEOUT = 5.0
"""Seconds that closing may take.  The engine's own bound is usually shorter."""


class GcpSource(Source):
    """One receiver of a subscription."""

    redelivers_locally = True
    """If nacked messages of a key went back one by one, Pub/Sub would deliver them in the order of the requests, and
    count an attempt for each.  So the engine keeps them and hands them out again.  They go back together when the
    receiver closes.  If the subscription keeps no order, Pub/Sub gets each nack, and moves dead letters itself."""

    def __init__(self, driver: GcpDriver, joined: JoinedSubscription) -> None:
        options, api = driver.options, driver.api
        self.subscription = joined.name
        self.capabilities = joined.capabilities
        self.pushes = options.receive_mode == "stream"
        self.lease: float = options.ack_deadline if self.pushes else joined.ack_deadline
        self.local_attempts = joined.local_attempts
        self._driver = driver
        self._api = api
        self._joined = joined
        self._leases = Leases(api, joined.path, self.lease)
        self._reader = Reader(api, joined, options, self._leases, self.lease)
        topic = joined.dead_letter_topic
        self._letters = Letters(
            self._store_letter,
            topic_name=driver.topic_name,
            subscription=joined.name,
            dead_letter_topic=topic and topic.rpartition("/")[2],
            max_attributes=MAX_ATTRIBUTES,
            last_attempt=joined.local_attempts,
        )
        self._attempts = Attempts()
        # A message whose lease has run out comes again within one lease.  Three are generous.
        self._late = LateAcknowledgements(patience=3 * self.lease, margin=MAX_AGE * self.lease)
        self._settling = Settling(joined, self._leases, self._letters, self._attempts, self._late)
        self._is_fetching = False
        # True from a renewal of the credentials to the next successful read: a second refusal in between is final.
        self._has_renewed = False

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        self._is_fetching = True
        try:
            await self._reader.open(limit)
            if not self._reader.arrived:
                await self._read(limit)
            return self._reader.take(limit)
        finally:
            self._is_fetching = False

    async def finish_fetching(self) -> None:
        # The receiver gives messages back and settles others.  An open stream would get messages for them.
        await self._reader.stop()

    async def _read(self, limit: int) -> None:
        try:
            for properties in await self._reader.read(limit):
                self._learn(properties)
        except BrokerError as error:
            await self._recover(error)
            return
        self._has_renewed = False
        # Deliveries stay in the reader until ``fetch`` returns.  So if this task is cancelled, the reader gives them
        # back.
        if self.capabilities.exactly_once:
            await self._confirm_receipt()
        elif self._late:
            await self._acknowledge_again()
        if self.local_attempts is not None:
            self._attempts.number(self._reader.arrived)

    def _learn(self, found: Any) -> None:
        """Correct the capabilities by the properties of the subscription that a stream reports.

        The two differ if the account was not allowed to look the subscription up, or if the subscription was deleted
        and created again.

        :raises BrokerError: if the properties contradict the options.
        """
        is_ordered, exactly_once = found.message_ordering_enabled, found.exactly_once_delivery_enabled
        promised = self.capabilities
        ordering = promised.ordering if is_ordered else "none"
        if (ordering, exactly_once) != (promised.ordering, promised.exactly_once):
            self._driver.admin.check(self._joined.path, is_ordered=is_ordered, exactly_once=exactly_once)
            changed = attrs.evolve(promised, ordering=ordering, exactly_once=exactly_once)
            self.capabilities = self._joined.capabilities = changed

    async def _recover(self, error: BrokerError) -> None:
        """Give back what was read.  Return if the engine may fetch again at once.

        It may if *error* is only the routine end of a stream, or if the credentials have just been renewed.

        :raises BrokerError: *error*, or the error of creating the subscription again.
        """
        self._api.look_out()  # notice when the connection is back
        is_routine = self._reader.is_routine
        await self._reader.restart()
        if error.code is ErrorCode.NOT_FOUND:
            await self._recreate(error)
        if error.code is ErrorCode.UNAUTHENTICATED and not self._has_renewed:
            self._has_renewed = self._api.renew_credentials()
            if self._has_renewed:
                return
        if not (error.retryable and is_routine):
            raise error

    async def _recreate(self, error: BrokerError) -> None:
        """Create the subscription again if the options allow that (F1).

        :raises BrokerError: always.  A retryable one makes the engine fetch again.
        """
        joined = self._joined
        try:
            await self._driver.admin.join(joined.path, ephemeral=joined.is_ephemeral, trusting=False)
        except BrokerError as why:
            if why.code is ErrorCode.PERMISSION_DENIED:
                raise error from error.__cause__
            raise
        raise BrokerError(
            f"subscription {joined.name!r} was deleted and has been created again; the messages in it are lost",
            ErrorCode.UNAVAILABLE,
            retryable=True,
        ) from error

    async def _confirm_receipt(self) -> None:
        """Renew the leases of the deliveries that have arrived, and drop those that Pub/Sub has ended.

        With exactly-once delivery, an acknowledgement succeeds only if Pub/Sub has confirmed a renewal before it.
        """
        lost = await self._or_restart(self._leases.renew(self._reader.arrived))
        if not lost:
            return
        arrived, self._reader.arrived = self._reader.arrived, []
        behind: list[str] = []
        keys: set[str] = set()
        for delivery in arrived:
            if delivery in lost:
                keys.add(delivery.ordering_key or "")
            elif delivery.ordering_key in keys:
                behind.append(delivery.token)  # an earlier message of its key comes again, and must come before it
            else:
                self._reader.arrived.append(delivery)
        await self._leases.give_back(behind)

    async def _acknowledge_again(self) -> None:
        """Acknowledge messages that were acknowledged too late and came again, and do not hand them out."""
        again = self._late.came_again(self._reader.arrived, asyncio.get_running_loop().time())
        for start in range(0, len(again), MAX_ACK_IDS):
            tokens = [delivery.token for delivery in again[start : start + MAX_ACK_IDS]]
            await self._or_restart(self._api.acknowledge(self._joined.path, tokens))
        if again:
            known = set(again)
            self._reader.arrived = [delivery for delivery in self._reader.arrived if delivery not in known]

    async def _or_restart(self, request: Awaitable[ResultT]) -> ResultT:
        """Return the result of *request*; if it fails, give back all deliveries that have arrived."""
        try:
            return await request
        except BrokerError:
            await self._reader.restart()
            raise

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        # An open stream would get again what is given back now.  While a fetch reads it, the receiver is not closing,
        # and the stream stays open.
        if not self._is_fetching and Outcome.RETURN in [settlement.outcome for settlement in settlements]:
            await self._reader.stop()
        results = await self._settling.settle(settlements)
        self._reader.ended(
            each.delivery
            for each, error in zip(settlements, results, strict=True)
            if error is None or error.code is ErrorCode.EXPIRED
        )
        return results

    async def _store_letter(self, letter: EventMessage) -> None:
        assert self._joined.dead_letter_topic is not None
        await self._api.publish(self._joined.dead_letter_topic, [letter])

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        lost = await self._leases.renew(deliveries)
        self._reader.ended(lost)
        return lost

    async def close(self) -> None:
        self._leases.hurry()
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await self._letters.close()
            await self._reader.restart()
            await self._leases.close()
            if self._joined.is_ephemeral:
                await self._driver.delete_subscription(self._joined.name)
