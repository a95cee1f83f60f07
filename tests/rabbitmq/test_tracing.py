"""Traces next to OpenTelemetry's instrumentation of pika, which wraps every channel of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pika
import pytest
from opentelemetry.instrumentation.pika import PikaInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind

from events_core import EventClient, EventMessage, ReceivedMessage, consume
from events_core.integrations.opentelemetry import instrument

from .console import Console

PATIENCE = 60.0


class Spans:
    """The spans of this library and of the instrumentation."""

    def __init__(self) -> None:
        self._exporter, self.provider = InMemorySpanExporter(), TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return span

    def of(self, scope: str) -> list[ReadableSpan]:
        """Return the spans that *scope* has made."""
        return [
            span
            for span in self._exporter.get_finished_spans()
            if span.instrumentation_scope is not None and span.instrumentation_scope.name.startswith(scope)
        ]

    def producers(self) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.kind == SpanKind.PRODUCER]


PIKA = "opentelemetry.instrumentation.pika"


@pytest.fixture
def spans() -> Iterator[Spans]:
    """Instrument pika for one test, and yield its spans and those of this library."""
    spans, pikas = Spans(), PikaInstrumentor()
    pikas.instrument(tracer_provider=spans.provider)
    yield spans
    pikas.uninstrument()


def ids(context: SpanContext | None) -> tuple[int, int]:
    assert context is not None
    return context.trace_id, context.span_id


def consumed(console: Console, spans: Spans, send: Callable[[EventClient], Awaitable[object]]) -> ReceivedMessage:
    """Let *send* send one message, and consume it with this library; return it."""
    seen: list[ReceivedMessage] = []
    stop = asyncio.Event()

    async def handle(message: ReceivedMessage) -> None:
        seen.append(message)
        stop.set()

    async def test() -> None:
        client = instrument(console.client(), tracer_provider=spans.provider)
        async with asyncio.timeout(PATIENCE), client, client.subscribe(console.subscription) as receiver:
            await send(client)
            await consume(receiver, handle, stop=stop)

    asyncio.run(test())
    return seen[0]


def test_there_is_one_producer_and_its_context_arrives(console: Console, spans: Spans) -> None:
    """The instrumentation of pika makes no span of what this library sends and receives, and changes no context."""
    message = consumed(console, spans, lambda client: client.send_message(EventMessage(b"x")))
    assert spans.of(PIKA) == []
    (producer,) = spans.producers()
    assert producer.name == f"send {console.topic}"
    assert producer.attributes is not None
    assert producer.attributes["messaging.system"] == "rabbitmq"
    assert message.attributes["traceparent"].split("-")[1:3] == [
        format(number, form) for number, form in zip(ids(producer.context), ("032x", "016x"), strict=True)
    ]
    assert ids(spans.named(f"process {console.topic}").parent) == ids(producer.context)


def test_a_trace_of_another_program_goes_on_here(console: Console, spans: Spans) -> None:
    """The instrumentation puts its context into the headers of a message of pika's own client, and it is found."""

    def send() -> None:
        connection = pika.BlockingConnection(pika.URLParameters(console.url))
        connection.channel().basic_publish(console.topic, "", b"x")
        connection.close()

    consumed(console, spans, lambda _: asyncio.to_thread(send))
    # It wraps pika's blocking channel and the channel inside it, so one message has two spans.
    sent = spans.of(PIKA)
    assert {span.kind for span in sent} == {SpanKind.PRODUCER}
    assert ids(spans.named(f"process {console.topic}").parent) in [ids(span.context) for span in sent]
