"""Observation: a client tells one observer the start and the end of each operation (rule V1: observation)."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Literal, Protocol

import attrs

__all__ = ["UNOBSERVED", "Observer", "Operation", "observed"]

_log = logging.getLogger("events_core.observing")


OperationName = Literal["publish", "receive", "settle", "reconnect"]


@attrs.define(kw_only=True, eq=False)
class Operation:
    """One operation of a client.  The observer gets the same object at the start and at the end."""

    name: OperationName
    """The kind of operation."""
    backend: str
    """The backend's name in the configuration, ``""`` if it has none."""
    topic_name: str
    """The client's topic."""
    subscription: str = ""
    """``""`` for ``publish``."""
    messages: int = 0
    """Number of messages that are sent or settled.  For ``receive``, it is known at the end."""
    context: object = None
    """An object of the observer, such as a span, that it wants to find again at the end."""


class Observer(Protocol):
    """The interface that an integration such as OpenTelemetry implements.

    Its methods are called in the thread in which the operation runs, several at the same time.  They must return soon.
    If they raise, the exception is logged, and the operation goes on.
    """

    def start(self, operation: Operation) -> None:
        """Note that *operation* begins."""

    def end(self, operation: Operation, error: BaseException | None) -> None:
        """Note that *operation* has ended; *error* is the exception that it raised, perhaps a cancellation.

        If an event loop is closed without cancelling its tasks, the garbage collector ends their operations.  Then this
        method is not called.
        """


class _Observed:
    """A context manager for one operation."""

    __slots__ = ("_observer", "_operation")

    def __init__(self, observer: Observer, operation: Operation) -> None:
        self._observer = observer
        self._operation = operation

    def __enter__(self) -> Operation:
        try:
            # A defect of the observer must not fail the operation.
            self._observer.start(self._operation)
        except Exception:
            _log.exception("the observer failed at the start of %s", self._operation.name)
        return self._operation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            return  # the garbage collector runs this, perhaps in a thread that holds the observer's own lock
        try:
            self._observer.end(self._operation, error)
        except Exception:
            _log.exception("the observer failed at the end of %s", self._operation.name)


UNOBSERVED = nullcontext()
"""The context manager in place of :func:`observed` if there is no observer.

It exists once: making one for each message would cost as much as checking the message."""


def observed(
    observer: Observer,
    name: OperationName,
    *,
    backend: str,
    topic_name: str,
    subscription: str = "",
    messages: int = 0,
) -> AbstractContextManager[Operation | None]:
    """Return a context manager that tells *observer* the start and the end of its body."""
    operation = Operation(
        name=name, backend=backend, topic_name=topic_name, subscription=subscription, messages=messages
    )
    return _Observed(observer, operation)
