"""A subscription, as one receiver uses it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery, Outcome, Settlement, Source, redelivery_delay
from events_redis.codec import decode, quoted

if TYPE_CHECKING:
    from events_redis.driver import RedisDriver

__all__ = ["RedisSource"]

_log = logging.getLogger("events_redis")

_MOST_BYTES = 4 * 2**20
"""Bytes of messages in one answer, except that one message may be larger: the server does nothing else meanwhile."""
_LONGEST_WAIT = 1000
"""Milliseconds of one wait for messages, and so between two signs of life of an idle receiver."""


class RedisSource(Source):
    """One receiver.

    :meth:`fetch` runs its requests in a task that it does not cancel.  A cancelled request may have taken messages
    already, and nobody would know.  Besides, redis-py 8.1 swallows cancellations now and then on CPython 3.11.
    :meth:`close` waits for the task, and gives back what it has taken.
    """

    prefetch = 100

    def __init__(self, driver: RedisDriver, subscription: str, *, ephemeral: bool) -> None:
        self.subscription = subscription
        self.capabilities = driver.capabilities
        self.lease: float = driver.options.lease
        self._driver = driver
        self._ephemeral = ephemeral
        self._quoted = quoted(subscription)
        # Each take has a token of its own, so that a delivery can be told from an older one of the same message.
        self._tokens = map(f"{token_hex(8)}-{{}}".format, itertools.count())
        self._fetching: asyncio.Task[list[Delivery]] | None = None

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        self._fetching = asyncio.create_task(self._take_or_wait(limit))
        deliveries = await asyncio.shield(self._fetching)
        self._fetching = None  # the engine has them now; after a cancellation, close gives them back
        return deliveries

    async def _take_or_wait(self, limit: int) -> list[Delivery]:
        token, lease = next(self._tokens), math.ceil(self.lease * 1000)
        asked = f"receive from {self.subscription!r}"
        try:
            reply = await self._driver.run(asked, "take", self._quoted, token, limit, lease, _MOST_BYTES)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
            await self._driver.join(self.subscription)  # create it again, if that is allowed (F1)
            return []
        deliveries = await self._decoded(reply[0], token)
        if not reply[0]:
            _, position, wake, due = reply
            streams = {self._driver.log: position.decode(), f"{self._driver.log}:wake:{self._quoted}": wake.decode()}
            # 0 would wait without end.
            await self._driver.wait(streams, _LONGEST_WAIT if due < 0 else max(1, min(due, _LONGEST_WAIT)))
        return deliveries  # an empty list tells the engine that the broker answers

    async def _decoded(self, entries: Sequence[tuple[bytes, int, list[bytes]]], token: str) -> list[Delivery]:
        deliveries = []
        for entry_id, attempt, fields in entries:
            try:
                delivery = decode(entry_id.decode(), attempt, fields)
            except (ValueError, TypeError, KeyError) as error:
                _log.warning("%s: entry %s is no message and is skipped: %r", self._driver.log, entry_id, error)
                await self._settle([(entry_id, token, "ACK", 0)])
            else:
                delivery.token = token
                deliveries.append(delivery)
        return deliveries

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        held = [part for delivery in deliveries for part in (delivery.message_id, delivery.token)]
        lease = math.ceil(self.lease * 1000)
        results = await self._driver.run(
            f"extend leases of {self.subscription!r}", "extend", self._quoted, lease, *held
        )
        return [delivery for delivery, is_held in zip(deliveries, results, strict=True) if not is_held]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        results = await self._settle(
            [(each.delivery.message_id, each.delivery.token, each.outcome.name, _delay(each)) for each in settlements]
        )
        return [None if is_settled else _expired() for is_settled in results]

    async def _settle(self, settlements: Sequence[tuple[str | bytes, str, str, int]]) -> Sequence[int]:
        parts = [part for settlement in settlements for part in settlement]
        results: Sequence[int] = await self._driver.run(
            f"settle for {self.subscription!r}", "settle", self._quoted, *parts
        )
        return results

    async def close(self) -> None:
        if self._fetching is not None:
            with suppress(BrokerError):  # if the server cannot be reached, the leases run out
                if not self._fetching.done():
                    await self._driver.run(f"end the wait for {self.subscription!r}", "wake", self._quoted)
                await self.settle([Settlement(delivery, Outcome.RETURN) for delivery in await self._fetching])
        if self._ephemeral:
            await self._driver.delete_subscription(self.subscription)


def _delay(settlement: Settlement) -> int:
    """Return the milliseconds after which the message may come again."""
    if settlement.outcome is not Outcome.NACK:
        return 0
    delay = settlement.delay
    if delay is None:
        delay = redelivery_delay(settlement.delivery.delivery_attempt or 1)
    return math.ceil(delay * 1000)


def _expired() -> BrokerError:
    return BrokerError("the lease is over, or the server has lost the message", ErrorCode.EXPIRED)
