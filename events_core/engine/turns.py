"""How many of the messages that are queued a request takes, where requests leave one at a time; pure.

Callers that send again as soon as they are told go in a circle.  A request with the next message of all of them leaves
the broker nothing to do while they are told, and them nothing while the broker works.  So two halves take turns: one is
written while the other is told.

- A request that is small between two large ones, with no pause, is as bad: the next one evens them out, at no cost.
- A request after a pause in which all were told takes half of what is queued.  That is one request more for each round
  and pays where a request's fixed cost is less than the pause; only its whole time is known, so the bound is set for
  messages that take about as long to store as to tell.
- Not after a long pause: there is no circle, and half of a sudden burst would wait for nothing.  And not soon again
  where nobody came back while the other half was out: then callers wait for one another.
"""

from __future__ import annotations

import math

__all__ = ["Turns"]

HALVED = 32
"""Messages of which a request may take half after a pause; for fewer it would cost more than it gains."""
SHORT_PAUSE, LONG_PAUSE = 2 / 3, 4.0
"""From and up to how many times the last request's time a pause leads to halves."""
LET_PASS = 32
"""Pauses that lead to none after halves that were in vain."""


class Turns:
    """Knows the last two requests."""

    def __init__(self) -> None:
        self._before = 0
        self._last = 0
        """Messages of the last request, and of the one before it; 0 for one that a pause followed."""
        self._took = 0.0
        self._ended = -math.inf
        self._follows = False
        self._halves = 0
        """Of the two halves after a pause, those that are not over."""
        self._let_pass = 0

    def take(self, queued: int, now: float) -> int:
        """How many of *queued* messages leave *now*, in seconds of any clock."""
        if self._follows:
            uneven = self._last < self._before <= queued
            return (self._last + queued + 1) // 2 if uneven else queued
        self._last = 0
        if queued < HALVED or not SHORT_PAUSE * self._took <= now - self._ended < LONG_PAUSE * self._took:
            return queued
        if self._let_pass:
            self._let_pass -= 1
            return queued
        self._halves = 2
        return queued // 2

    def over(self, size: int, began: float, now: float, *, waiting: bool) -> None:
        """A request of *size* messages is over *now*; whether others were *waiting* by then."""
        self._before, self._last = self._last, size
        self._took, self._ended = now - began, now
        self._follows = waiting
        if self._halves:
            self._halves -= 1
            if not self._halves and not waiting:
                self._let_pass = LET_PASS
