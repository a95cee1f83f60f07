"""One observer sees every operation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from events_core import (
    AcknowledgeError,
    EventConfig,
    EventMessage,
    EventRuntimeError,
    Operation,
    PublishError,
    ReceivedMessage,
    Reject,
    consume,
    create_client,
)
from events_core.observing import observed


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


class Keeping:
    """An observer that keeps its operations, and may act at the start."""

    def __init__(self, act: Callable[[Operation], None] = lambda _: None) -> None:
        self.operations: list[Operation] = []
        self._act = act

    def start(self, operation: Operation) -> None:
        self.operations.append(operation)
        self._act(operation)

    def end(self, operation: Operation, error: BaseException | None) -> None: ...


def test_a_handler_is_observed() -> None:
    """V1, H2: ``consume`` tells of one ``process`` for each message, and then of its settlement."""
    observer = Keeping()

    async def main() -> None:
        async with create_client(EventConfig("handled", backend="memory")) as client, client.subscribe() as receiver:
            await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
            client.observer = observer
            stop = asyncio.Event()

            async def handle(message: ReceivedMessage) -> None:
                if message.data == b"2":
                    stop.set()
                    raise Reject("no")

            await consume(receiver, handle, stop=stop)

    asyncio.run(main())
    seen = [(each.name, each.outcome) for each in observer.operations if each.name != "receive"]
    assert seen == [
        ("process", ""),
        ("settle", "ack"),
        ("process", ""),
        ("settle", "nack"),  # without a dead-letter topic
    ]


def test_an_observer_knows_what_is_ephemeral_and_what_is_named() -> None:
    """V1: generated names would make a metric of each receiver."""
    observer = Keeping()

    async def main() -> None:
        async with create_client(EventConfig("subscribed", backend="memory")) as client:
            client.observer = observer
            for name in (None, "billing"):
                async with client.subscribe(name) as receiver:
                    await receiver.receive_message(0)

    asyncio.run(main())
    assert [each.ephemeral for each in observer.operations] == [True, False]


def test_what_is_no_message_is_refused_as_without_an_observer() -> None:
    """V1, P2: the observer does not see a value of another type, and the send raises TypeError."""
    observer = Keeping()

    async def main() -> None:
        async with create_client(EventConfig("typed", backend="memory")) as client:
            client.observer = observer
            with pytest.raises(TypeError, match="message 1 is a str"):
                await client.send_messages([EventMessage(b"1"), "2"])  # type: ignore[list-item]

    asyncio.run(main())
    (operation,) = observer.operations
    assert (operation.messages, operation.outgoing) == (2, ())


@pytest.mark.parametrize(
    ("index", "attributes", "expected"),
    [(1, {"a": "b"}, IndexError), (-1, {"a": "b"}, IndexError), (0, {"a": 1}, TypeError)],
)
def test_attributes_that_cannot_be_added_change_nothing(
    index: int, attributes: dict[str, str], expected: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """V1: the observer gets the exception, which is logged, and the message is sent."""

    def act(operation: Operation) -> None:
        if operation.name == "publish":
            operation.add_attributes(index, attributes)

    async def main() -> None:
        async with create_client(EventConfig("wrong", backend="memory")) as client, client.subscribe() as receiver:
            client.observer = Keeping(act)
            await client.send_message(EventMessage(b"1"))
            message = await receiver.receive_message()
            assert message is not None
            assert message.attributes == {}

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is expected


def test_what_is_added_counts_for_the_limits_and_fails_no_send() -> None:
    """V1, P2: a message with as many attributes as the broker allows is sent as it is, and another one is extended."""
    full = {f"a{number}": "x" for number in range(100)}
    received: list[dict[str, str]] = []

    def act(operation: Operation) -> None:
        for index in range(len(operation.outgoing)):
            operation.add_attributes(index, {"traceparent": "00"})

    async def main() -> None:
        async with create_client(EventConfig("full", backend="memory")) as client, client.subscribe() as receiver:
            client.observer = Keeping(act)
            await client.send_messages([EventMessage(b"1", full), EventMessage(b"2")])
            received.extend(dict(message.attributes) for message in await receiver.receive_messages(2))

    asyncio.run(main())
    assert received == [full, {"traceparent": "00"}]


def test_an_operation_of_an_older_backend_has_no_messages() -> None:
    """V1: a backend that was written for the first observer tells a name, places and a count."""
    observer = Keeping()
    with observed(observer, "publish", backend="old", topic_name="t", messages=2):
        pass
    (operation,) = observer.operations
    assert (operation.outgoing, operation.received, operation.outcome) == ((), (), "")


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
