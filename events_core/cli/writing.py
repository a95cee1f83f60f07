"""Writing to a descriptor that another program may have made non-blocking."""

from __future__ import annotations

import os
import select

__all__ = ["write_all"]


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of *data*.  This blocks while the descriptor is full, also if it is non-blocking.

    :raises OSError: if writing fails; a part may have been written.
    """
    # A program that shares the terminal or pipe with this one may set O_NONBLOCK on it, for both.

    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            _wait_for_room(descriptor)


def _wait_for_room(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()
