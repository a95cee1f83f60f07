"""A clock that goes on while the machine is suspended.

A broker counts such time too: a session that was not renewed for so long is over.  ``time.monotonic`` stands still on
Linux meanwhile.
"""

from __future__ import annotations

import time

__all__ = ["uptime"]

_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def uptime() -> float:
    """Return seconds since some moment of the past, those in which the machine was suspended included."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
