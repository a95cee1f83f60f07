"""Traces next to OpenTelemetry's instrumentation of confluent-kafka, which replaces the classes of that library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .console import Console

PROGRAM = Path(__file__).with_name("traced_program.py")
PATIENCE = 300.0
"""Seconds for a program, which bounds its own waits."""
OWN = ["a" * 32, "b" * 16]
"""The ids of a context that an application puts into a message."""
OWN_TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


class Traced:
    """What a traced program has received, and its spans."""

    def __init__(self, console: Console, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, PROGRAM, command, console.address, console.topic, *arguments],
            stdout=subprocess.PIPE,
            timeout=PATIENCE,
            check=True,
        )
        seen = json.loads(done.stdout)
        self.attributes: dict[str, str] = seen["attributes"]
        self.spans: list[dict[str, Any]] = seen["spans"]

    def named(self, name: str) -> dict[str, Any]:
        (span,) = [span for span in self.spans if span["name"] == name]
        return span

    @property
    def instrumented(self) -> list[dict[str, Any]]:
        """The spans of the instrumentation."""
        return [span for span in self.spans if span["scope"] == "opentelemetry.instrumentation.confluent_kafka"]

    def names(self, kind: str) -> list[str]:
        return [span["name"] for span in self.spans if span["kind"] == kind]


def ids(traceparent: str) -> list[str]:
    """Return the ids of the trace and of the span; the last part of *traceparent* is its flags."""
    return traceparent.split("-")[1:3]


def contexts(console: Console) -> list[list[str]]:
    """Return the ids in each header of the first record; it has no headers of other names."""
    (record,) = console.records(1)
    headers = record.headers() or []
    assert {name for name, _ in headers} == {"traceparent"}
    return [ids((value or b"").decode()) for _, value in headers]


def test_there_is_one_producer_and_its_context_arrives(console: Console) -> None:
    """The instrumentation makes no span of what this library sends and receives, and adds no context."""
    traced = Traced(console, "ours")
    assert traced.instrumented == []
    assert traced.names("PRODUCER") == [f"send {console.topic}"]
    sent, processed = traced.named(f"send {console.topic}"), traced.named(f"process {console.topic}")
    assert sent["attributes"]["messaging.system"] == "kafka"
    assert processed["links"] == [sent["ids"]]
    assert processed["parent"] == sent["ids"]
    assert contexts(console) == [sent["ids"]]


def test_a_context_of_the_application_is_not_overwritten(console: Console) -> None:
    """It is the only one in the record, and the sender and the receiver link to it."""
    traced = Traced(console, "ours", OWN_TRACEPARENT)
    assert contexts(console) == [OWN]
    assert traced.named(f"send {console.topic}")["links"] == [OWN]
    assert traced.named(f"process {console.topic}")["links"] == [OWN]


def test_a_trace_of_another_program_goes_on_here(console: Console) -> None:
    """The instrumentation puts its context into the headers of a record of confluent-kafka, and it is found."""
    traced = Traced(console, "from_other")
    (sent,) = traced.instrumented
    assert (sent["name"], sent["kind"]) == (f"{console.topic} send", "PRODUCER")
    assert ids(traced.attributes["traceparent"]) == sent["ids"]
    processed = traced.named(f"process {console.topic}")
    assert processed["links"] == [sent["ids"]]
    assert processed["parent"] == sent["ids"]


def test_of_two_contexts_the_later_one_counts(console: Console) -> None:
    """The instrumentation adds its context after the headers of a record that is sent on; the last header counts."""
    traced = Traced(console, "from_other", OWN_TRACEPARENT)
    (sent,) = traced.instrumented
    assert contexts(console) == [OWN, sent["ids"]]
    assert traced.named(f"process {console.topic}")["links"] == [sent["ids"]]


def test_a_trace_that_begins_here_goes_on_in_another_program(console: Console) -> None:
    """The span of an instrumented consumer of confluent-kafka links to that of the sender."""
    traced = Traced(console, "to_other")
    sent, processed = traced.named(f"send {console.topic}"), traced.named(f"{console.topic} process")
    assert processed in traced.instrumented
    assert processed["links"] == [sent["ids"]]
