"""Traces that begin or end in Google's own client, which keeps their context in attributes of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from events_core import ErrorCode, EventMessage, PublishError, ReceivedMessage, consume
from events_core.integrations.opentelemetry import instrument
from events_gcp import GcpPubSubClient

from .console import Console, client

GOOGLE = Path(__file__).with_name("google_tracing.py")
PATIENCE = 60.0


class Traced:
    """A topic with a subscription, an instrumented client of it, and its spans."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.topic = console.topic_name
        self.subscription = f"{self.topic}-s"
        console.create(self.subscription)
        self._exporter, self._provider = InMemorySpanExporter(), TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def client(self) -> GcpPubSubClient:
        return instrument(self.console.client(), tracer_provider=self._provider)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def google(self, command: str, place: str) -> Any:
        """Let Google's client send or receive; return what it saw."""
        done = subprocess.run(
            [sys.executable, GOOGLE, command, place],
            env={**os.environ, "PUBSUB_EMULATOR_HOST": self.console.emulator},
            stdout=subprocess.PIPE,
            timeout=2 * PATIENCE,
            check=True,
        )
        return json.loads(done.stdout)


@pytest.fixture
def traced(console: Console) -> Traced:
    return Traced(console)


def ids(context: SpanContext | None) -> list[int]:
    assert context is not None
    return [context.trace_id, context.span_id]


def test_a_trace_of_googles_publisher_goes_on_here(traced: Traced) -> None:
    """The span of the handler is below the span ``create`` of Google's client."""
    created = traced.google("send", traced.console.topic)["spans"][f"{traced.topic} create"]["span"]
    seen: list[ReceivedMessage] = []
    stop = asyncio.Event()

    async def handle(message: ReceivedMessage) -> None:
        seen.append(message)
        stop.set()

    async def test() -> None:
        async with asyncio.timeout(PATIENCE), traced.client() as ours, ours.subscribe(traced.subscription) as receiver:
            await consume(receiver, handle, stop=stop)

    asyncio.run(test())
    assert set(seen[0].attributes) == {"googclient_traceparent"}
    (processed,) = traced.spans(f"process {traced.topic}")
    assert ids(processed.parent) == created
    assert [ids(link.context) for link in processed.links] == [created]
    assert processed.attributes is not None
    assert processed.attributes["messaging.system"] == "gcp_pubsub"
    address = f"{processed.attributes['server.address']}:{processed.attributes['server.port']}"
    assert address == traced.console.emulator


def test_a_trace_that_begins_here_goes_on_in_googles_subscriber(traced: Traced) -> None:
    """The span ``subscribe`` of Google's client is below the span ``send`` of this library."""

    async def send() -> None:
        async with traced.client() as ours:
            await ours.send_message(EventMessage(b"x"))

    asyncio.run(send())
    seen = traced.google("receive", traced.console.path(traced.subscription))
    assert set(seen["attributes"]) == {"traceparent", "googclient_traceparent"}
    assert seen["attributes"]["traceparent"] == seen["attributes"]["googclient_traceparent"]
    (sent,) = traced.spans(f"send {traced.topic}")
    assert seen["spans"][f"{traced.subscription} subscribe"]["parent"] == ids(sent.context)


def test_a_context_of_the_application_is_sent_in_both_forms(traced: Traced) -> None:
    """A message that carries one form only gets the other one with the same context."""
    own = f"00-{'a' * 32}-{'b' * 16}-01"

    async def send() -> None:
        async with traced.client() as ours:
            await ours.send_message(EventMessage(b"1", {"traceparent": own}))
            await ours.send_message(EventMessage(b"2", {"googclient_traceparent": own}))

    asyncio.run(send())
    found: dict[bytes, dict[str, str]] = {}
    while len(found) < 2:
        found |= {
            message.data: dict(message.attributes) for message in traced.console.pull(traced.subscription).values()
        }
    both = {"traceparent": own, "googclient_traceparent": own}
    assert found == {b"1": both, b"2": both}
    spans = traced.spans(f"send {traced.topic}")
    assert [ids(link.context) for span in spans for link in span.links] == [[int("a" * 32, 16), int("b" * 16, 16)]] * 2


def test_attributes_of_googles_clients_count_for_the_limit() -> None:
    """They may be sent, but a message with 101 attributes is INVALID with them too."""
    own = {"googclient_traceparent": "x"}
    ours = client()
    assert ours._driver.objection(EventMessage(b"", own)) == ""
    full = own | {f"a{number}": "x" for number in range(100)}
    with pytest.raises(PublishError, match="101 attributes") as caught:
        asyncio.run(ours.send_message(EventMessage(b"", full)))
    assert caught.value.code is ErrorCode.INVALID
