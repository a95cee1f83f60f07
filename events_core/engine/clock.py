"""A clock that also runs while the machine is suspended.

Brokers count that time too: if a session was not renewed for so long, it is over.  On Linux, ``time.monotonic`` stands
still in that time.
"""

from __future__ import annotations

import time

__all__ = ["uptime"]

# macOS has no CLOCK_BOOTTIME, but its CLOCK_MONOTONIC runs while the machine is suspended.  Windows has neither.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def uptime() -> float:
    """Return seconds since some moment of the past, with the time in which the machine was suspended."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
