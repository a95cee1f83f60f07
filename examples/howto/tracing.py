"""One trace from a request to the handler of a worker, as a tree."""

from __future__ import annotations

import asyncio

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)

from events_core import (
    EventMessage,
    ReceivedMessage,
    consume,
    create_client,
)
from events_core.integrations.opentelemetry import instrument

exporter = InMemorySpanExporter()
# In your program: BatchSpanProcessor(OTLPSpanExporter()), and
# trace.set_tracer_provider(provider).
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer("shop")


async def main() -> None:
    client = create_client("memory:///orders?subscription=billing")
    instrument(client, tracer_provider=provider)
    stop = asyncio.Event()

    async def bill(message: ReceivedMessage) -> None:
        with tracer.start_as_current_span("charge the card"):
            stop.set()

    async with client, client.subscribe() as receiver:
        with tracer.start_as_current_span("POST /orders"):
            await client.send_message(EventMessage(b"a book"))
        await consume(receiver, bill, stop=stop)


def show(
    spans: list[ReadableSpan], parent: int = 0, depth: int = 0
) -> None:
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if (span.parent.span_id if span.parent else 0) == parent:
            linked = " (links to the sender)" if span.links else ""
            print(f"{'  ' * depth}{span.name}{linked}")
            show(spans, span.get_span_context().span_id, depth + 1)


if __name__ == "__main__":
    asyncio.run(main())
    show(list(exporter.get_finished_spans()))
