"""The context of a trace in the attributes of messages.

A broker's own clients may use a prefix: those of Google write ``googclient_traceparent``.  With a prefix, the context
is written in both forms.  Of a message that has both, the form with the prefix counts: Google's clients replace it
when they send a message again, and leave the other one as it was.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["Propagation"]

_W3C = TraceContextTextMapPropagator()
_W3C_NAMES = ("traceparent", "tracestate")


class Propagation:
    """The way in which contexts travel with the messages of one client; any thread may use it at any time.

    :param propagator: the form of the context; ``None`` for the global one, which a program may set later.
    :param prefix: the prefix of the broker's own clients, or ``""``.
    """

    def __init__(self, propagator: TextMapPropagator | None, prefix: str) -> None:
        self._propagator = propagator
        self._prefix = prefix

    @property
    def _form(self) -> TextMapPropagator:
        return self._propagator or propagate.get_global_textmap()

    def creation_of(self, attributes: Mapping[str, str]) -> SpanContext:
        """Return the context in which a message was created; it is not valid if the message has none."""
        if not attributes:
            return INVALID_SPAN_CONTEXT
        return trace.get_current_span(self.extract(attributes, Context())).get_span_context()

    def extract(self, attributes: Mapping[str, str], context: Context) -> Context:
        """Return *context* with the span, and the baggage, that came with a message."""
        context = self._form.extract(attributes, context)
        if self._prefix and f"{self._prefix}traceparent" in attributes:
            named = {name: attributes.get(f"{self._prefix}{name}") for name in _W3C_NAMES}
            context = _W3C.extract({name: value for name, value in named.items() if value is not None}, context)
        return context

    def inject(self, context: Context) -> dict[str, str]:
        """Return the attributes that carry *context*."""
        attributes: dict[str, str] = {}
        self._form.inject(attributes, context)
        if self._prefix:
            own: dict[str, str] = {}
            _W3C.inject(own, context)
            attributes |= {f"{self._prefix}{name}": value for name, value in own.items()}
        return attributes

    def missing(self, creation: SpanContext) -> dict[str, str]:
        """Return the attributes for a message that has the context *creation* already, perhaps in one form only."""
        return (
            self.inject(trace.set_span_in_context(trace.NonRecordingSpan(creation), Context())) if self._prefix else {}
        )
