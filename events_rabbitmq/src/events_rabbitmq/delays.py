"""Messages that were nacked with a delay.  RabbitMQ has no delays, so the receiver keeps them (R11).

A delivery stays out on its channel until its delay is over, and is rejected then.  If the channel ends before, the
message comes again at once.  If it comes to this receiver, the receiver keeps it for the rest of the delay.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from itertools import count

from events_core.engine import Delivery

__all__ = ["Delays"]

_MAX_REMEMBERED = 10_000
"""Messages.  The bound keeps memory small after a long outage."""


class Delays:
    """The delayed messages of one receiver.

    :param longest: seconds after which a delivery must go back, because the server would take it.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._loop = asyncio.get_running_loop()
        self._number = count()
        self._kept: list[tuple[float, int, bool, Delivery]] = []
        """A heap: when, a number that makes entries differ, whether the delivery has failed, and the delivery."""
        self._until: OrderedDict[str, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, delivery: Delivery, delay: float) -> None:
        """Keep a delivery that was nacked, for *delay* seconds."""
        until = self._loop.time() + delay
        self._until[delivery.message_id] = until
        self._until.move_to_end(delivery.message_id)
        if len(self._until) > _MAX_REMEMBERED:
            self._until.popitem(last=False)
        self._push(delivery, until, failed=True)

    def keep_again(self, delivery: Delivery) -> bool:
        """Keep a delivery that has just arrived if its delay is not over; return whether it is kept."""
        until = self._until.get(delivery.message_id)
        if until is None or until <= self._loop.time():
            return False
        self._push(delivery, until, failed=False)
        return True

    def _push(self, delivery: Delivery, until: float, *, failed: bool) -> None:
        until = min(until, delivery.token.arrived + self._longest)
        heapq.heappush(self._kept, (until, next(self._number), failed, delivery))
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._kept[0][0], self._end_due) if self._kept else None

    def _end_due(self) -> None:
        now = self._loop.time()
        while self._kept and self._kept[0][0] <= now:
            _, _, failed, delivery = heapq.heappop(self._kept)
            self._go_on(delivery, failed=failed, now=now)
        self._set_timer()

    def _go_on(self, delivery: Delivery, *, failed: bool, now: float) -> None:
        token = delivery.token
        if not token.consumer.holds(token.tag):
            return  # lost with its channel: the server has delivered the message again
        is_over = self._until.get(delivery.message_id, now) <= now
        if is_over:
            self._until.pop(delivery.message_id, None)
        if failed:
            token.consumer.reject(token.tag)
        elif is_over:
            token.consumer.arrive(delivery)
        else:
            token.consumer.give_back(token.tag)

    def close(self) -> None:
        """Give everything back now."""
        kept, self._kept = self._kept, []
        self._set_timer()
        for _, _, failed, delivery in kept:
            token = delivery.token
            if failed and token.consumer.holds(token.tag):
                token.consumer.reject(token.tag)
