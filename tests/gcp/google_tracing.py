"""A program that sends or receives one message with Google's own client and its tracing, and prints what it saw.

It is a separate program, because Google's client leaves threads running, and takes the global provider of spans only.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading

from google.auth.credentials import AnonymousCredentials
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.cloud.pubsub_v1.subscriber.message import Message
from google.cloud.pubsub_v1.types import PublisherOptions, SubscriberOptions
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PATIENCE = 60.0


def send(topic: str) -> dict[str, str]:
    """Send a message."""
    options = PublisherOptions(enable_open_telemetry_tracing=True)
    with PublisherClient(publisher_options=options, credentials=AnonymousCredentials()) as publisher:
        publisher.publish(topic, b"x").result(PATIENCE)
    return {}


def receive(subscription: str) -> dict[str, str]:
    """Receive a message, and return its attributes."""
    handled = threading.Event()
    attributes: dict[str, str] = {}

    def handle(message: Message) -> None:
        attributes.update(message.attributes)
        message.ack()
        handled.set()

    options = SubscriberOptions(enable_open_telemetry_tracing=True)
    with SubscriberClient(subscriber_options=options, credentials=AnonymousCredentials()) as subscriber:
        pulling = subscriber.subscribe(subscription, handle)
        handled.wait(PATIENCE)
        pulling.cancel()
        with contextlib.suppress(Exception):
            pulling.result(PATIENCE)
    return attributes


def main(command: str, place: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    attributes = {"send": send, "receive": receive}[command](place)
    spans = {
        span.name: {
            "span": [span.context.trace_id, span.context.span_id],
            "parent": [span.parent.trace_id, span.parent.span_id] if span.parent else None,
        }
        for span in exporter.get_finished_spans()
        if span.context is not None
    }
    print(json.dumps({"attributes": attributes, "spans": spans}))


if __name__ == "__main__":
    main(*sys.argv[1:])
