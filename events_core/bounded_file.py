"""Reading a file with a bound of size and of time.

Anyone who writes a configuration names files, and may name ``/dev/zero``, or a FIFO that nobody writes to.
"""

from __future__ import annotations

import errno
import os
import threading

__all__ = ["read_bounded"]

MAX_BYTES = 2**20
PATIENCE = 30.0
"""Seconds.  A pipe is allowed, as in ``--config <(decrypt events.toml)``: somebody may have to type a passphrase."""


def read_bounded(path: str) -> bytes:
    """Return what the file at *path* has, up to its end.

    :raises OSError: when it cannot be read, is too large, or does not end in time; ``strerror`` says which.
    """
    reading = _Reading(path)
    try:
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
    """Reads one file, in a thread because opening a FIFO blocks until somebody writes to it."""

    def __init__(self, path: str) -> None:
        super().__init__(name="events reading a file", daemon=True)
        self._path = path
        self.data: bytes | None = None
        self.failure: OSError | None = None

    def run(self) -> None:
        try:
            with open(self._path, "rb") as file:
                self.data = file.read(MAX_BYTES + 1)
        except OSError as error:
            self.failure = error
        except ValueError as error:  # such as a name with a null byte, which no file can have
            self.failure = OSError(errno.EINVAL, str(error))
            self.failure.__cause__ = error
