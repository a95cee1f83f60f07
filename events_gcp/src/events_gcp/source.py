"""The receiving side of one receiver: a StreamingPull, and requests to settle."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from events_core import Capabilities, ErrorCode
from events_core.engine import BrokerError, Delivery, Outcome, Settlement, Source, redelivery_delay

if TYPE_CHECKING:
    from events_gcp.connection import Stream
    from events_gcp.driver import GcpDriver

__all__ = ["GcpSource"]

_log = logging.getLogger("events_gcp")

_SETTLED_IN = 10.0
"""Seconds after which the end of a stream is routine, since the service ends each now and then, and not an outage."""

_CLOSE_TIMEOUT = 5.0

_REMEMBERED_NACKS = 10_000


class GcpSource(Source):
    """One receiver of a subscription."""

    redelivers_locally = True  # Pub/Sub would deliver a nacked key again, but in the order of the requests

    def __init__(self, driver: GcpDriver, name: str, capabilities: Capabilities, *, ephemeral: bool) -> None:
        self.subscription = name
        self.capabilities = capabilities
        self.lease: float = driver.options.ack_deadline
        self._driver = driver
        self._path = driver.subscription_path(name)
        self._ephemeral = ephemeral
        self._stream: Stream | None = None
        self._fetching = False
        self._read_at = math.inf
        self._arrived: list[Delivery] = []
        self._keyed: list[str] = []
        self._nacks: OrderedDict[str, int] = OrderedDict()
        self._closing = asyncio.Event()
        self._postponed: set[asyncio.Task[None]] = set()

    # Receiving

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        self._fetching = True
        try:
            if time.monotonic() - self._read_at > self.lease / 4:
                await self._restart()  # what has waited all this while has less of a lease than the engine would think
            if not self._arrived:
                self._arrived = await self._read()
            taken, self._arrived = self._arrived[:limit], self._arrived[limit:]
            return taken
        except asyncio.CancelledError:
            await self._stop()  # at once: an open stream would be given what the receiver is about to return
            raise
        finally:
            self._fetching = False

    async def _read(self) -> list[Delivery]:
        while True:
            stream = self._stream = self._stream or self._open()
            try:
                return await stream.read()
            except BrokerError as error:
                await self._restart()
                if error.code is ErrorCode.NOT_FOUND:
                    await self._recreate(error)
                if not error.retryable or stream.age < _SETTLED_IN:
                    raise
            finally:
                self._read_at = time.monotonic()

    def _open(self) -> Stream:
        options = self._driver.options
        return self._driver.connection.pull(
            self._path,
            lease=options.ack_deadline,
            # The engine stops reading when its buffer is three quarters full: the service then has nothing more to
            # send that would lie in the stream unread, without anybody renewing its lease.
            max_messages=max(1, options.max_outstanding_messages * 3 // 4),
            max_bytes=options.max_outstanding_bytes,
        )

    async def _recreate(self, error: BrokerError) -> None:
        """Create the subscription anew where options allow (F1).

        :raises BrokerError: when they do not, or to have the engine read again.
        """
        await self._driver.join(self.subscription, ephemeral=self._ephemeral)
        raise BrokerError(
            f"subscription {self.subscription!r} was gone and is there again; what was in it is lost",
            ErrorCode.UNAVAILABLE,
            retryable=True,
        ) from error

    async def _restart(self) -> None:
        """End the stream, if there is one, and give back all that it had."""
        await self._stop()
        keyed, self._keyed = self._keyed, []
        await self._give_back(keyed)

    async def _stop(self) -> None:
        """End the stream; of what it had, keyed messages stay here, to go back behind their predecessors."""
        stream, self._stream = self._stream, None
        unread, self._arrived = self._arrived, []
        if stream is not None:
            unread = [*unread, *await stream.finish()]
        self._keyed += [delivery.token for delivery in unread if delivery.ordering_key]
        await self._give_back([delivery.token for delivery in unread if not delivery.ordering_key])

    async def _give_back(self, ack_ids: list[str]) -> None:
        if not ack_ids:
            return
        try:
            await self._driver.connection.set_deadline(self._path, ack_ids, 0)
        except BrokerError as error:
            _log.debug("%s: not given back, they come again when their leases run out: %s", self.subscription, error)

    # Settling

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        if not self._fetching and any(settlement.outcome is Outcome.RETURN for settlement in settlements):
            await self._stop()
        waits: defaultdict[float | None, list[int]] = defaultdict(list)
        for index, settlement in enumerate(settlements):
            waits[self._wait(settlement)].append(index)
        results: list[BrokerError | None] = [None] * len(settlements)
        for wait, indices in waits.items():
            error = await self._tell([settlements[index].delivery.token for index in indices], wait)
            for index in indices:
                results[index] = error
        return results

    def _wait(self, settlement: Settlement) -> float | None:
        """Seconds until the message shall come again, in whole seconds from one second on; ``None`` for never."""
        delivery, outcome, delay = settlement
        if outcome is Outcome.ACK:
            self._nacks.pop(delivery.message_id, None)
            return None
        if outcome is Outcome.RETURN or delivery.ordering_key:
            return 0.0  # all of a key in one request, whose order is that of redelivery
        if delay is None:
            delay = redelivery_delay(self._attempts(delivery))
        return delay if delay < 1 else float(math.ceil(delay))

    def _attempts(self, delivery: Delivery) -> int:
        """How often the message has failed: as Pub/Sub counted, else in this receiver."""
        if delivery.delivery_attempt is not None:
            return delivery.delivery_attempt
        attempts = self._nacks.pop(delivery.message_id, 0) + 1
        self._nacks[delivery.message_id] = attempts
        if len(self._nacks) > _REMEMBERED_NACKS:
            self._nacks.popitem(last=False)
        return attempts

    async def _tell(self, ack_ids: list[str], wait: float | None) -> BrokerError | None:
        connection = self._driver.connection
        try:
            if wait is None:
                await connection.acknowledge(self._path, ack_ids)
            elif 0 < wait < 1:  # Pub/Sub counts in seconds
                task = asyncio.ensure_future(self._postpone(ack_ids, wait))
                self._postponed.add(task)
                task.add_done_callback(self._postponed.discard)
            else:
                await connection.set_deadline(self._path, ack_ids, int(wait))
        except BrokerError as error:
            return error
        return None

    async def _postpone(self, ack_ids: list[str], wait: float) -> None:
        """Give back in less than a second, which the lease outlasts, or on closing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._closing.wait()
        await self._give_back(ack_ids)

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        ack_ids = [delivery.token for delivery in deliveries]
        await self._driver.connection.set_deadline(self._path, ack_ids, self._driver.options.ack_deadline)
        return ()

    # Closing

    async def close(self) -> None:
        self._closing.set()
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await self._restart()
            await asyncio.gather(*self._postponed)
            if self._ephemeral:
                await self._driver.connection.delete_subscription(self._path)
