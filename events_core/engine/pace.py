"""How many bytes of requests to publish a network takes at once; pure, fed with ``now``.

Requests that are out share one line.  If they are more than it carries in the time of a request, all of them fail, and
sent again at the same size they fail again.  So the bytes that are out, the *window*, follow the line as TCP's
congestion window does (RFC 5681), with the time of a request in place of a lost packet:

- While requests are quick, each confirmed one adds its size to the window, unless the window was hardly used.
- Slower ones leave it as it is: there the line is full, and more bytes would only wait for longer.
- A request that took far too long halves it.  A request that timed out quarters it, since each try that is still too
  large costs a whole timeout.  Requests that left before that say nothing new.

Quick means: not much longer than the quickest request since the window was last made smaller.  So a broker that is far
away, or slow to answer whatever the size, is not taken for a narrow line.
"""

from __future__ import annotations

import math

__all__ = ["Pace", "Trip"]

FIRST_WINDOW = 1 << 20
"""Bytes; a line of 1 Mbit/s takes them in 8 seconds."""
LEAST_WINDOW = 1 << 16
SHARES = 4
"""Into how many requests the window is divided: while one is confirmed, others keep the line busy."""
QUICK, SLOW = 2.0, 8.0
"""Seconds that a request may take beyond the quickest before the window stops growing, and before it is halved."""


class Trip:
    """One request that is out."""

    __slots__ = ("began", "size", "together")

    def __init__(self, size: int, together: int, began: float) -> None:
        self.size = size
        self.together = together
        """Bytes that were out when it left, its own included."""
        self.began = began


class Pace:
    """The window of one client, and what is out of it.

    :param requests: how many requests are out at once at most.
    """

    def __init__(self, requests: int) -> None:
        self._shares = min(SHARES, requests)
        self._window = FIRST_WINDOW
        self._out = 0
        self._quickest = math.inf
        self._narrowed = -math.inf
        """When the window was made smaller."""

    @property
    def has_room(self) -> bool:
        """Return whether another request may leave; a single one always may."""
        return self._out < self._window

    @property
    def request_size(self) -> int:
        """Bytes of one request at most; a message that is larger leaves alone."""
        return self._window // self._shares

    def leave(self, size: int, now: float) -> Trip:
        """Begin a request of *size* bytes."""
        self._out += size
        return Trip(size, self._out, now)

    def end(self, trip: Trip) -> None:
        """Forget a request whose time tells nothing."""
        self._out -= trip.size

    def confirm(self, trip: Trip, now: float) -> None:
        """End a request that the broker has answered."""
        self._out -= trip.size
        if trip.began < self._narrowed:
            return
        took = now - trip.began
        self._quickest = min(self._quickest, took)
        delay = took - self._quickest
        if delay >= SLOW:
            self._narrow(2, trip, now)
        elif delay < QUICK and (2 * trip.together >= self._window or 2 * trip.size >= self.request_size):
            self._window += trip.size

    def time_out(self, trip: Trip, now: float) -> None:
        """End a request that got no answer in time."""
        self._out -= trip.size
        self._narrow(4, trip, now)

    def _narrow(self, divisor: int, trip: Trip, now: float) -> None:
        if trip.began >= self._narrowed:
            self._window = max(LEAST_WINDOW, self._window // divisor)
            self._narrowed = now
            self._quickest = math.inf
