"""Observation: a client tells one observer the start and the end of each operation (rule V1: observation)."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import Literal, Protocol

import attrs

from events_core.message import EventMessage, ReceivedMessage

__all__ = ["UNOBSERVED", "Observer", "Operation", "OperationName", "OutcomeName", "observed"]

_log = logging.getLogger("events_core.observing")
_UNSET = object()

OperationName = Literal["publish", "receive", "process", "settle", "reconnect"]
OutcomeName = Literal["", "ack", "nack", "reject", "return"]


@attrs.define(kw_only=True, eq=False)
class Operation:
    """One operation of a client.  The observer gets the same object at the start and at the end.

    A backend that does not use the engine may leave out :attr:`outgoing`, :attr:`received` and what follows them.
    """

    name: OperationName
    """The kind of operation.  ``process`` is the body of :meth:`~events_core.EventReceiver.processing`, which is also
    the handler of :func:`~events_core.consume`.  It ends before the message is settled."""
    backend: str
    """The backend's name in the configuration, ``""`` if it has none."""
    topic_name: str
    """The client's topic."""
    subscription: str = ""
    """``""`` for ``publish``."""
    messages: int = 0
    """Number of messages that are sent, processed or settled.  For ``receive``, it is known at the end."""
    outgoing: Sequence[EventMessage] = ()
    """The messages of ``publish``, as the application passed them; empty if one of them is no message."""
    received: Sequence[ReceivedMessage] = ()
    """The messages of ``receive``, known at the end; the one of ``process``; those of ``settle``, except messages that
    the application named by their id."""
    message_ids: Sequence[str] = ()
    """The ids of the messages of ``publish``, known at the end if it has succeeded."""
    outcome: OutcomeName = ""
    """The outcome that ``settle`` reports; ``return`` hands a message back."""
    ephemeral: bool = False
    """True if the subscription has a generated name."""
    address: str = ""
    """The broker's address, such as ``localhost:5672``.  Several are separated by commas.  ``""`` if there is none."""
    context: object = None
    """An object of the observer, such as a span, that it wants to find again at the end."""
    extended: dict[int, EventMessage] = attrs.field(factory=dict, init=False, repr=False)
    """For the backend: the messages to which :meth:`add_attributes` added something, by their place in
    :attr:`outgoing`."""

    def add_attributes(self, index: int, attributes: Mapping[str, str]) -> None:
        """Add *attributes* to a message before it is checked and sent; call it in :meth:`Observer.start` only.

        An attribute that the message has already stays as it is.  What is added counts for the limits of the broker.
        But it never fails a send: if the message is beyond a limit with it, the message is sent without it.

        :param index: the place of the message in :attr:`outgoing`.
        :raises IndexError: if there is no such message.
        :raises TypeError: if *attributes* do not map ``str`` to ``str``.
        """
        if not 0 <= index < len(self.outgoing):
            raise IndexError(f"there is no outgoing message {index}; this operation has {len(self.outgoing)}")
        message = self.extended.get(index, self.outgoing[index])
        self.extended[index] = EventMessage(
            message.data, {**attributes, **message.attributes}, ordering_key=message.ordering_key
        )


class Observer(Protocol):
    """The interface that an integration such as OpenTelemetry implements.

    Its methods are called in the thread in which the operation runs, several at the same time.  They must return soon.
    If they raise, the exception is logged, and the operation goes on.
    """

    def start(self, operation: Operation) -> None:
        """Note that *operation* begins; to the messages of a ``publish``, attributes may be added here."""

    def end(self, operation: Operation, error: BaseException | None) -> None:
        """Note that *operation* has ended; *error* is the exception that it raised, perhaps a cancellation.

        If an event loop is closed without cancelling its tasks, the garbage collector ends their operations.  Then this
        method is not called.  It is also not called for a ``process`` in a generator that is closed.  The context
        variables that :meth:`start` has set get their earlier values back.
        """


class _Observed:
    """A context manager for one operation."""

    __slots__ = ("_after", "_before", "_observer", "_operation")

    def __init__(self, observer: Observer, operation: Operation) -> None:
        self._observer = observer
        self._operation = operation

    def __enter__(self) -> Operation:
        self._before = contextvars.copy_context()
        try:
            # A defect of the observer must not fail the operation.
            self._observer.start(self._operation)
        except Exception:
            _log.exception("the observer failed at the start of %s", self._operation.name)
        self._after = contextvars.copy_context()
        return self._operation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            # The garbage collector may run this, perhaps in a thread that holds the observer's own lock.
            self._restore_context()
            return
        try:
            self._observer.end(self._operation, error)
        except Exception:
            _log.exception("the observer failed at the end of %s", self._operation.name)

    def _restore_context(self) -> None:
        """Undo what the observer has set in the context.

        Otherwise all that this thread or task does later would belong to this operation, for example to its span.
        """
        for variable, value in self._after.items():
            # Elsewhere, the collector finds other values, and they stay.
            if self._before.get(variable, _UNSET) is not value and variable.get(_UNSET) is value:
                with suppress(LookupError):  # it has neither an earlier value nor a default
                    variable.set(self._before.run(variable.get))


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
    outgoing: Sequence[EventMessage] = (),
    received: Sequence[ReceivedMessage] = (),
    outcome: OutcomeName = "",
    ephemeral: bool = False,
    address: str = "",
) -> AbstractContextManager[Operation]:
    """Return a context manager that tells *observer* the start and the end of its body."""
    operation = Operation(
        name=name,
        backend=backend,
        topic_name=topic_name,
        subscription=subscription,
        messages=messages,
        outgoing=outgoing,
        received=received,
        outcome=outcome,
        ephemeral=ephemeral,
        address=address,
    )
    return _Observed(observer, operation)
