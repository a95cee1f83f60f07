"""From the operating system's errors to the engine's: one table."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["translated"]

_TABLE = {
    errno.ENOENT: (ErrorCode.NOT_FOUND, "create it, or let the option create do so"),
    errno.EACCES: (ErrorCode.PERMISSION_DENIED, "let this user list, read and write it"),
    errno.EPERM: (ErrorCode.PERMISSION_DENIED, "let this user list, read and write it"),
    errno.ENOTDIR: (ErrorCode.INVALID, "name a folder"),
    errno.EEXIST: (ErrorCode.INVALID, "name a folder"),
    errno.ENAMETOOLONG: (ErrorCode.INVALID, "choose a shorter name"),
    errno.ENOSPC: (ErrorCode.EXHAUSTED, "make room"),
    errno.EDQUOT: (ErrorCode.EXHAUSTED, "make room"),
}
_RETRYABLE = (ErrorCode.EXHAUSTED, ErrorCode.UNAVAILABLE)
"""What may be over soon: the engine tries again."""


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Raise what the operating system has against the body as a :class:`BrokerError` that says what was *asked*."""
    try:
        yield
    except OSError as error:
        code, advice = _TABLE.get(error.errno or 0, (ErrorCode.UNAVAILABLE, "see to the file system"))
        raise BrokerError(f"{asked}: {error.strerror}; {advice}", code, retryable=code in _RETRYABLE) from error
