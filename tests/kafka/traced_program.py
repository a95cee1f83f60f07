"""A program next to OpenTelemetry's instrumentation of confluent-kafka, which prints what it sent, received and traced.

::

    python traced_program.py ours ADDRESS TOPIC [TRACEPARENT]
    python traced_program.py from_other ADDRESS TOPIC [TRACEPARENT]
    python traced_program.py to_other ADDRESS TOPIC

*other* is confluent-kafka.  A message that is sent has the attribute or header ``traceparent`` if one is given.

The instrumentation puts other classes in the place of ``confluent_kafka.Producer`` and ``Consumer``.  Only modules that
are imported later find them.  So this is a program of its own, and it imports the backend last, as a program does that
``opentelemetry-instrument`` starts.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.confluent_kafka import ConfluentKafkaInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

if TYPE_CHECKING:
    from events_core import EventClient, EventReceiver, ReceivedMessage

PATIENCE = 60.0
PROVIDER = TracerProvider()


async def ours(address: str, topic: str, traceparent: str = "") -> dict[str, str]:
    """Send a message and process it, both with this library; return its attributes."""
    from events_core import EventMessage

    async with asyncio.timeout(PATIENCE), client(address, topic) as both, both.subscribe() as receiver:
        await both.send_message(EventMessage(b"x", {"traceparent": traceparent} if traceparent else {}))
        return await process(receiver)


async def from_other(address: str, topic: str, traceparent: str = "") -> dict[str, str]:
    """Send a message with confluent-kafka and process it with this library; return its attributes."""

    def send() -> None:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": address})
        producer.produce(topic, b"x", headers=[("traceparent", traceparent.encode())] if traceparent else [])
        producer.flush(PATIENCE)

    async with asyncio.timeout(PATIENCE), client(address, topic) as both, both.subscribe() as receiver:
        await asyncio.to_thread(send)
        return await process(receiver)


async def to_other(address: str, topic: str) -> dict[str, str]:
    """Send a message with this library and receive it with confluent-kafka."""
    from confluent_kafka import Consumer

    from events_core import EventMessage

    def receive() -> None:
        settings = {"bootstrap.servers": address, "group.id": f"{topic}.other", "auto.offset.reset": "earliest"}
        consumer = Consumer(settings)
        consumer.subscribe([topic])
        assert consumer.poll(PATIENCE) is not None, "no message came"
        consumer.close()

    async with asyncio.timeout(2 * PATIENCE), client(address, topic) as sender:
        await sender.send_message(EventMessage(b"x"))
        await asyncio.to_thread(receive)
    return {}


def client(address: str, topic: str) -> EventClient:
    # Here, because this imports the backend: see above.
    from events_core import create_client
    from events_core.integrations.opentelemetry import instrument

    url = f"kafka://{address}/{topic}?subscription=s&create=all&send_timeout=300&ack_timeout=300&connect_timeout=300"
    return instrument(create_client(url), tracer_provider=PROVIDER)


async def process(receiver: EventReceiver) -> dict[str, str]:
    """Process one message, and return its attributes."""
    from events_core import consume

    stop = asyncio.Event()
    attributes: dict[str, str] = {}

    async def handle(message: ReceivedMessage) -> None:
        attributes.update(message.attributes)
        stop.set()

    await consume(receiver, handle, stop=stop)
    return attributes


def ids(context: SpanContext | None) -> list[str]:
    return [] if context is None else [format(context.trace_id, "032x"), format(context.span_id, "016x")]


def shown(span: ReadableSpan) -> dict[str, Any]:
    scope = span.instrumentation_scope
    return {
        "name": span.name,
        "scope": scope.name if scope else "",
        "kind": span.kind.name,
        "ids": ids(span.context),
        "parent": ids(span.parent),
        "links": [ids(link.context) for link in span.links],
        "attributes": dict(span.attributes or {}),
    }


def main(command: str, *arguments: str) -> None:
    exporter = InMemorySpanExporter()
    PROVIDER.add_span_processor(SimpleSpanProcessor(exporter))
    ConfluentKafkaInstrumentor().instrument(tracer_provider=PROVIDER)
    scenario = {"ours": ours, "from_other": from_other, "to_other": to_other}[command]
    attributes = asyncio.run(scenario(*arguments))
    print(json.dumps({"attributes": attributes, "spans": [shown(span) for span in exporter.get_finished_spans()]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
