"""A program next to OpenTelemetry's instrumentation of aiobotocore, which prints what it received and traced.

::

    python traced_program.py ours URL TOPIC [TRACEPARENT]
    python traced_program.py from_other URL TOPIC
    python traced_program.py to_other URL TOPIC

*other* is bare aiobotocore.  A message that is sent has the attribute ``traceparent`` if one is given.

The instrumentation changes a class of aiobotocore for the whole process.  So this is a program of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from aiobotocore.session import get_session
from opentelemetry.instrumentation.botocore import AiobotocoreInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from events_core import EventClient, EventMessage, EventReceiver, ReceivedMessage, consume, create_client
from events_core.integrations.opentelemetry import instrument

PATIENCE = 60.0
REGION = "us-east-1"
ACCOUNT = "000000000000"
PROVIDER = TracerProvider()


async def ours(url: str, topic: str, traceparent: str = "") -> dict[str, str]:
    """Send a message and process it, both with this library; return its attributes."""
    async with asyncio.timeout(PATIENCE), client(url, topic) as both, both.subscribe() as receiver:
        await both.send_message(EventMessage(b"x", {"traceparent": traceparent} if traceparent else {}))
        return await process(receiver)


async def from_other(url: str, topic: str) -> dict[str, str]:
    """Publish a message with aiobotocore and process it with this library; return its attributes."""
    async with asyncio.timeout(PATIENCE), client(url, topic) as both, both.subscribe() as receiver:
        async with get_session().create_client("sns", region_name=REGION, endpoint_url=url) as sns:
            await sns.publish(TopicArn=f"arn:aws:sns:{REGION}:{ACCOUNT}:{topic}", Message="x")
        return await process(receiver)


async def to_other(url: str, topic: str) -> dict[str, str]:
    """Send a message with this library and receive it with aiobotocore; return its attributes."""
    async with asyncio.timeout(2 * PATIENCE), client(url, topic) as sender:
        await sender.send_message(EventMessage(b"x"))
        async with get_session().create_client("sqs", region_name=REGION, endpoint_url=url) as sqs:
            queue = (await sqs.get_queue_url(QueueName=f"{topic}-s"))["QueueUrl"]
            got = await sqs.receive_message(QueueUrl=queue, MessageAttributeNames=["All"], WaitTimeSeconds=20)
            (message,) = got["Messages"]
            return {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}


def client(url: str, topic: str) -> EventClient:
    patient = dict.fromkeys(("send_timeout", "ack_timeout", "connect_timeout"), "300")
    options = {"subscription": "s", "create": "all", "endpoint_url": url, **patient}
    return instrument(create_client(f"sqs://{REGION}/{topic}", options=options), tracer_provider=PROVIDER)


async def process(receiver: EventReceiver) -> dict[str, str]:
    """Process one message, and return its attributes."""
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
    AiobotocoreInstrumentor().instrument(tracer_provider=PROVIDER)
    scenario = {"ours": ours, "from_other": from_other, "to_other": to_other}[command]
    attributes = asyncio.run(scenario(*arguments))
    print(json.dumps({"attributes": attributes, "spans": [shown(span) for span in exporter.get_finished_spans()]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
