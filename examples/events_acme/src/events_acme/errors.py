"""Translation of the operating system's errors: one table."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["translated"]

_ACCESS = "let this user list, read and write it"
_TABLE = {
    errno.ENOENT: (ErrorCode.NOT_FOUND, "create it, or let create do so"),
    errno.EACCES: (ErrorCode.PERMISSION_DENIED, _ACCESS),
    errno.EPERM: (ErrorCode.PERMISSION_DENIED, _ACCESS),
    errno.ENOTDIR: (ErrorCode.INVALID, "name a folder"),
    errno.EEXIST: (ErrorCode.INVALID, "name a folder"),
    errno.ENAMETOOLONG: (ErrorCode.INVALID, "choose a shorter name"),
    errno.ENOSPC: (ErrorCode.EXHAUSTED, "make room"),
    errno.EDQUOT: (ErrorCode.EXHAUSTED, "make room"),
}
_OTHER = (ErrorCode.UNAVAILABLE, "check the file system")
_RETRYABLE = (ErrorCode.EXHAUSTED, ErrorCode.UNAVAILABLE)
"""Codes of errors that may be over soon, so that the engine retries."""


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Turn an :exc:`OSError` of the body into a :class:`BrokerError`.

    :param asked: the operation, for the text of the error.
    """
    try:
        yield
    except OSError as error:
        code, advice = _TABLE.get(error.errno or 0, _OTHER)
        raise BrokerError(
            f"{asked}: {error.strerror}; {advice}",
            code,
            retryable=code in _RETRYABLE,
        ) from error
