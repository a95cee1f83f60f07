"""One observer sees every operation."""

from __future__ import annotations

import asyncio
import logging

import pytest

from events_core import (
    AcknowledgeError,
    EventConfig,
    EventMessage,
    EventRuntimeError,
    Operation,
    PublishError,
    create_client,
)


class Recorder:
    """An observer that records its calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int, str]] = []

    def start(self, operation: Operation) -> None:
        operation.context = len(self.seen)
        self.seen.append(("start", operation.name, operation.messages, ""))

    def end(self, operation: Operation, error: BaseException | None) -> None:
        assert operation.context is not None
        self.seen.append(("end", operation.name, operation.messages, type(error).__name__ if error else ""))


class Failing:
    """An integration with a defect."""

    def start(self, operation: Operation) -> None:
        raise LookupError("at the start")

    def end(self, operation: Operation, error: BaseException | None) -> None:
        raise LookupError("at the end")


def test_start_and_end_with_outcome() -> None:
    """V1: publish, receive and settle, each with its number of messages and its error."""
    recorder = Recorder()

    async def main() -> None:
        async with create_client(EventConfig("observed", backend="memory")) as client:
            client.observer = recorder
            receiver = await client.subscribe()
            await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
            with pytest.raises(PublishError):
                await client.send_message(EventMessage(bytes(20_000_000)))
            messages = await receiver.receive_messages(10)
            await receiver.acknowledge_messages(messages)
            with pytest.raises(AcknowledgeError):
                await receiver.nack("nope")

    asyncio.run(main())
    assert recorder.seen == [
        ("start", "publish", 2, ""),
        ("end", "publish", 2, ""),
        ("start", "publish", 1, ""),
        ("end", "publish", 1, "PublishError"),
        ("start", "receive", 0, ""),
        ("end", "receive", 2, ""),
        ("start", "settle", 2, ""),
        ("end", "settle", 2, ""),
        ("start", "settle", 1, ""),
        ("end", "settle", 1, "AcknowledgeError"),
    ]


def test_a_send_on_a_closed_client_is_observed() -> None:
    """V1: an operation that a closed client refuses has a start, and an end with the error."""
    recorder = Recorder()

    async def main() -> None:
        async with create_client(EventConfig("closed", backend="memory")) as client:
            client.observer = recorder
        with pytest.raises(EventRuntimeError, match="closed"):
            await client.send_message(EventMessage(b"1"))
        with pytest.raises(EventRuntimeError, match="closed"):
            await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])

    asyncio.run(main())
    assert recorder.seen == [
        ("start", "publish", 1, ""),
        ("end", "publish", 1, "EventRuntimeError"),
        ("start", "publish", 2, ""),
        ("end", "publish", 2, "EventRuntimeError"),
    ]


def test_a_failing_observer_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """V1: the exceptions of the observer are logged."""

    async def main() -> None:
        async with create_client(EventConfig("misobserved", backend="memory")) as client:
            client.observer = Failing()
            await client.send_message(EventMessage(b"1"))

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "at the start" in caplog.text
    assert "at the end" in caplog.text
