"""A subscription, as one receiver uses it.

A receiver *takes* messages: ``topic.lua`` leases them to it, under a token
that no other take has.  Only a receiver that knows the token can extend
the lease and settle the message.  So a receiver that was stopped for
longer than the lease does no harm when it comes back (R7).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain, count
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from events_core import ErrorCode
from events_core.engine import (
    BrokerError,
    Delivery,
    Outcome,
    Settlement,
    Source,
    redelivery_delay,
)
from events_redis.codec import decode, quoted

if TYPE_CHECKING:
    from events_redis.driver import RedisDriver

__all__ = ["RedisSource"]

_log = logging.getLogger("events_redis")

_MOST_BYTES = 4 * 2**20
"""Bytes of messages in one answer, unless one message is larger.

The server does nothing else while it prepares the answer.
"""
_LONGEST_WAIT = 1000
"""Milliseconds of one wait for messages.

After each wait an idle receiver shows the server that it lives, and shows
the engine that the server lives.
"""


class RedisSource(Source):
    """One receiver.

    :meth:`fetch` runs its requests in a task, and a cancellation of
    :meth:`fetch` does not reach that task.  There are two reasons.  A
    request that is cancelled may have taken messages, and their tokens
    would be lost.  And redis-py 8.1 on CPython 3.11 sometimes swallows a
    cancellation.  :meth:`close` waits for the task, and gives back what it
    took.
    """

    prefetch = 100

    def __init__(
        self, driver: RedisDriver, subscription: str, *, ephemeral: bool
    ) -> None:
        self.subscription = subscription
        self.capabilities = driver.capabilities
        self.lease: float = driver.options.lease
        self._driver = driver
        self._ephemeral = ephemeral
        self._name = quoted(subscription)
        self._tokens = map(f"{token_hex(8)}-{{}}".format, count())
        self._fetching: asyncio.Task[list[Delivery]] | None = None

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        self._fetching = asyncio.create_task(self._take_or_wait(limit))
        deliveries = await asyncio.shield(self._fetching)
        # From here on the engine has them.  After a cancellation, which
        # skips this line, close gives them back.
        self._fetching = None
        return deliveries

    async def _take_or_wait(self, limit: int) -> list[Delivery]:
        token = next(self._tokens)
        arguments = token, limit, self._lease_ms, _MOST_BYTES
        try:
            taken, *rest = await self._run("take", *arguments)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
            # The subscription was deleted: create it again (F1).
            await self._driver.join(self.subscription)
            return []
        if not taken:
            await self._wait(*rest)
        # An empty list tells the engine that the server answers.
        return await self._decoded(taken, token)

    async def _wait(self, position: bytes, wake: bytes, due: int) -> None:
        """Wait until there may be something to take.

        :param position: the id of the last message that was read.
        :param wake: the id of the last wake-up.
        :param due: milliseconds until a lease or a delay is over, or -1.
        """
        log = self._driver.log
        streams = {
            log: position.decode(),
            f"{log}:wake:{self._name}": wake.decode(),
        }
        longest = _LONGEST_WAIT if due < 0 else min(due, _LONGEST_WAIT)
        await self._driver.wait(streams, max(1, longest))

    async def _decoded(
        self, taken: Iterable[tuple[bytes, int, list[bytes]]], token: str
    ) -> list[Delivery]:
        deliveries = []
        for entry_id, attempt, fields in taken:
            name = entry_id.decode()
            try:
                deliveries.append(decode(name, attempt, fields, token))
            except (ValueError, TypeError, KeyError) as error:
                _log.warning(
                    "%s: entry %s is no message and is skipped: %r",
                    self._driver.log,
                    name,
                    error,
                )
                with suppress(BrokerError):  # it is tried again later
                    await self._run("settle", name, token, "ACK", 0)
        return deliveries

    async def extend(
        self, deliveries: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        held = chain.from_iterable(
            (d.message_id, d.token) for d in deliveries
        )
        results = await self._run("extend", self._lease_ms, *held)
        found = zip(deliveries, results, strict=True)
        return [delivery for delivery, is_held in found if not is_held]

    async def settle(
        self, settlements: Sequence[Settlement]
    ) -> Sequence[BrokerError | None]:
        results = await self._run(
            "settle", *chain.from_iterable(map(_arguments, settlements))
        )
        return [
            None if is_settled else _expired() for is_settled in results
        ]

    async def close(self) -> None:
        if self._fetching is not None:
            # If the server cannot be reached, the leases run out.
            with suppress(BrokerError):
                await self._give_back(self._fetching)
        if self._ephemeral:
            await self._driver.delete_subscription(self.subscription)

    async def _give_back(self, task: asyncio.Task[list[Delivery]]) -> None:
        if not task.done():
            await self._run("wake")  # it may be waiting for messages
        deliveries = await task
        if deliveries:
            await self.settle(
                [Settlement(d, Outcome.RETURN) for d in deliveries]
            )

    async def _run(self, command: str, *arguments: str | int) -> Any:
        return await self._driver.run(command, self._name, *arguments)

    @property
    def _lease_ms(self) -> int:
        return math.ceil(self.lease * 1000)


def _arguments(settlement: Settlement) -> Sequence[str | int]:
    """Return the id, the token, the outcome and the delay (ms)."""
    delivery, delay = settlement.delivery, settlement.delay
    if settlement.outcome is not Outcome.NACK:
        delay = 0
    elif delay is None:
        delay = redelivery_delay(delivery.delivery_attempt or 1)
    milliseconds = math.ceil(delay * 1000)
    outcome = settlement.outcome.name
    return [delivery.message_id, delivery.token, outcome, milliseconds]


def _expired() -> BrokerError:
    return BrokerError(
        "the lease is over, or the server has lost the message",
        ErrorCode.EXPIRED,
    )
