"""The pace of sending: how many bytes of requests a network carries at once.

This module does no I/O.  The batcher owns the pace; the lock that guards the batcher guards the pace too.

All requests that are out share one network.  If it cannot carry them in the time of a request, all of them fail.  Sent
again at the same size, they fail again.  So a *window* bounds the bytes that are out.  It follows the network as TCP's
congestion window does (RFC 5681), but it watches the time of requests instead of lost packets:

- A quick request adds its size to the window, unless the window was hardly used.
- A slower one leaves the window as it is.  The network is full, and more bytes would only wait.
- A request that took far too long halves the window.
- A request that timed out quarters it, because each try that is still too large costs a whole timeout.
- Requests that left before the window last shrank say nothing new.

Quick means: not much longer than the quickest request since the window last shrank.  So the window does not shrink
because a broker is far away, or is slow to answer requests of any size.
"""

from __future__ import annotations

import math

__all__ = ["Pace", "Trip"]

FIRST_WINDOW = 1 << 20
"""Bytes at the start; a network of 1 Mbit/s carries them in 8 seconds."""
LEAST_WINDOW = 1 << 16
"""Bytes at least."""
SHARES = 4
"""Number of requests that the window is divided into.  While one is confirmed, the others keep the network busy."""
QUICK, SLOW = 2.0, 8.0
"""Seconds that a request may take longer than the quickest before the window stops growing, and before it is halved."""


class Trip:
    """A request that is out."""

    __slots__ = ("began", "size", "together")

    def __init__(self, size: int, together: int, began: float) -> None:
        self.size = size
        self.together = together
        """Bytes that were out when it left, with its own."""
        self.began = began


class Pace:
    """The window of one client, and the bytes that are out.

    :param requests: most requests that are out at once.
    """

    def __init__(self, requests: int) -> None:
        self._shares = min(SHARES, requests)
        self._window = FIRST_WINDOW
        self._out = 0
        self._quickest = math.inf
        self._narrowed = -math.inf
        """The time at which the window last shrank."""

    @property
    def has_room(self) -> bool:
        """Return whether another request may leave.  If none is out, one always may."""
        return self._out < self._window

    @property
    def request_size(self) -> int:
        """Return the most bytes of one request.  A message that is larger leaves alone."""
        return self._window // self._shares

    def leave(self, size: int, now: float) -> Trip:
        """Begin a request of *size* bytes.  Exactly one of the three methods below must end it."""
        self._out += size
        return Trip(size, self._out, now)

    def end(self, trip: Trip) -> None:
        """End a request whose time says nothing about the network, for example because it was refused."""
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
        # Grow only if the bytes that were out, or this request alone, filled at least half of what they may.  Otherwise
        # small requests would grow a window that the network has never been seen to carry.
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
