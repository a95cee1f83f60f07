"""A program that sends one message to a URL within a span, and prints the spans that it made."""

from __future__ import annotations

import asyncio
import json
import sys

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from events_core import EventMessage, create_client
from events_core.integrations.opentelemetry import instrument


async def main(url: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with instrument(create_client(url), tracer_provider=provider) as client:
        with provider.get_tracer("sender").start_as_current_span("request"):
            await client.send_message(EventMessage(b"x"))
    contexts = {span.name: span.get_span_context() for span in exporter.get_finished_spans()}
    print(json.dumps({name: [context.trace_id, context.span_id] for name, context in contexts.items() if context}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
