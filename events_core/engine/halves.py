"""The number of queued messages that the next request takes, if requests leave one at a time.

The problem.  Senders that wait for an answer before they send again fall into step with the writer.  If one request
takes all of their messages, the writer is idle while the senders are told and send again, and the senders are idle
while the writer works::

    writer   [ write 64 ]              [ write 64 ]
    senders              [ 64 wake up ]            [ 64 wake up ]

The solution.  Split the queue in two halves.  While one half is written, the senders of the other half wake up and send
again, so both stay busy::

    writer   [ write 32 ][ write 32 ][ write 32 ][ write 32 ]
    senders              [ 32 wake  ][ 32 wake  ][ 32 wake  ]

When it is done:

* **After a short pause.**  The pause shows that the writer was idle while senders woke up.  The next request takes half
  of what is queued.  That costs one more request in each round.  It pays if the fixed cost of a request is less than
  the pause.  Only the whole time of a request is known, so the bounds below assume messages that take about as long to
  store as their senders take to wake up.
* **When large and small requests alternate without a pause.**  The writer is busy, but all senders wait for the large
  request.  The next request takes half of both, which costs nothing.

When it is not done:

* **After a long pause.**  Then no senders are in step; half of a sudden burst would wait for nothing.
* **For a while after it was in vain.**  If nothing is queued when the second half ends, the senders wait for each
  other, as those of one ``gather`` do.  Halves only delay them.
"""

from __future__ import annotations

import math

__all__ = ["Halves"]

HALVED = 32
"""The smallest number of queued messages that is halved after a pause.  For fewer, the additional request costs more
than it gains."""
SHORT_PAUSE, LONG_PAUSE = 2 / 3, 4.0
"""A pause leads to halves if it lasts from so many times the last request's time up to so many times."""
LET_PASS = 32
"""The number of pauses that lead to no halves after halves that were in vain."""


class Halves:
    """The memory of the last two requests, and the choice of the size of the next one."""

    def __init__(self) -> None:
        # The messages of the last request, and of the one before it; 0 for one that a pause followed.
        self._before = 0
        self._last = 0
        self._took = 0.0
        self._ended = -math.inf
        self._follows = False
        """Whether messages were queued when the last request ended, so that the next one follows without a pause."""
        self._halves = 0
        """The number of the two halves after a pause that have not ended."""
        self._let_pass = 0

    def take(self, queued: int, now: float) -> int:
        """Return how many of *queued* messages leave *now*, which is in seconds of any clock."""
        if self._follows:
            # The last request was small, and the senders of the large one before it are back: even the two out.
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
        """Record that a request of *size* messages ends *now*.

        :param waiting: whether other messages are queued by then.
        """
        self._before, self._last = self._last, size
        self._took, self._ended = now - began, now
        self._follows = waiting
        if self._halves:
            self._halves -= 1
            if not self._halves and not waiting:
                self._let_pass = LET_PASS
