"""Traces next to OpenTelemetry's instrumentation of aiobotocore, which changes that library for the whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from .server import KEY, SECRET, Server

PROGRAM = Path(__file__).with_name("traced_program.py")
PATIENCE = 300.0
"""Seconds for a program, which bounds its own waits."""
OWN = ["a" * 32, "b" * 16]
"""The ids of a context that an application puts into a message."""
OWN_TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


class Traced:
    """What a traced program has received, and its spans."""

    def __init__(self, server: Server, topic: str, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, PROGRAM, command, server.url, topic, *arguments],
            env={**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
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
        return [span for span in self.spans if span["scope"].startswith("opentelemetry.instrumentation.botocore")]

    def names(self, kind: str) -> list[str]:
        return [span["name"] for span in self.spans if span["kind"] == kind]


@pytest.fixture
def topic() -> str:
    return f"traced-{uuid.uuid4().hex[:12]}"


def ids(traceparent: str) -> list[str]:
    """Return the ids of the trace and of the span; the last part of *traceparent* is its flags."""
    return traceparent.split("-")[1:3]


def test_there_is_one_producer_and_its_context_arrives(server: Server, topic: str) -> None:
    """The instrumentation makes no span of what this library asks of AWS, and does not replace the context."""
    traced = Traced(server, topic, "ours")
    assert traced.instrumented == []
    assert traced.names("PRODUCER") == [f"send {topic}"]
    sent, processed = traced.named(f"send {topic}"), traced.named(f"process {topic}")
    assert sent["attributes"]["messaging.system"] == "aws_sqs"
    assert processed["links"] == [sent["ids"]]
    assert processed["parent"] == sent["ids"]
    assert ids(traced.attributes["traceparent"]) == sent["ids"]


def test_a_context_of_the_application_is_not_overwritten(server: Server, topic: str) -> None:
    """It arrives, and the sender and the receiver link to it."""
    traced = Traced(server, topic, "ours", OWN_TRACEPARENT)
    assert ids(traced.attributes["traceparent"]) == OWN
    assert traced.named(f"send {topic}")["links"] == [OWN]
    assert traced.named(f"process {topic}")["links"] == [OWN]


def test_a_trace_of_another_program_goes_on_here(server: Server, topic: str) -> None:
    """The instrumentation puts its context into the attributes of what bare aiobotocore publishes, and it is found."""
    traced = Traced(server, topic, "from_other")
    sent = traced.named(f"{topic} send")
    assert sent in traced.instrumented
    assert ids(traced.attributes["traceparent"]) == sent["ids"]
    processed = traced.named(f"process {topic}")
    assert processed["links"] == [sent["ids"]]
    assert processed["parent"] == sent["ids"]


def test_a_trace_that_begins_here_goes_on_in_another_program(server: Server, topic: str) -> None:
    """The context of the span that sends is an attribute of the message, as SQS shows it."""
    traced = Traced(server, topic, "to_other")
    assert ids(traced.attributes["traceparent"]) == traced.named(f"send {topic}")["ids"]
