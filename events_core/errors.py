"""Everything that can go wrong, as one tree.

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

The class says which operation failed, :class:`ErrorCode` says why.  Programs act on class and code, never on the
text.  The broker's own exception, where there is one, is the ``__cause__``.
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
    """Why an operation failed."""

    INVALID = "INVALID"
    """What was asked can never succeed: a malformed message, an option out of range."""
    NOT_FOUND = "NOT_FOUND"
    """The topic, subscription, backend or message id does not exist."""
    PERMISSION_DENIED = "PERMISSION_DENIED"
    """The broker knows who asks and refuses."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """The broker does not know who asks."""
    UNAVAILABLE = "UNAVAILABLE"
    """The broker could not be reached, or is not ready."""
    TIMEOUT = "TIMEOUT"
    """No answer in time; the outcome is unknown."""
    EXHAUSTED = "EXHAUSTED"
    """A quota, a disk or a bound of this library is full."""
    ALREADY_SETTLED = "ALREADY_SETTLED"
    """The delivery has been settled with the other outcome."""
    EXPIRED = "EXPIRED"
    """The delivery no longer belongs to this receiver; the message comes again."""
    NOT_ATTEMPTED = "NOT_ATTEMPTED"
    """Not sent, because an earlier message of the same ordering key failed."""
    CLOSED = "CLOSED"
    """The client or receiver has been closed."""
    WRONG_PROCESS = "WRONG_PROCESS"
    """The client was connected before a fork, or its backend cannot be used in this forked child (T2)."""
    UNSUPPORTED = "UNSUPPORTED"
    """This backend, or this configuration of it, does not offer what was asked."""
    INTERNAL = "INTERNAL"
    """A defect, here or in the broker."""


class EventError(Exception):
    """Root of every error that this library and its backends raise.

    :ivar code: why the operation failed.
    :ivar retryable: whether the same call may succeed later, unchanged.
    :ivar backend: registered name of the backend, ``""`` where none is involved.
    :ivar topic_name: the topic concerned, ``""`` where none is.
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
        # Keyword-only arguments are lost by the default, which would break process pools.
        return _rebuild, (type(self), self.args, self.__dict__)

    def located(self, backend: str, topic_name: str) -> Self:
        """Fill in *backend* and *topic_name* where they are still empty; returns the error itself."""
        self.backend = self.backend or backend
        self.topic_name = self.topic_name or topic_name
        return self


def _rebuild(cls: type[EventError], args: tuple[Any, ...], state: dict[str, Any]) -> EventError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(EventError, ValueError):
    """A configuration that cannot work; lists every problem found, before any I/O."""

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
    """A backend could not be chosen or loaded."""


class BackendNotFoundError(BackendError):
    """No installed distribution provides the backend."""

    def __init__(self, message: str, *, backend: str = "") -> None:
        super().__init__(message, code=ErrorCode.NOT_FOUND, backend=backend)


class BackendConflictError(BackendError):
    """Several installed distributions provide a backend of one name."""

    def __init__(self, message: str, *, backend: str = "") -> None:
        super().__init__(message, code=ErrorCode.INVALID, backend=backend)


class BackendLoadError(BackendError):
    """The backend is installed and broken, or written for another interface version."""

    def __init__(self, message: str, *, backend: str = "") -> None:
        super().__init__(message, code=ErrorCode.INTERNAL, backend=backend)


class EventConnectionError(EventError, ConnectionError):
    """Connecting, pinging or subscribing could not reach the broker."""


class PublishError(EventError):
    """Sending failed, in whole or in part.

    :ivar results: aligned with the messages given to ``send_messages``: an id for each that was stored, the error of
        each that was not.  Empty where nothing was sent, such as for a message that is ``INVALID``, and where there
        was only one, of ``send_message``.
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
    """Settling failed, in whole or in part.

    :ivar failed: the error of each message id that could not be settled; all others of the call were.
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
    """The call is wrong here: ``CLOSED``, ``WRONG_PROCESS`` or ``UNSUPPORTED``."""
