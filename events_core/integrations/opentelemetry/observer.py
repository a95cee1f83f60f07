"""The observer of one client: an operation becomes a span, and what it took becomes metrics.

=========  =========================  ========  ==================================================================
operation  span                       kind      parent and links
=========  =========================  ========  ==================================================================
publish    ``send TOPIC``             producer  parent: the current span.  The message carries the context of this
                                                span.  Its kind is client, and it links to the contexts that the
                                                messages carry, if these are others: those of the spans ``create``,
                                                or those that the application put in.
publish    ``create TOPIC``           producer  parent: the current span; one for each message of a batch.
receive    ``receive TOPIC``          client    parent: the current span; links to the context of each message.
process    ``process TOPIC``          consumer  parent: the current span, or the context of the message if there is
                                                none; links to the context of the message.
settle     ``ack TOPIC``, ``nack …``  client    parent: the current span, or the span ``process`` of the message;
                                                links to the context of each message.
=========  =========================  ========  ==================================================================

A receive that returns nothing makes no span: a poll would make thousands.  For the same reason the span of a receive
is made at its end, with the time of its start, and so its links are there when a sampler decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import cast

from opentelemetry import context, trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, Tracer

from events_core.errors import ErrorCode, EventError
from events_core.integrations.opentelemetry.conventions import (
    BATCH_COUNT,
    DESTINATION,
    ERROR_TYPE,
    MESSAGE_ID,
    OPERATION_NAME,
    OPERATION_TYPE,
    SUBSCRIPTION,
    SYSTEM,
    error_type,
    server_of,
)
from events_core.integrations.opentelemetry.measuring import Facts, Metrics
from events_core.integrations.opentelemetry.propagation import Propagation
from events_core.message import EventMessage
from events_core.observing import Operation

__all__ = ["OpenTelemetryObserver"]

_Finish = Callable[[BaseException | None], None]

_MOST_CREATED = 1000
"""The most messages of a batch that get a span each.  A larger batch would block the event loop too long (P6)."""

_NAMES = {"return": "hand_back"}
"""The names of settlements, where they differ from those of outcomes."""

_processed: ContextVar[tuple[str, str, SpanContext] | None] = ContextVar("events_core_processed", default=None)
"""Subscription, id and span of the message that this task has processed last: ``process`` ends before the message is
settled, and its settlement belongs to it."""


class OpenTelemetryObserver:
    """An :class:`~events_core.Observer` that makes spans and metrics; :func:`instrument` makes it.

    It keeps no state of its own, so several threads may use it, and several clients of the same backend.

    :param system: the name of the broker in the conventions; ``""`` for the name of the backend.
    :param create_spans: make a span for each message of a batch.
    """

    def __init__(
        self, tracer: Tracer, metrics: Metrics, propagation: Propagation, *, system: str, create_spans: bool
    ) -> None:
        self._tracer = tracer
        self._metrics = metrics
        self._propagation = propagation
        self._system = system
        self._create_spans = create_spans
        self._begin: dict[str, Callable[[Operation], _Finish]] = {
            "publish": self._publish,
            "receive": self._receive,
            "process": self._process,
            "settle": self._settle,
            "reconnect": self._reconnect,
        }

    def start(self, operation: Operation) -> None:
        """Begin the span of *operation*, and give its messages their context."""
        begin = self._begin.get(operation.name)  # a later version may have more
        if begin is not None:
            operation.context = begin(operation)

    def end(self, operation: Operation, error: BaseException | None) -> None:
        """End the span of *operation*, and record its metrics."""
        finish = cast("_Finish | None", operation.context)
        if finish is not None:
            finish(error)

    # Sending

    def _publish(self, operation: Operation) -> _Finish:
        began = time.perf_counter()
        facts = self._facts(operation, "send")
        creations = self._creations(operation)
        shared = [index for index, creation in enumerate(creations) if not creation.is_valid]
        span = self._span(
            operation,
            "send",
            SpanKind.PRODUCER if shared or not creations else SpanKind.CLIENT,
            facts | _count(operation),
            [Link(creation) for creation in creations if creation.is_valid],
        )
        attributes = self._propagation.inject(trace.set_span_in_context(span)) if shared else {}
        for index in shared:
            operation.add_attributes(index, attributes)

        def finish(error: BaseException | None) -> None:
            seconds = time.perf_counter() - began
            if operation.messages == 1 and operation.message_ids:
                span.set_attribute(MESSAGE_ID, operation.message_ids[0])
            _end(span, error)
            self._metrics.operated(seconds, facts, error)
            self._metrics.sent(operation.messages, facts, error)

        return finish

    def _creations(self, operation: Operation) -> list[SpanContext]:
        """Return the context that each message carries; it is not valid for those that carry the span ``send``."""
        creates = self._create_spans and 1 < operation.messages <= _MOST_CREATED
        creations = []
        for index, message in enumerate(operation.outgoing):
            creation = self._propagation.creation_of(message.attributes)
            if creation.is_valid:
                operation.add_attributes(index, self._propagation.missing(creation))
            elif creates:
                creation = self._create(operation, index)
            creations.append(creation)
        return creations

    def _create(self, operation: Operation, index: int) -> SpanContext:
        span = self._span(operation, "create", SpanKind.PRODUCER, self._facts(operation, "create"), ())
        operation.add_attributes(index, self._propagation.inject(trace.set_span_in_context(span)))
        span.end()
        return span.get_span_context()

    # Receiving

    def _receive(self, operation: Operation) -> _Finish:
        began, start_time = time.perf_counter(), time.time_ns()

        def finish(error: BaseException | None) -> None:
            if not operation.messages and (error is None or _is_end(error)):
                return
            seconds = time.perf_counter() - began
            facts = self._facts(operation, "receive")
            links = self._links(operation.received, with_ids=operation.messages > 1)
            seen = facts | _count(operation) | _id(operation)
            span = self._span(operation, "receive", SpanKind.CLIENT, seen, links, start_time)
            _end(span, error)
            measured = _low(facts, operation)
            self._metrics.operated(seconds, measured, error)
            if operation.messages:
                self._metrics.consumed(operation.messages, measured)

        return finish

    def _process(self, operation: Operation) -> _Finish:
        began = time.perf_counter()
        facts = self._facts(operation, "process")
        parent, links = context.get_current(), self._links(operation.received)
        if links and not trace.get_current_span(parent).get_span_context().is_valid:
            parent = self._propagation.extract(operation.received[0].attributes, parent)
        span = self._span(operation, "process", SpanKind.CONSUMER, facts | _id(operation), links, parent=parent)
        # The handler runs in this task, and its own spans belong to this one.
        token = context.attach(trace.set_span_in_context(span, parent))

        def finish(error: BaseException | None) -> None:
            seconds = time.perf_counter() - began
            context.detach(token)
            _end(span, error)
            self._metrics.processed(seconds, _low(facts, operation), error)
            for message in operation.received:
                _processed.set((operation.subscription, message.message_id, span.get_span_context()))

        return finish

    # Settling

    def _settle(self, operation: Operation) -> _Finish:
        began = time.perf_counter()
        name = _NAMES.get(operation.outcome, operation.outcome) or "settle"
        facts = self._facts(operation, "settle", name)
        span = self._span(
            operation,
            name,
            SpanKind.CLIENT,
            facts | _count(operation) | _id(operation),
            self._links(operation.received, with_ids=operation.messages > 1),
            parent=_settling(operation),
        )

        def finish(error: BaseException | None) -> None:
            seconds = time.perf_counter() - began
            _end(span, error)
            self._metrics.operated(seconds, _low(facts, operation), error)

        return finish

    # Outages

    def _reconnect(self, operation: Operation) -> _Finish:
        began = time.perf_counter()

        def finish(error: BaseException | None) -> None:
            if error is None or not _is_end(error):
                facts = _low(self._facts(operation), operation)
                self._metrics.reconnected(time.perf_counter() - began, facts, error)

        return finish

    # Parts of a span

    def _facts(self, operation: Operation, kind: str = "", name: str = "") -> dict[str, str | int]:
        """Return the attributes that spans and metrics of *operation* share.

        :param kind: the type of the operation in the conventions.
        :param name: its name, where that differs.
        """
        facts: dict[str, str | int] = {
            SYSTEM: self._system or operation.backend,
            DESTINATION: operation.topic_name,
            **server_of(operation.address),
        }
        if kind:
            facts[OPERATION_TYPE], facts[OPERATION_NAME] = kind, name or kind
        if operation.subscription:
            facts[SUBSCRIPTION] = operation.subscription
        return facts

    def _span(
        self,
        operation: Operation,
        name: str,
        kind: SpanKind,
        facts: Facts,
        links: Iterable[Link],
        start_time: int | None = None,
        parent: context.Context | None = None,
    ) -> Span:
        return self._tracer.start_span(f"{name} {operation.topic_name}", parent, kind, facts, tuple(links), start_time)

    def _links(self, messages: Iterable[EventMessage], *, with_ids: bool = False) -> list[Link]:
        """Return a link to the context of each message that has one.

        :param with_ids: name the message in each link, because the span is about several.
        """
        links = []
        for message in messages:
            creation = self._propagation.creation_of(message.attributes)
            if creation.is_valid:
                links.append(Link(creation, {MESSAGE_ID: message.message_id or ""} if with_ids else None))
        return links


def _count(operation: Operation) -> dict[str, str | int]:
    """Return the number of messages, which only the span of a batch has."""
    return {BATCH_COUNT: operation.messages} if operation.messages != 1 else {}


def _id(operation: Operation) -> dict[str, str | int]:
    """Return the id of the message, which only the span of a single message has."""
    if operation.messages != 1 or not operation.received:
        return {}
    return {MESSAGE_ID: operation.received[0].message_id}


def _low(facts: Facts, operation: Operation) -> Facts:
    """Return *facts* without a generated name: each receiver would begin time series that never end."""
    if not operation.ephemeral:
        return facts
    return {name: value for name, value in facts.items() if name != SUBSCRIPTION}


def _settling(operation: Operation) -> context.Context | None:
    """Return the parent of a settlement if there is no current span: the processing of its message."""
    last = _processed.get()
    if last is None or len(operation.received) != 1 or trace.get_current_span().get_span_context().is_valid:
        return None
    subscription, message_id, processing = last
    if (subscription, message_id) != (operation.subscription, operation.received[0].message_id):
        return None
    return trace.set_span_in_context(NonRecordingSpan(processing))


def _is_end(error: BaseException) -> bool:
    """Return whether *error* ends a wait in good order: the caller was cancelled, or the receiver closed."""
    if isinstance(error, EventError):
        return error.code is ErrorCode.CLOSED
    return isinstance(error, asyncio.CancelledError)


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None and span.is_recording():
        span.set_attribute(ERROR_TYPE, error_type(error))
        span.set_status(Status(StatusCode.ERROR, str(error) or None))
        if isinstance(error, Exception):  # a cancellation has no cause that its traceback shows
            span.record_exception(error)
    span.end()
