"""Translation of redis-py's errors: one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["translated"]

# The first class that fits decides, so subclasses come before their bases.
_CLASSES = {
    redis.AuthenticationError: (
        ErrorCode.UNAUTHENTICATED,
        "check the options username and password",
    ),
    redis.NoPermissionError: (
        ErrorCode.PERMISSION_DENIED,
        "let this user run scripts on the keys of the prefix",
    ),
    redis.OutOfMemoryError: (
        ErrorCode.EXHAUSTED,
        "give the server more memory, or let receivers catch up",
    ),
    redis.ReadOnlyError: (
        ErrorCode.UNAVAILABLE,
        "this server is a replica; name the primary",
    ),
    redis.TimeoutError: (ErrorCode.TIMEOUT, "is the server too busy?"),
    redis.ConnectionError: (ErrorCode.UNAVAILABLE, "does the server run?"),
    OSError: (ErrorCode.UNAVAILABLE, "does the server run?"),
}
# redis-py has no classes for these; their texts begin with a word.
_WORDS = {
    "NOGROUP": (ErrorCode.NOT_FOUND, "create the subscription"),
    "WRONGTYPE": (ErrorCode.INVALID, "choose another prefix for the keys"),
    "MISCONF": (ErrorCode.EXHAUSTED, "the server cannot write to its disk"),
    "BUSY": (ErrorCode.UNAVAILABLE, "the server runs another script"),
}
_OTHER = (ErrorCode.INTERNAL, "this is a defect of events-redis")
_RETRYABLE = (
    ErrorCode.EXHAUSTED,
    ErrorCode.TIMEOUT,
    ErrorCode.UNAVAILABLE,
)
"""Codes of errors that may be over soon, so that the engine retries."""


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Turn an error of redis-py in the body into a :class:`BrokerError`.

    :param asked: the operation, for the text of the error.
    """
    try:
        yield
    except (redis.RedisError, OSError) as error:
        code, advice = _meaning(error)
        raise BrokerError(
            f"{asked}: {error}; {advice}",
            code,
            retryable=code in _RETRYABLE,
        ) from error


def _meaning(error: Exception) -> tuple[ErrorCode, str]:
    for kind, meaning in _CLASSES.items():
        if isinstance(error, kind):
            return meaning
    return _WORDS.get(str(error).partition(" ")[0], _OTHER)
