"""The size and the deadline of each pull; pure, and told the time as ``now``.

A pull has one deadline, which includes the wait for messages and the transfer of the answer.  When the deadline passes
during a transfer, the messages are lost until their leases run out, and Pub/Sub has counted an attempt of each.  So a
pull asks only for as many messages as the line transfers in a small part of the deadline.  If an answer is cut off
anyway, the next pulls have more time: after two steps, enough for the largest message.
"""

from __future__ import annotations

import math

__all__ = ["PullPace"]

_TRANSFER = 0.1
"""Seconds that the transfer of one answer should take.  Messages may come at any moment of the wait, so this is only a
tenth of the shortest deadline."""

_MIN_TIMEOUT = 1.0
"""Seconds of a pull, unless one was cut off.  Closing waits for a pull, so it is short.  The emulator answers 0.95 s
before the deadline, so it cannot be shorter."""

_MAX_TIMEOUT = 256.0
"""Seconds in which a message of 10 MB arrives even at 0.4 Mbit/s."""

_CAUTION = 600.0
"""Seconds for which a longer deadline stays in force: the longest lease.  Then the messages of the cut-off answer have
come again."""

_FIRST_MESSAGES = 10
"""Messages of the first pull, before anything is known of the line.  Ten messages of 50 kB take 0.1 s at 40 Mbit/s."""

_INSTANT = 1e-6
_GROWTH = 4
_MAX_MESSAGES = 1000
"""Messages of one pull.  Google's own client has the same bound."""


class PullPace:
    """The pace of all pulls of one receiver."""

    def __init__(self) -> None:
        self._most = _FIRST_MESSAGES
        self._timeout = _MIN_TIMEOUT
        self._cautious_until = -math.inf

    def limit(self, room: int) -> int:
        """Return the number of messages to ask for, at most *room*."""
        return min(room, self._most)

    def timeout(self, now: float) -> float:
        """Return the seconds of the next pull."""
        if now >= self._cautious_until:
            self._timeout = _MIN_TIMEOUT
        return self._timeout

    def arrived(self, messages: int, seconds: float) -> None:
        """Learn that the transfer of *messages* took *seconds*."""
        fit = messages * _TRANSFER / max(seconds, _INSTANT)
        if seconds > _TRANSFER:
            # Shrink at once: an answer that is cut off costs each of its messages a counted attempt.
            self._most = max(1, int(fit))
        elif messages >= self._most:  # an answer that was not full says nothing about the line
            self._most = min(int(fit), self._most * _GROWTH, _MAX_MESSAGES)

    def was_cut_off(self, now: float) -> None:
        """Learn that the deadline passed during a transfer."""
        self._most = 1
        self._timeout = min(self._timeout * 64, _MAX_TIMEOUT)
        self._cautious_until = now + _CAUTION
