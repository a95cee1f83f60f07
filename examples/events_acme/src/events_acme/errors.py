"""From the operating system's errors to the engine's: one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["translated"]

_PERMANENT = {
    FileNotFoundError: (ErrorCode.NOT_FOUND, "create it, or let the option create do so"),
    PermissionError: (ErrorCode.PERMISSION_DENIED, "let this user list, read and write it"),
    NotADirectoryError: (ErrorCode.INVALID, "name a folder"),
    FileExistsError: (ErrorCode.INVALID, "name a folder"),
}


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Raise what the operating system has against the body as a :class:`BrokerError` that says what was *asked*."""
    try:
        yield
    except OSError as error:
        # Anything else, such as a full disk, may be over soon: the engine tries again.
        code, advice = _PERMANENT.get(type(error), (ErrorCode.UNAVAILABLE, "see to the file system"))
        retryable = code is ErrorCode.UNAVAILABLE
        raise BrokerError(f"{asked}: {error.strerror}; {advice}", code, retryable=retryable) from error
