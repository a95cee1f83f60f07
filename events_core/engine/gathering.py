"""Gathering: how long settlements wait for others, if the broker takes money for each request.

A driver says how many settlements share one request of the broker (:attr:`Driver.settle_unit`).  If that is one, as it
usually is, nothing here ever waits.  Otherwise:

* **Fewer than fill one request wait for others**, for :data:`LONGEST_WAIT` at most.
* **The rest of a number that fills requests waits** for the next one.  Of 27 settlements, with a unit of 10, 20 leave.

Both only while others are likely to come:

* the application holds further messages, and
* it settles concurrently: lately, a settlement has come while another one waited or was out.

So an application that settles one message after the other never waits.  Neither does one that settles all it holds.

This module does no I/O and reads no clock.  The receiver's lock guards all of it (``inbox.py``).
"""

from __future__ import annotations

__all__ = ["LONGEST_WAIT", "Gathering"]

LONGEST_WAIT = 0.01
"""Seconds.  Longer waits would slow down an application with few handlers, each of which waits for its settlement."""


class Gathering:
    """The decisions of one receiver.

    :param unit: the number of settlements that fill one request of the broker.
    """

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self._is_concurrent = False
        self._began: float | None = None
        """When the wait began that is not over; ``None`` if there is none."""
        self._least = 0
        """The number of settlements that were queued when a wait began, or a request left."""

    def wait(self, queued: int, is_more_held: bool, now: float) -> float:
        """Return the seconds for which *queued* settlements wait for others; 0 if they leave now.

        :param is_more_held: whether the application holds messages that it is not settling.
        """
        if not 0 < queued < self._unit or not is_more_held or not self._is_concurrent:
            return 0.0
        if self._began is None:
            self._began, self._least = now, queued
        return max(0.0, self._began + LONGEST_WAIT - now)

    def take(self, queued: int, is_more_held: bool) -> int:
        """Return how many of *queued* settlements leave."""
        if self._began is not None:
            # After a wait in vain, nothing waits until settlements come concurrently again.
            self._is_concurrent = queued > self._least
            self._began = None
        is_worth_it = is_more_held and self._is_concurrent and queued > self._unit
        rest = queued % self._unit if is_worth_it else 0
        self._least = rest
        return queued - rest

    def answered(self, queued: int) -> None:
        """Learn that the broker has answered, and how many settlements are queued by then."""
        if queued > self._least:
            self._is_concurrent = True
