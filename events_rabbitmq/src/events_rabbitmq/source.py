"""The source of one receiver: what the engine fetches from and settles with.

:mod:`~events_rabbitmq.consuming` is one consumer on one channel.  The engine keeps delays, because RabbitMQ has none,
and its :class:`~events_core.engine.Letters` publishes dead letters.

**Order.**  A queue with a single active consumer gives its messages to one receiver, in the order of the queue.  A
message that goes back alone comes after all others (3.10, measured).  So with order, nothing of a key goes back alone.
The engine hands nacked messages out again itself, and what it returns stays out until the channel closes.  Then the
server takes back everything at once, in order.

**A lost connection.**  The server gives what was out to any receiver.  If a message comes to this receiver again, the
engine gives the delivery the new token, and an acknowledgement that was under way succeeds.  So it waits a while, and
only then is ``EXPIRED``.

**A process that was stopped.**  The server ends a connection from which it has heard nothing for two heartbeats.  They
are sent on the I/O loop, so the receiver is safe while that loop runs.  After the loop has stood still for a heartbeat,
the receiver asks the server before it hands out anything (F2).

All of it runs on the engine's I/O loop, so no lock is needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from events_core import Capabilities, ErrorCode
from events_core.engine import BrokerError, Delivery, Letters, Outcome, Settlement, Source, uptime
from events_rabbitmq.codec import Token
from events_rabbitmq.consuming import Consumer
from events_rabbitmq.limits import MAX_PREFETCH, behaviour

if TYPE_CHECKING:
    from events_rabbitmq.driver import RabbitMQDriver

__all__ = ["RabbitMQSource"]

_log = logging.getLogger("events_rabbitmq")

_ACK, _NACK, _RETURN, _REJECT = Outcome  # reading a member from its class takes ten times as long (CPython 3.11)

_REDELIVERY_TIME = 5.0
"""Seconds after a reconnect in which a message that was out before may come again."""


class RabbitMQSource(Source):
    """One receiver of a queue.  Call :meth:`start` before anything else."""

    pushes = True
    redelivers_locally = True
    keeps_delays = False

    def __init__(self, driver: RabbitMQDriver, subscription: str, wake: Callable[[], None], *, ephemeral: bool) -> None:
        options = driver.options
        self.subscription = subscription
        self.capabilities: Capabilities = driver.capabilities
        self.local_attempts = options.max_delivery_attempts
        self.queue = options.queue_of(driver.topic_name, subscription)
        self.longest_hold: float = 0.9 * options.consumer_timeout
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._is_ephemeral = ephemeral
        self._is_ordered = self.capabilities.ordering != "none"
        self._letters = Letters(
            driver.store_letter,
            topic_name=driver.topic_name,
            subscription=subscription,
            dead_letter_topic=options.dead_letter_topic,
            last_attempt=self.local_attempts,
        )
        self._wake = wake
        self._consumer: Consumer | None = None
        self._heartbeat = 0
        self._keeping: asyncio.Task[None] | None = None
        self._lost_tokens: dict[str, Token] = {}
        """The tokens of deliveries whose channel has ended before they were settled, by id."""
        self._starting = asyncio.Lock()
        """Held while a consumer starts.  Both :meth:`fetch` and :meth:`settle` may find that it has ended."""
        self._is_fetching = False
        self._owes_returns = False
        """True if, with order, returned deliveries are still out: only closing the channel gives them back."""

    async def start(self) -> None:
        """Begin to consume.

        :raises BrokerError: if that failed.
        """
        connection = await self._driver.links.receiving()
        asked = uptime()
        prefetch = min(self._driver.options.max_outstanding_messages, MAX_PREFETCH)
        self._consumer = await Consumer.open(connection, self.queue, prefetch, self._drop, self._lost_tokens)
        self._heartbeat = connection.heartbeat
        self._was_alive(asked)
        if self._heartbeat and self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_safe())
        counts = behaviour(connection.version).handback_counts
        self.capabilities = attrs.evolve(self.capabilities, handback_counts=counts)

    def _was_alive(self, at: float) -> None:
        """Take note that the I/O loop ran, or the server was asked and has answered, at the time *at* of ``uptime``."""
        before, self.safe_until = self.safe_until, at + self._heartbeat if self._heartbeat else None
        if before is not None and uptime() >= before:
            self._wake()

    async def _keep_safe(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat / 4)
            now, consumer = uptime(), self._consumer
            if consumer is None or not consumer.is_open:
                continue  # what had come is dropped, and start() follows
            if self.safe_until is not None and now >= self.safe_until:
                try:
                    await consumer.ask()
                except BrokerError:
                    continue
            self._was_alive(now)

    def _drop(self, ended: Consumer) -> None:
        """Tell the engine that all deliveries of a consumer are lost, and forget those that nobody holds (F2)."""
        for delivery in self.lost(lambda each: each.token.consumer is ended):
            ended.forget(delivery)

    # Receiving

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        if self._must_start:
            await self._start_again()
            return ()  # the engine learns that the server answers
        consumer = self._consumer
        assert consumer is not None
        self._is_fetching = True
        try:
            return await consumer.take(limit)
        finally:
            self._is_fetching = False

    async def finish_fetching(self) -> None:
        # The receiver gives messages back: they must not come here again.  With order they stay out, and the next
        # consumer must not begin before they are back.
        if self._consumer is not None and not self._is_ordered:
            self._consumer.stop()

    @property
    def _is_open(self) -> bool:
        return self._consumer is not None and self._consumer.is_open

    @property
    def _must_start(self) -> bool:
        return self._owes_returns or not self._is_open

    async def _start_again(self) -> None:
        """Consume on a new channel, unless the other caller has done so meanwhile.

        :raises BrokerError: if that failed.
        """
        limit_of_time = self._driver.options.connect_timeout
        try:
            async with asyncio.timeout(limit_of_time), self._starting:
                if self._must_start:
                    await self._replace()
        except TimeoutError:  # for example, a quorum queue has no leader
            raise BrokerError(
                f"queue {self.queue!r} gave no answer in {limit_of_time:g} s", ErrorCode.TIMEOUT, retryable=True
            ) from None

    async def _replace(self) -> None:
        """Consume on a new channel, and create the subscription again if it was deleted and the options allow it (F1).

        :raises BrokerError: if that failed.
        """
        consumer = self._consumer
        if consumer is not None:
            await consumer.close()
            if not consumer.connection.is_open:
                # A server that was killed may have lost a binding that it had confirmed up to 2 s before.  Its log has
                # the transaction then, but not the decision to commit it (3.10, measured).
                await self._driver.topology.bind_again(self.queue)
        self._owes_returns = False
        try:
            await self.start()
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
            await self._driver.topology.join(self.queue, ephemeral=self._is_ephemeral)
            await self.start()
            _log.warning("%r was deleted and has been created again; the messages in it are lost", self.subscription)

    # Settling

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        if not self._is_open and any(each.outcome is _ACK or each.outcome is _REJECT for each in settlements):
            # Not only fetch: there is no room to fetch while the application holds all that it may.
            await self._start_again()
        if not self._is_fetching:
            # If the receiver closes, the engine has begun finish_fetching before this.  That must come first, otherwise
            # the server pushes here again what goes back.
            await asyncio.sleep(0)
        consumer = self._consumer
        done: list[int] = []
        results = [self._settle(settlement, done) for settlement in settlements]
        if consumer is not None and consumer.is_open:
            if done:
                consumer.acknowledge(done)
            await consumer.confirm()
            if self._owes_returns and self._is_fetching:
                consumer.abandon("messages of an ordering key go back together")
        settled: list[str] = []
        for settlement, error in zip(settlements, results, strict=True):
            delivery = settlement.delivery
            if error is None or error.code is ErrorCode.ALREADY_SETTLED:
                settled.append(delivery.message_id)
            elif error.code is not ErrorCode.EXPIRED:
                continue
            delivery.token.consumer.forget(delivery)
        self._letters.forget(settled)
        return results

    def _settle(self, settlement: Settlement, done: list[int]) -> BrokerError | None:
        """Settle, and return the result; add the tag to *done* if the message is to be acknowledged."""
        delivery = settlement.delivery
        consumer = self._consumer
        token = delivery.token
        ends = settlement.outcome is _ACK or settlement.outcome is _REJECT
        if ends and consumer is not None and token.consumer is not consumer:
            again = consumer.find(delivery.message_id)
            if again is not None:  # it came again, and fetch has not returned it, perhaps because there is no room
                token = delivery.token = again.token
        if token.consumer is not consumer or not consumer.is_open:
            return self._lost(settlement)
        if token.settled is not None:
            return self._settled_before(settlement, token.settled)
        if settlement.outcome is not _ACK:
            return self._give_up(consumer, settlement, done)
        token.settled = _ACK
        done.append(token.tag)
        return None

    def _settled_before(self, settlement: Settlement, first: Outcome) -> BrokerError | None:
        """Return the result for a delivery whose settlement was written before, perhaps with another outcome.

        Its caller got no answer in time.  The result is right as soon as the server answers now (S2, S3).

        :param first: what was written.
        """
        outcome = _REJECT if self._letters.takes(settlement) else _ACK if settlement.outcome is _ACK else _NACK
        if outcome is first:
            return None
        if first is _NACK:
            text = "it was nacked before, and the message comes again; settle the new delivery"
            return BrokerError(text, ErrorCode.EXPIRED)
        done = "acknowledged" if first is _ACK else "rejected"
        text = f"message {settlement.delivery.message_id!r} was already {done}; the answer came too late"
        return BrokerError(text, ErrorCode.ALREADY_SETTLED)

    def _lost(self, settlement: Settlement) -> BrokerError:
        """Return the result for a delivery whose channel has ended.

        :raises BrokerError: while there is no channel.
        """
        if settlement.outcome is _ACK or settlement.outcome is _REJECT:
            error = BrokerError("the connection was lost", ErrorCode.UNAVAILABLE, retryable=True)
            consumer = self._consumer
            if consumer is None or not consumer.is_open:
                raise error  # so the engine treats it as an outage
            if self._loop.time() < consumer.since + _REDELIVERY_TIME:
                return error
        text = "the connection on which it came was lost, and the message comes again; settle the new delivery"
        return BrokerError(text, ErrorCode.EXPIRED)

    def _give_up(self, consumer: Consumer, settlement: Settlement, done: list[int]) -> BrokerError | None:
        delivery = settlement.delivery
        token = delivery.token
        if self._letters.takes(settlement):
            error = self._letters.move(settlement)
            if error is None:
                token.settled = _REJECT
                done.append(token.tag)
            return error
        if self._is_ordered and delivery.ordering_key:
            self._owes_returns = True
            return None
        if settlement.outcome is _RETURN:
            consumer.give_back(token.tag)
        else:
            consumer.reject(token.tag)
        token.settled = _NACK
        return None

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        await self._letters.close()
        if self._consumer is not None:
            await self._consumer.close()
        if self._is_ephemeral:
            await self._driver.topology.delete(self.queue)
