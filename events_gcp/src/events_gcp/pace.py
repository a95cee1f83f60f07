"""How many messages a pull asks for, and how long it may take; pure, fed with ``now``.

A pull has one deadline, for the wait and for the transfer of the answer.  When the deadline passes during a transfer,
the messages are lost until their leases are over, and Pub/Sub has counted an attempt of each.  So a pull asks only for
as many messages as the line brings in a small part of that time.  When an answer is cut off all the same, the next
pulls have more time, in the end enough for the largest message.
"""

from __future__ import annotations

import math

__all__ = ["Pace"]

_TRANSFER = 0.1
"""Seconds that the transfer of one answer is to take: a tenth of the shortest deadline, since messages may come at any
moment of the wait."""

_LEAST_TIMEOUT = 1.0
"""Seconds of a pull, unless one was cut off.  Closing waits for a pull.  The emulator answers 0.95 s before the
deadline, so this must be longer."""

_MOST_TIMEOUT = 256.0
"""Seconds: a message of 10 MB comes even at 0.4 Mbit/s."""

_CAUTION = 600.0
"""Seconds for which the deadline stays longer: the longest lease, after which comes again what was cut off."""

_FIRST_MESSAGES = 10
"""Messages of the first pull, while nothing is known of the line: 50 kB each come in 0.1 s at 40 Mbit/s."""

_INSTANT = 1e-6
_GROWTH = 4
_MOST_MESSAGES = 1000
"""Messages of one pull, as many as the official client allows itself."""


class Pace:
    """The pace of all pulls of one receiver."""

    def __init__(self) -> None:
        self._most = _FIRST_MESSAGES
        self._timeout = _LEAST_TIMEOUT
        self._cautious_until = -math.inf

    def limit(self, room: int) -> int:
        """Return how many messages to ask for, where there is *room* for so many."""
        return min(room, self._most)

    def timeout(self, now: float) -> float:
        """Return the seconds of the next pull."""
        if now >= self._cautious_until:
            self._timeout = _LEAST_TIMEOUT
        return self._timeout

    def arrived(self, messages: int, seconds: float) -> None:
        """Learn that the transfer of *messages* took *seconds*."""
        fit = messages * _TRANSFER / max(seconds, _INSTANT)
        if seconds > _TRANSFER:
            self._most = max(1, int(fit))
        elif messages >= self._most:
            self._most = min(int(fit), self._most * _GROWTH, _MOST_MESSAGES)

    def was_cut_off(self, now: float) -> None:
        """Learn that a transfer did not end in time."""
        self._most = 1
        self._timeout = min(self._timeout * 64, _MOST_TIMEOUT)
        self._cautious_until = now + _CAUTION
