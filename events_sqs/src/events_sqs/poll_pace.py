"""The number of requests to receive, and the pauses between them; pure, and told the time as ``now``.

SQS is paid by the request, and one request brings 10 messages at most.  So two things matter:

* **Full answers.**  If messages come one by one, a receiver that asks at once gets them one by one, and each costs a
  request.  If ten of them come within :data:`LONGEST_PAUSE`, the receiver asks a little later, and gets all ten.
* **Several requests at once.**  If answers are full, there is probably more.  After each :data:`_FULL` of them in a
  row, the receiver sends one request more at once.  The last ones bring nothing, so there are few for a short backlog.

A receiver without messages sends one request at a time, which waits at SQS for ``wait_time``.  If an answer without
messages comes sooner, for example from an emulator that does not wait, the receiver pauses for up to a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from events_sqs.limits import MAX_BATCH

__all__ = ["LONGEST_PAUSE", "PollPace"]

LONGEST_PAUSE = 0.05
"""Seconds by which a message may come later so that it comes with others.  At 200 messages a second, answers are full.
If fewer come, a pause does not fill an answer, so there is none."""

_SHORTEST_PAUSE = 0.001
_EMPTY_PAUSE = 0.05
_LONGEST_EMPTY_PAUSE = 1.0
"""Seconds after empty answers that did not wait.  The pause doubles with each."""
_QUICK = 0.5
"""Seconds.  An empty answer that took longer has waited at SQS."""
_IMPATIENCE = 0.9
"""After a full answer, the pause is shortened by this factor: perhaps more was there."""
_FULL = 12
"""Full answers that lead to one request more.  So about one request of this number is in vain."""
_MOST = 10
"""Requests at once.  With a round trip of 10 ms they bring 10,000 messages a second."""


class PollPace:
    """The pace of one receiver."""

    def __init__(self) -> None:
        self._full = 0
        """Full answers in a row."""
        self._pause = 0.0
        self._empty_pause = 0.0
        self._ended = -math.inf

    def count(self, room: int) -> int:
        """Return how many requests to send at once; *room* is the number of messages that may come."""
        return max(1, min(1 + self._full // _FULL, _MOST, room // MAX_BATCH))

    def pause(self, now: float) -> float:
        """Return the seconds to wait before the next request."""
        return max(0.0, self._ended + self._pause - now)

    def answered(self, sizes: Sequence[int], asked: int, now: float) -> None:
        """Learn how many messages each of the requests has brought that were sent at once, and *asked* for so many."""
        before, self._ended = self._ended, now
        full = sum(size >= asked for size in sizes)
        if full == len(sizes):
            self._pause *= _IMPATIENCE
            if self._pause < _SHORTEST_PAUSE:
                self._pause = 0.0
                self._full = min(self._full + full, _MOST * _FULL)
            return
        # A request may miss some messages, so one answer that is not full does not end it all.
        self._full = max(0, full // 2 - 1) * _FULL
        messages = sum(sizes)
        # The queue is empty now.  If messages go on to come as fast, this is the time until the next answer is full.
        time_to_fill = (now - before) * asked / messages if messages else math.inf
        has_waited = now - before - self._empty_pause >= _QUICK
        if messages or has_waited or len(sizes) > 1:
            self._pause = time_to_fill if time_to_fill <= LONGEST_PAUSE else 0.0
            self._empty_pause = 0.0
        else:
            self._pause = self._empty_pause = min(max(_EMPTY_PAUSE, 2 * self._empty_pause), _LONGEST_EMPTY_PAUSE)
