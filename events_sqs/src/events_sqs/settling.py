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

A request carries 10 of them.  The requests of one call are sent at the same time, except that messages of a FIFO queue
go back one request after the other, in order.

**Receipt handles that are too old.**  When its visibility timeout is over, a delivery is ``EXPIRED``.  The clock
decides that here, because a standard queue would answer a delete with success and perhaps delete nothing.  The clock
also runs while the machine is suspended.

**A delete whose answer was lost** is repeated.  The second one may be refused because the first one was not.  An
extension may be refused for the same reason, so it does not tell that the delivery is lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import TypeVar

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery, Letters, Outcome, Settlement, redelivery_delay, uptime
from events_sqs.calls import Calls
from events_sqs.codec import Receipt
from events_sqs.limits import LONGEST_LEASE, MAX_BATCH

__all__ = ["Settling"]

_log = logging.getLogger("events_sqs")

# As globals, because reading a member from its class takes ten times as long (CPython 3.11).
_ACK, _, _RETURN, _ = Outcome

T = TypeVar("T")
_Request = Callable[[Sequence[Settlement]], Awaitable[Sequence[BrokerError | None]]]

_AT_ONCE = 10
"""Requests of one call that are out at the same time."""

_LATENESS = 1.0
"""Seconds for which the answer with a message may have been on its way.  Its lease ends so much earlier."""

_MARGIN = 2
"""Seconds by which the 12 h of a message may have begun before its receipt here."""


class Settling:
    """The settlements and leases of one receiver.

    :param lease: seconds.
    :param is_fifo: whether messages must go back in order.
    """

    def __init__(self, calls: Calls, letters: Letters, lease: int, *, is_fifo: bool) -> None:
        self._calls = calls
        self._letters = letters
        self._lease = lease
        self._is_fifo = is_fifo
        # SQS began to count when it sent the answer.
        self._caution = min(_LATENESS, lease / 10)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        """Tell SQS the outcomes, and return the result of each settlement.

        :raises BrokerError: if a request failed, and nothing has another result than one that may be repeated.
        """
        results: dict[Settlement, BrokerError | None] = {}
        deleted: list[Settlement] = []
        hidden: list[Settlement] = []
        over = uptime() + self._caution
        for settlement in settlements:
            if settlement.delivery.token.until <= over:
                results[settlement] = _expired(settlement.delivery)
            elif settlement.outcome is _ACK:
                deleted.append(settlement)
            elif not self._letters.takes(settlement):
                hidden.append(settlement)
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
        hidden: Sequence[Settlement],
        results: dict[Settlement, BrokerError | None],
    ) -> BrokerError | None:
        """Send the requests, and add their *results*; return an error of a request if all may be repeated."""
        places = asyncio.Semaphore(_AT_ONCE)
        failures: list[BrokerError] = []

        async def send(request: _Request, some: Sequence[Settlement]) -> None:
            async with places:
                try:
                    errors = await request(some)
                except BrokerError as error:
                    failures.append(error)
                    errors = [error] * len(some)
            results.update(zip(some, errors, strict=True))

        async def hide_in_order() -> None:
            for some in _parts(sorted(hidden, key=lambda each: each.delivery.order)):
                await send(self._hide, some)

        parts = [send(self._delete, some) for some in _parts(deleted)]
        if not self._is_fifo:
            parts += [send(self._hide, some) for some in _parts(hidden)]
        elif hidden:
            parts.append(hide_in_order())
        if len(parts) == 1:
            await parts[0]  # a task costs more than the rest of this method
        else:
            await asyncio.gather(*parts)
        may_repeat = all(error is not None and error.retryable for error in results.values())
        return failures[0] if failures and may_repeat else None

    async def _delete(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        receipts: list[Receipt] = [each.delivery.token for each in settlements]
        repeated = [receipt.is_deleting for receipt in receipts]
        for receipt in receipts:
            receipt.is_deleting = True
        errors = await self._calls.delete(receipts)
        return [
            None if error is not None and was_asked and error.code is ErrorCode.EXPIRED else error
            for error, was_asked in zip(errors, repeated, strict=True)
        ]

    async def _hide(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        now = uptime()
        return await self._calls.hide([(each.delivery.token, self._delay(each, now)) for each in settlements])

    def _delay(self, settlement: Settlement, now: float) -> int:
        """Return the seconds until the message may come again: whole ones, as SQS counts."""
        if settlement.outcome is _RETURN:
            return 0
        delivery, delay = settlement.delivery, settlement.delay
        if delay is None:
            delay = redelivery_delay(delivery.delivery_attempt or 1)
        return min(math.ceil(delay), _longest(delivery, now))

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        """Let the leases of *deliveries* begin again, and return the deliveries that are lost.

        SQS has taken those back, or refuses for good to extend them.  One that is being deleted is none of those: SQS
        refuses it also if it is deleted.  The next delete tells.

        When this returns or raises, no request is out: a late one would overtake what comes next.

        :raises BrokerError: if a request failed, or failed for one delivery and may succeed later.
        """
        now = uptime()
        # An old handle is good for nothing, as above.  It may be old because the process was stopped.
        lost = [each for each in deliveries if each.token.until <= now]
        alive = [each for each in deliveries if each.token.until > now]
        # The engine cuts this if it takes long, and then asks again.  So those that had no turn come first.
        alive.sort(key=lambda each: each.token.until)
        places = asyncio.Semaphore(_AT_ONCE)

        async def extend(some: Sequence[Delivery]) -> BrokerError | None:
            # Read once: a message that comes again meanwhile has another receipt.
            receipts: list[tuple[Receipt, int]] = [(each.token, min(self._lease, _longest(each, now))) for each in some]
            async with places:
                errors = await self._calls.hide(receipts)
            failure = None
            for each, (receipt, seconds), error in zip(some, receipts, errors, strict=True):
                if error is None:
                    receipt.until = now + seconds
                elif error.retryable:
                    failure = error
                else:
                    lost.append(each)
            return failure

        for result in await asyncio.gather(*map(extend, _parts(alive)), return_exceptions=True):
            if result is not None:
                raise result
        return [each for each in lost if not each.token.is_deleting]

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let *deliveries* come again at once; on FIFO in order.

        What cannot be given back comes again when its lease runs out.
        """
        places = asyncio.Semaphore(1 if self._is_fifo else _AT_ONCE)

        async def give_back(some: Sequence[Delivery]) -> None:
            async with places:
                await self._calls.hide([(each.token, 0) for each in some])

        for result in await asyncio.gather(*map(give_back, _parts(deliveries)), return_exceptions=True):
            if isinstance(result, BrokerError):
                _log.debug("not given back; they come again when their leases run out: %s", result)
            elif result is not None:
                raise result


def _parts(some: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the part of *some* for each request."""
    return (some[start : start + MAX_BATCH] for start in range(0, len(some), MAX_BATCH))


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
