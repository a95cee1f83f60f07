"""Seeing what a client does: one observer, told of each operation's start and end (V1)."""

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
    """One thing that a client does; the same object at its start and its end."""

    name: OperationName
    """What is done."""
    backend: str
    """The backend's name in the configuration, ``""`` where it has none."""
    topic_name: str
    """The client's topic."""
    subscription: str = ""
    """``""`` for ``publish``."""
    messages: int = 0
    """How many are sent or settled; how many were received, once that has ended."""
    context: object = None
    """The observer's own: a span, a clock, whatever it wants to find again at the end."""


class Observer(Protocol):
    """What an integration such as OpenTelemetry implements.

    Its methods are called in whichever thread the operation runs, several at once, and must return soon.  What they
    raise is logged and changes nothing.
    """

    def start(self, operation: Operation) -> None:
        """*operation* begins."""

    def end(self, operation: Operation, error: BaseException | None) -> None:
        """*operation* has ended; *error* is what it raised, cancellation included.

        Not called where a loop was closed without cancelling its tasks, and the garbage collector ended the operation.
        """


class _Observed:
    """The length of one operation."""

    __slots__ = ("_observer", "_operation")

    def __init__(self, observer: Observer, operation: Operation) -> None:
        self._observer = observer
        self._operation = operation

    def __enter__(self) -> Operation:
        try:
            self._observer.start(self._operation)
        except Exception:
            _log.exception("the observer failed at the start of %s", self._operation.name)
        return self._operation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            return  # the garbage collector runs this, perhaps while the observer's own lock is held
        try:
            self._observer.end(self._operation, error)
        except Exception:
            _log.exception("the observer failed at the end of %s", self._operation.name)


UNOBSERVED = nullcontext()
"""In place of :func:`observed` where there is no observer."""


def observed(
    observer: Observer,
    name: OperationName,
    *,
    backend: str,
    topic_name: str,
    subscription: str = "",
    messages: int = 0,
) -> AbstractContextManager[Operation | None]:
    """Tell *observer* of what happens in the body of ``with``."""
    operation = Operation(
        name=name, backend=backend, topic_name=topic_name, subscription=subscription, messages=messages
    )
    return _Observed(observer, operation)
