"""Translation of redis-py's errors into those of the engine: one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["translated"]

# The first class that fits decides, so subclasses stand before their bases.
_CLASSES: tuple[tuple[type[Exception], ErrorCode, str], ...] = (
    (exceptions.AuthenticationError, ErrorCode.UNAUTHENTICATED, "check the options username and password"),
    (exceptions.NoPermissionError, ErrorCode.PERMISSION_DENIED, "let this user run scripts on the keys of the prefix"),
    (exceptions.OutOfMemoryError, ErrorCode.EXHAUSTED, "raise the server's maxmemory, or let receivers catch up"),
    (exceptions.ReadOnlyError, ErrorCode.UNAVAILABLE, "this server is a replica; name the primary"),
    (exceptions.TimeoutError, ErrorCode.TIMEOUT, "see whether the server is busy"),
    (exceptions.ConnectionError, ErrorCode.UNAVAILABLE, "see whether the server runs"),
    (OSError, ErrorCode.UNAVAILABLE, "see whether the server runs"),
)
# Errors without a class of their own are known by their first word.
_WORDS = {
    "NOGROUP": (ErrorCode.NOT_FOUND, "create the subscription, or let the option create do so"),
    "WRONGTYPE": (ErrorCode.INVALID, "the key belongs to another program; choose another prefix"),
    "MISCONF": (ErrorCode.EXHAUSTED, "the server cannot write to its disk"),
    "BUSY": (ErrorCode.UNAVAILABLE, "the server runs another script"),
    "CLUSTERDOWN": (ErrorCode.UNAVAILABLE, "wait for the cluster"),
}
_RETRYABLE = (ErrorCode.EXHAUSTED, ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE)


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Turn an error of redis-py in the body into a :class:`BrokerError` that says what was *asked*."""
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        code, advice = _meaning(error)
        raise BrokerError(f"{asked}: {error}; {advice}", code, retryable=code in _RETRYABLE) from error


def _meaning(error: Exception) -> tuple[ErrorCode, str]:
    for kind, code, advice in _CLASSES:
        if isinstance(error, kind):
            return code, advice
    return _WORDS.get(str(error).partition(" ")[0], (ErrorCode.INTERNAL, "this is a defect of events-redis"))
