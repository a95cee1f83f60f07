"""The errors of this library, as one tree.

::

    EventError
    ├── ConfigurationError        also ValueError
    ├── BackendError
    │   ├── BackendNotFoundError
    │   ├── BackendConflictError
    │   └── BackendLoadError
    ├── EventConnectionError      also ConnectionError
    ├── PublishError
    ├── ReceiveError
    ├── AcknowledgeError
    └── EventRuntimeError         also RuntimeError

The class says which operation failed, and :class:`ErrorCode` says why.  Programs act on the class and the code, never
on the text, which may change.  If the broker's own client raised an exception, it is the ``__cause__``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Self

__all__ = [
    "AcknowledgeError",
    "BackendConflictError",
    "BackendError",
    "BackendLoadError",
    "BackendNotFoundError",
    "ConfigurationError",
    "ErrorCode",
    "EventConnectionError",
    "EventError",
    "EventRuntimeError",
    "PublishError",
    "ReceiveError",
]


class ErrorCode(enum.StrEnum):
    """The reason why an operation failed."""

    INVALID = "INVALID"
    """The request can never succeed: for example a malformed message, or an option out of range."""
    NOT_FOUND = "NOT_FOUND"
    """The topic, subscription, backend or message id does not exist."""
    PERMISSION_DENIED = "PERMISSION_DENIED"
    """The broker knows the caller and refuses the request."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """The broker does not accept the caller's credentials, or there are none."""
    UNAVAILABLE = "UNAVAILABLE"
    """The broker could not be reached, or is not ready."""
    TIMEOUT = "TIMEOUT"
    """No answer came in time; the outcome is unknown."""
    EXHAUSTED = "EXHAUSTED"
    """A quota or a bound of this library is reached, or a disk is full."""
    ALREADY_SETTLED = "ALREADY_SETTLED"
    """The delivery was settled before, with another outcome."""
    EXPIRED = "EXPIRED"
    """The delivery no longer belongs to this receiver; the message usually comes again."""
    NOT_ATTEMPTED = "NOT_ATTEMPTED"
    """The message was not sent, because an earlier message of the same ordering key failed."""
    CLOSED = "CLOSED"
    """The client or receiver has been closed."""
    WRONG_PROCESS = "WRONG_PROCESS"
    """The client was connected before a fork, or its backend cannot be used in this forked child (rule T2: forks)."""
    UNSUPPORTED = "UNSUPPORTED"
    """This backend, or this configuration of it, does not have the feature."""
    INTERNAL = "INTERNAL"
    """A defect, in this library or in the broker."""


class EventError(Exception):
    """Root of every error that this library and its backends raise.

    :ivar code: the reason why the operation failed.
    :ivar retryable: true if the same call may succeed later.
    :ivar backend: registered name of the backend, ``""`` if the error is not about one.
    :ivar topic_name: the topic, ``""`` if the error is not about one.
    """

    code: ErrorCode
    retryable: bool
    backend: str
    topic_name: str

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode = ErrorCode.INTERNAL,
        retryable: bool = False,
        backend: str = "",
        topic_name: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.backend = backend
        self.topic_name = topic_name

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ passes positional arguments only, so a process pool could not pickle these errors.
        return _rebuild, (type(self), self.args, self.__dict__)

    def located(self, backend: str, topic_name: str) -> Self:
        """Fill in *backend* and *topic_name* if they are still empty, and return the error itself.

        Code far below the client raises errors without knowing either.
        """
        self.backend = self.backend or backend
        self.topic_name = self.topic_name or topic_name
        return self


def _rebuild(cls: type[EventError], args: tuple[Any, ...], state: dict[str, Any]) -> EventError:
    # __init__ is not called: subclasses may require arguments that are not in args.  Their values are in the state.
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(EventError, ValueError):
    """A configuration cannot work.  The text lists every problem; the error comes before any I/O."""

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode = ErrorCode.INVALID,
        backend: str = "",
        topic_name: str = "",
    ) -> None:
        super().__init__(message, code=code, backend=backend, topic_name=topic_name)


class BackendError(EventError):
    """A backend could not be found or loaded."""


class BackendNotFoundError(BackendError):
    """No installed distribution provides the backend."""

    def __init__(self, message: str, *, backend: str = "") -> None:
        super().__init__(message, code=ErrorCode.NOT_FOUND, backend=backend)


class BackendConflictError(BackendError):
    """Several installed distributions provide a backend of one name."""

    def __init__(self, message: str, *, backend: str = "") -> None:
        super().__init__(message, code=ErrorCode.INVALID, backend=backend)


class BackendLoadError(BackendError):
    """The backend is installed and cannot be used: it is broken, or written for another interface version."""

    def __init__(self, message: str, *, backend: str = "") -> None:
        super().__init__(message, code=ErrorCode.INTERNAL, backend=backend)


class EventConnectionError(EventError, ConnectionError):
    """The broker could not be reached, to connect, ping or subscribe."""


class PublishError(EventError):
    """Sending failed, for all messages or for some.

    :ivar results: the outcome of each message of ``send_messages``, in their order: an id if it was stored, an error
        otherwise.  Empty if nothing was sent, for example because a message is ``INVALID``, and for ``send_message``.
    """

    results: Sequence[str | EventError]

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode = ErrorCode.INTERNAL,
        retryable: bool = False,
        backend: str = "",
        topic_name: str = "",
        results: Sequence[str | EventError] = (),
    ) -> None:
        super().__init__(message, code=code, retryable=retryable, backend=backend, topic_name=topic_name)
        self.results = results


class ReceiveError(EventError):
    """Subscribing or receiving failed."""


class AcknowledgeError(EventError):
    """Settling failed, for all messages or for some.

    :ivar failed: the error of each message id that could not be settled.  All others of the call are settled.
    """

    failed: Mapping[str, EventError]

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode = ErrorCode.INTERNAL,
        retryable: bool = False,
        backend: str = "",
        topic_name: str = "",
        failed: Mapping[str, EventError] | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable, backend=backend, topic_name=topic_name)
        self.failed = {} if failed is None else failed


class EventRuntimeError(EventError, RuntimeError):
    """The call is not possible in this state or with this backend: ``CLOSED``, ``WRONG_PROCESS``, ``UNSUPPORTED``."""
