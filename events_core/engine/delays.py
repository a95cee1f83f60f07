"""Nacked deliveries that wait for their delay here, because the broker has no delays (rule R11: delays).

``Settlements.next`` puts a nack here instead of sending it.  For the application the message is settled.  For the
broker it is still out, so this receiver keeps its lease, and it counts for the bounds (R5).  When the delay is over,
the nack is queued, and the broker delivers the message again.

The broker may deliver the message again before that, for example after a lost connection.  Then the message stays here,
with the newer token.  So its delay is kept, unless the broker gives the message to another receiver.

This module does no I/O and reads no clock.  The receiver's lock guards all of it (``inbox.py``).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection
from copy import copy

from events_core.engine.driver import Delivery, Outcome, Settlement

__all__ = ["Delays"]


class Delays:
    """The nacked deliveries of one receiver whose delays are not over.

    :param longest_hold: seconds after its arrival for which a delivery may stay here; infinite for no bound.
    """

    def __init__(self, longest_hold: float) -> None:
        self._longest = longest_hold
        self._kept: dict[str, Delivery] = {}
        """By message id."""
        # A heap.  The number breaks ties: deliveries cannot be compared.
        self._due: list[tuple[float, int, Delivery]] = []
        self._number = itertools.count()
        self.bytes = 0

    def __len__(self) -> int:
        """Return the number of deliveries that wait."""
        return len(self._kept)

    @property
    def deliveries(self) -> Collection[Delivery]:
        """The deliveries that wait."""
        return self._kept.values()

    def find(self, message_id: str) -> Delivery | None:
        """Return the delivery of a message; ``None`` if it does not wait here."""
        return self._kept.get(message_id)

    def keep(self, delivery: Delivery, until: float) -> None:
        """Keep a nacked delivery until then."""
        self._kept[delivery.message_id] = delivery
        self.bytes += delivery.size
        heapq.heappush(self._due, (until, next(self._number), delivery))

    def next_due(self) -> float | None:
        """Return when the first delay is over; ``None`` if nothing waits."""
        return self._due[0][0] if self._due else None

    def end(self, now: float = math.inf) -> list[Settlement]:
        """Return the nacks whose delays are over; all of them without *now*."""
        over = []
        while self._due and self._due[0][0] <= now:
            _, _, delivery = heapq.heappop(self._due)
            del self._kept[delivery.message_id]
            self.bytes -= delivery.size
            over.append(Settlement(delivery, Outcome.NACK, 0.0))
        return over

    def give_back_overdue(self, now: float) -> list[Settlement]:
        """Return settlements that give back what may not stay here any longer.  Its delay goes on.

        The message comes again, and then stays for another while.
        """
        overdue = [each for each in self._kept.values() if each._arrived + self._longest <= now]
        for delivery in overdue:
            delivery._arrived = math.inf  # once
        # Copies, because the token of the delivery itself changes when the message comes again.
        return [Settlement(copy(delivery), Outcome.RETURN) for delivery in overdue]
