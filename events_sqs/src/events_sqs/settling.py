"""From settlements and extensions to requests, and from answers to the result of each.

============================  ===================================================================
settlement                    request
============================  ===================================================================
ACK                           delete
NACK                          visibility timeout: the delay; 12 h from the receipt at most
NACK of the last attempt      publish the letter, then delete
REJECT                        publish the letter, then delete
RETURN                        visibility timeout: 0
============================  ===================================================================

A request carries 10 of them.  The requests of one call are sent at the same time, except that messages go back one
request after the other, in order.

**Receipt handles that are too old.**  When its visibility timeout is over, a delivery is ``EXPIRED``.  The clock
decides that here, because a standard queue would answer a delete with success and perhaps delete nothing.  The clock
also runs while the machine is suspended.

**A delete whose answer was lost** is repeated.  The second one may be refused because the first one was not.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Sequence

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery, Letters, Outcome, Settlement, redelivery_delay, uptime
from events_sqs.calls import Calls
from events_sqs.codec import Receipt
from events_sqs.limits import LONGEST_LEASE, MAX_BATCH

__all__ = ["Settling"]

_log = logging.getLogger("events_sqs")

# As globals, because reading a member from its class takes ten times as long (CPython 3.11).
_ACK, _, _RETURN, _ = Outcome

_AT_ONCE = 10
"""Requests of one call that are out at the same time."""

_LATENESS = 1.0
"""Seconds for which the answer with a message may have been on its way.  Its lease ends so much earlier."""

_MARGIN = 2
"""Seconds by which the 12 h of a message may have begun before its receipt here."""


class Settling:
    """The settlements and leases of one receiver.

    :param lease: seconds.
    """

    def __init__(self, calls: Calls, letters: Letters, lease: int) -> None:
        self._calls = calls
        self._letters = letters
        self._lease = lease
        # SQS began to count when it sent the answer.
        self._caution = min(_LATENESS, lease / 10)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        """Tell SQS the outcomes, and return the result of each settlement.

        :raises BrokerError: if every request failed as a whole.
        """
        results: dict[Settlement, BrokerError | None] = {}
        deleted: list[Settlement] = []
        hidden: list[tuple[Settlement, int]] = []
        now = uptime()
        over = now + self._caution
        for settlement in settlements:
            if settlement.delivery.token.until <= over:
                results[settlement] = _expired(settlement.delivery)
            elif settlement.outcome is _ACK:
                deleted.append(settlement)
            elif not self._letters.takes(settlement):
                hidden.append((settlement, self._delay(settlement, now)))
            elif (error := self._letters.move(settlement)) is not None:
                results[settlement] = error
            else:
                deleted.append(settlement)
        lost = await self._send(deleted, hidden, results)
        if lost is not None:
            raise lost  # so the engine treats it as an outage, and pauses before it asks again
        self._letters.forget(each.delivery.message_id for each in settlements if results[each] is None)
        return [results[each] for each in settlements]

    async def _send(
        self,
        deleted: Sequence[Settlement],
        hidden: Sequence[tuple[Settlement, int]],
        results: dict[Settlement, BrokerError | None],
    ) -> BrokerError | None:
        """Send the requests, and add their *results*; return the error if there is no other result."""
        places = asyncio.Semaphore(_AT_ONCE)
        failures: list[BrokerError] = []

        async def delete(some: Sequence[Settlement]) -> None:
            async with places:
                try:
                    errors = await self._delete([each.delivery for each in some])
                except BrokerError as error:
                    failures.append(error)
                    errors = [error] * len(some)
            results.update(zip(some, errors, strict=True))

        async def hide() -> None:
            # In the order of their keys.
            ordered = sorted(hidden, key=lambda each: each[0].delivery.order)
            for start in range(0, len(ordered), MAX_BATCH):
                some = ordered[start : start + MAX_BATCH]
                try:
                    errors = await self._calls.hide([(each.delivery.token, seconds) for each, seconds in some])
                except BrokerError as error:
                    failures.append(error)
                    errors = [error] * len(some)
                results.update(zip([each for each, _ in some], errors, strict=True))

        parts = [delete(deleted[start : start + MAX_BATCH]) for start in range(0, len(deleted), MAX_BATCH)]
        if hidden:
            parts.append(hide())
        if len(parts) == 1:
            await parts[0]  # a task costs more than the rest of this method
        else:
            await asyncio.gather(*parts)
        return failures[0] if failures and None not in results.values() else None

    async def _delete(self, deliveries: Sequence[Delivery]) -> Sequence[BrokerError | None]:
        receipts: list[Receipt] = [delivery.token for delivery in deliveries]
        repeated = [receipt.is_deleting for receipt in receipts]
        for receipt in receipts:
            receipt.is_deleting = True
        errors = await self._calls.delete(receipts)
        return [
            None if error is not None and was_asked and error.code is ErrorCode.EXPIRED else error
            for error, was_asked in zip(errors, repeated, strict=True)
        ]

    def _delay(self, settlement: Settlement, now: float) -> int:
        """Return the seconds until the message may come again: whole ones, as SQS counts."""
        if settlement.outcome is _RETURN:
            return 0
        delivery, delay = settlement.delivery, settlement.delay
        if delay is None:
            delay = redelivery_delay(delivery.delivery_attempt or 1)
        return min(math.ceil(delay), _longest(delivery, now))

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        """Let the leases of *deliveries* begin again, and return the deliveries that SQS has taken back.

        :raises BrokerError: if a request failed, or failed for one delivery and may succeed later.
        """
        now = uptime()
        # An old handle is good for nothing, as above.  It may be old because the process was stopped.
        lost = [each for each in deliveries if each.token.until <= now]
        alive = [each for each in deliveries if each.token.until > now]
        parts = [alive[start : start + MAX_BATCH] for start in range(0, len(alive), MAX_BATCH)]
        places = asyncio.Semaphore(_AT_ONCE)

        async def extend(some: Sequence[Delivery]) -> Sequence[Delivery]:
            # Read once: a message that comes again meanwhile has another receipt.
            receipts: list[tuple[Receipt, int]] = [(each.token, min(self._lease, _longest(each, now))) for each in some]
            async with places:
                errors = await self._calls.hide(receipts)
            for (receipt, seconds), error in zip(receipts, errors, strict=True):
                if error is None:
                    receipt.until = now + seconds
                elif error.code is not ErrorCode.EXPIRED:
                    raise error
            return [each for each, error in zip(some, errors, strict=True) if error is not None]

        for some in await asyncio.gather(*map(extend, parts)):
            lost += some
        return lost

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let *deliveries* come again at once, in order.  If that fails, they come when their leases run out."""
        try:
            for start in range(0, len(deliveries), MAX_BATCH):
                await self._calls.hide([(each.token, 0) for each in deliveries[start : start + MAX_BATCH]])
        except BrokerError as error:
            _log.debug("not given back; they come again when their leases run out: %s", error)


def _longest(delivery: Delivery, now: float) -> int:
    """Return the longest visibility timeout that SQS still takes for *delivery*."""
    receipt: Receipt = delivery.token
    return max(0, int(LONGEST_LEASE - _MARGIN - (now - receipt.received)))


def _expired(delivery: Delivery) -> BrokerError:
    return BrokerError(
        f"the visibility timeout of message {delivery.message_id!r} was over before it was settled, so the message "
        "comes again; settle the new delivery",
        ErrorCode.EXPIRED,
    )
