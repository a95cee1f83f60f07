"""The spans and metrics of one process, kept in memory by OpenTelemetry's SDK."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from events_core import EventClient
from events_core.integrations.opentelemetry import instrument


class Telemetry:
    """Providers whose spans and metrics a test reads."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.traces.get_tracer("test")
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])

    def instrument(self, *clients: EventClient, create_spans: bool = True) -> None:
        """Instrument *clients*."""
        for client in clients:
            instrument(client, tracer_provider=self.traces, meter_provider=self.meters, create_spans=create_spans)

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Return the spans that have ended, in that order: all, or those called *name*."""
        return [span for span in self._exporter.get_finished_spans() if not name or span.name == name]

    def span(self, name: str) -> ReadableSpan:
        """Return the one span called *name*."""
        (span,) = self.spans(name)
        return span

    def names(self) -> list[str]:
        """Return the names of the spans that have ended."""
        return [span.name for span in self.spans()]

    def points(self, name: str) -> list[HistogramDataPoint | NumberDataPoint]:
        """Return the data of the metric called *name*."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def ids(context: SpanContext | None) -> tuple[int, int]:
    """Return the ids of a trace and of a span, for comparing."""
    assert context is not None
    return context.trace_id, context.span_id


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    """Return the ids of the spans that *span* links to."""
    return [ids(link.context) for link in span.links]


def each(spans: Iterable[ReadableSpan]) -> list[tuple[int, int]]:
    """Return the ids of *spans*."""
    return [ids(span.context) for span in spans]
