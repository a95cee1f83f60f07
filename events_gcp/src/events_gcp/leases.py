"""Requests about the leases of deliveries: end one by acknowledging, renew it, or give the message back.

A delivery is named by its ack id, which is the delivery's ``token``.  Each request answers for all of its ack ids at
once, except with exactly-once delivery: there, Pub/Sub names the ack ids that failed and why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery
from events_gcp.limits import MAX_ACK_IDS

if TYPE_CHECKING:
    from events_gcp.api import Api

__all__ = ["Leases"]

_log = logging.getLogger("events_gcp")


class Leases:
    """The leases of the deliveries of one receiver.

    :param path: the full name of the subscription.
    :param seconds: the length of a lease.
    """

    def __init__(self, api: Api, path: str, seconds: float) -> None:
        self._api = api
        self._path = path
        self._seconds = int(seconds)
        self._closing = asyncio.Event()
        # Give-backs that wait for less than a second.
        self._postponed: set[asyncio.Task[None]] = set()

    async def acknowledge(self, ack_ids: Sequence[str]) -> Sequence[BrokerError | None]:
        """Acknowledge deliveries, at most ``MAX_ACK_IDS``, and return the result of each.

        :raises BrokerError: if no result is known.
        """
        try:
            await self._api.acknowledge(self._path, ack_ids)
        except BrokerError as error:
            return _results(ack_ids, error)
        return [None] * len(ack_ids)

    async def redeliver(self, ack_ids: Sequence[str], delay: float) -> Sequence[BrokerError | None]:
        """Let deliveries, at most ``MAX_ACK_IDS``, come again after *delay* seconds, and return the result of each.

        :param delay: whole seconds from one second on, because Pub/Sub counts in seconds.  A shorter delay ends early
            if the receiver closes.
        :raises BrokerError: if no result is known.
        """
        if 0 < delay < 1:
            task = asyncio.get_running_loop().create_task(self._postpone(ack_ids, delay))
            self._postponed.add(task)
            task.add_done_callback(self._postponed.discard)
            return [None] * len(ack_ids)
        try:
            await self._api.set_deadline(self._path, ack_ids, int(delay))
        except BrokerError as error:
            return _results(ack_ids, error)
        return [None] * len(ack_ids)

    async def _postpone(self, ack_ids: Sequence[str], delay: float) -> None:
        # The shortest lease is 10 s, so it lasts longer than the delay.
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._closing.wait()
        await self.give_back(ack_ids)

    async def renew(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        """Start the leases of *deliveries* again, and return those that Pub/Sub has taken back.

        :raises BrokerError: if a request failed, or failed for one delivery and may succeed later.
        """
        lost: list[Delivery] = []
        for start in range(0, len(deliveries), MAX_ACK_IDS):
            some = deliveries[start : start + MAX_ACK_IDS]
            ack_ids = [delivery.token for delivery in some]
            try:
                await self._api.set_deadline(self._path, ack_ids, self._seconds)
            except BrokerError as error:
                results = _results(ack_ids, error)
                for result in results:
                    if result is not None and result.retryable:
                        raise result from error
                lost += [each for each, why in zip(some, results, strict=True) if why and why.code is ErrorCode.EXPIRED]
        return lost

    async def give_back(self, ack_ids: Sequence[str]) -> None:
        """Let deliveries come again at once, in this order.  If that fails, they come when their leases run out."""
        try:
            for start in range(0, len(ack_ids), MAX_ACK_IDS):
                await self._api.set_deadline(self._path, ack_ids[start : start + MAX_ACK_IDS], 0)
        except BrokerError as error:
            _log.debug("%s: not given back; they come again when their leases run out: %s", self._path, error)

    def hurry(self) -> None:
        """End the delays of less than a second, because the receiver closes."""
        self._closing.set()

    async def close(self) -> None:
        """Wait until every postponed delivery is given back."""
        await asyncio.gather(*self._postponed)


def _results(ack_ids: Sequence[str], error: BrokerError) -> Sequence[BrokerError | None]:
    """Return what the failure of a request means for each of its deliveries.

    :raises BrokerError: *error*, if it concerns all of them.
    """
    # Here, because it imports Google's packages, which importing this package must not do.
    from events_gcp.errors import refused_ack_ids

    refused = refused_ack_ids(error)
    if not refused:
        raise error
    return [refused.get(ack_id) for ack_id in ack_ids]
