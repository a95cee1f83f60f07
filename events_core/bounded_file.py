"""Reading a file within bounds of size and time.

A configuration names files.  By mistake it may name ``/dev/zero``, which has no end, or a FIFO without a writer.
"""

from __future__ import annotations

import errno
import os
import threading

__all__ = ["read_bounded"]

MAX_BYTES = 2**20
"""Largest size of a file, in bytes: far more than a configuration or a key needs."""
PATIENCE = 30.0
"""Longest time that reading may take, in seconds.

A pipe such as ``--config <(decrypt events.toml)`` is allowed, and its user may have to type a passphrase."""


def read_bounded(path: str) -> bytes:
    """Return the content of the file at *path*, of 1 MiB at most.  This blocks, for 30 s at most.

    :raises OSError: if it cannot be read, is too large, or does not end in time; ``strerror`` says which.
    """
    reading = _Reading(path)
    try:
        # RuntimeError: the system has no more threads, so the file cannot be read now.
        reading.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    reading.join(PATIENCE)
    if reading.failure is not None:
        raise reading.failure
    if reading.data is None:
        raise TimeoutError(errno.ETIMEDOUT, f"it did not end within {PATIENCE:g} s")
    if len(reading.data) > MAX_BYTES:
        raise OSError(errno.EFBIG, "it has more than 1 MiB")
    return reading.data


class _Reading(threading.Thread):
    """A thread that reads one file.

    Opening a FIFO blocks until a writer opens it, and nothing can interrupt that.  So a daemon thread opens it.  When
    the time is over, the caller leaves the thread behind.
    """

    def __init__(self, path: str) -> None:
        super().__init__(name="events reading a file", daemon=True)
        self._path = path
        self.data: bytes | None = None
        self.failure: OSError | None = None

    def run(self) -> None:
        try:
            with open(self._path, "rb") as file:
                # One byte more than is allowed shows that the file is too large, without reading the rest.
                self.data = file.read(MAX_BYTES + 1)
        except OSError as error:
            self.failure = error
        except ValueError as error:  # for example a name with a null byte, which no file can have
            self.failure = OSError(errno.EINVAL, str(error))
            self.failure.__cause__ = error
