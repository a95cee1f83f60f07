"""The translation of a driver's error for the application: the operation gives the class, the broker the code."""

from __future__ import annotations

from events_core.engine.driver import BrokerError
from events_core.errors import ErrorCode, EventConnectionError, EventError, EventRuntimeError

__all__ = ["translate"]

# These codes say that no answer came, so nothing about the operation is known.
_UNREACHABLE = (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT)
# These codes are about the client or its configuration, whichever operation met them.
_ANYWHERE = (ErrorCode.CLOSED, ErrorCode.WRONG_PROCESS, ErrorCode.UNSUPPORTED)


def translate(error: BrokerError, kind: type[EventError], *, connecting: bool = False) -> EventError:
    """Return *error* as an error of class *kind*, with the native exception as its cause.

    :param connecting: True if the operation raises :class:`EventConnectionError` when it cannot reach the broker.
    """
    cls: type[EventError] = kind
    if error.code in _ANYWHERE:
        cls = EventRuntimeError
    elif connecting and error.code in _UNREACHABLE:
        cls = EventConnectionError
    translated = cls(str(error), code=error.code, retryable=error.retryable)
    translated.__cause__ = error.__cause__
    return translated
