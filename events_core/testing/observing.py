"""V1: the observer, and no output."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from events_core import AcknowledgeError, EventMessage, Operation
from events_core.testing.rules import rule
from events_core.testing.skipping import not_shown
from events_core.testing.stage import Stage, numbered

__all__ = ["Observing", "Recorder"]


class Recorder:
    """An observer that records each operation."""

    def __init__(self) -> None:
        self.begun: list[Operation] = []
        self.ended: list[tuple[Operation, BaseException | None]] = []

    def start(self, operation: Operation) -> None:
        """Record the start of *operation*."""
        # The observer may keep its own state in the operation, from its start to its end.
        operation.context = self
        self.begun.append(operation)

    def end(self, operation: Operation, error: BaseException | None) -> None:
        """Record the end of *operation*."""
        assert operation.context is self
        self.ended.append((operation, error))

    def messages(self, name: str) -> int:
        """Return the number of messages in the operations called *name* that succeeded."""
        return sum(operation.messages for operation, error in self.ended if operation.name == name and error is None)


class _Adding(Recorder):
    """An observer that adds attributes to what is sent."""

    def __init__(self, attributes: Mapping[str, str]) -> None:
        super().__init__()
        self._attributes = attributes

    def start(self, operation: Operation) -> None:
        super().start(operation)
        for index in range(len(operation.outgoing)):
            operation.add_attributes(index, self._attributes)


class _Failing:
    """An observer that raises."""

    def start(self, operation: Operation) -> None:
        raise LookupError("at the start")

    def end(self, operation: Operation, error: BaseException | None) -> None:
        raise LookupError("at the end")


def _handlers() -> dict[str, list[logging.Handler]]:
    """Return the handlers of each logger that has some."""
    # From the root and from every logger, because a library may add a handler to any of them.
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = {logger.name: list(logger.handlers) for logger in loggers if isinstance(logger, logging.Logger)}
    return {name: handlers for name, handlers in found.items() if handlers}


class Observing:
    """Observers, logs and output."""

    @rule("V1")
    async def test_an_observer_is_told_of_each_operation(self, stage: Stage) -> None:
        """Publish, receive and settle begin and end, with their topic, subscription and number of messages."""
        client, receiver = await stage.open()
        recorder = client.observer = Recorder()
        await client.send_message(EventMessage(b"x"))
        await client.send_messages(numbered(2))
        await stage.drain(receiver, 3)
        assert [operation for operation, _ in recorder.ended] == recorder.begun
        assert {name: recorder.messages(name) for name in ("publish", "receive", "settle")} == {
            "publish": 3,
            "receive": 3,
            "settle": 3,
        }
        for operation in recorder.begun:
            subscription = "" if operation.name == "publish" else stage.subscription
            assert (operation.topic_name, operation.subscription) == (stage.topic_name, subscription)

    @rule("V1")
    async def test_an_observer_sees_the_messages(self, stage: Stage) -> None:
        """It sees what is sent, with the ids, what is received, and what is settled, with the outcome."""
        client, receiver = await stage.open()
        recorder = client.observer = Recorder()
        sent = numbered(2)
        ids = await client.send_messages(sent)
        if not recorder.begun[0].outgoing:
            not_shown("the messages of an operation, which this backend does not tell an observer")
        received = await stage.drain(receiver, 2)
        publishing, *others = recorder.begun
        assert (list(publishing.outgoing), list(publishing.message_ids)) == (sent, ids)
        for name in ("receive", "settle"):
            seen = [message for operation in others if operation.name == name for message in operation.received]
            assert [message.message_id for message in seen] == [message.message_id for message in received]
        assert {operation.outcome for operation in others if operation.name == "settle"} == {"ack"}

    @rule("V1")
    async def test_an_observer_is_told_of_processing(self, stage: Stage) -> None:
        """The operation lasts as long as the handler, has its exception, and ends before the message is settled."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        recorder = client.observer = Recorder()
        failure = ArithmeticError()

        async def process() -> None:
            async with receiver.processing(message):
                if not recorder.begun:
                    not_shown("the processing of a message, which this backend does not tell an observer")
                assert recorder.ended == []
                raise failure

        with pytest.raises(ArithmeticError):
            await process()
        assert [(each.name, each.outcome, error) for each, error in recorder.ended] == [
            ("process", "", failure),
            ("settle", "nack", None),
        ]
        assert [list(operation.received) for operation in recorder.begun] == [[message], [message]]
        await stage.drain(receiver, 1)

    @rule("V1")
    async def test_an_observer_adds_attributes(self, stage: Stage) -> None:
        """The attributes that it adds arrive with each message, and an attribute of the application stays."""
        client, receiver = await stage.open()
        recorder = client.observer = _Adding({"traceparent": "added", "own": "added"})
        await client.send_message(EventMessage(b"x", {"own": "sent"}))
        if not recorder.begun[0].outgoing:
            not_shown("attributes that an observer adds, because this backend does not tell it the messages")
        await client.send_messages([EventMessage(b"y", {"own": "sent"})])
        for message in await stage.drain(receiver, 2):
            assert message.attributes == {"traceparent": "added", "own": "sent"}

    @rule("V1")
    async def test_attributes_of_an_observer_never_fail_a_send(self, stage: Stage) -> None:
        """A message that could not be sent with them is sent without them."""
        client, receiver = await stage.open()
        # No broker takes half of a surrogate pair, and not every broker limits the number or size of attributes.
        recorder = client.observer = _Adding({"traceparent": "\udc80"})
        await client.send_message(EventMessage(b"x", {"own": "sent"}))
        if not recorder.begun[0].outgoing:
            not_shown("attributes that an observer adds, because this backend does not tell it the messages")
        (message,) = await stage.drain(receiver, 1)
        assert message.attributes == {"own": "sent"}

    @rule("V1")
    async def test_an_observer_is_told_of_failures(self, stage: Stage) -> None:
        """The end of an operation that fails has its exception."""
        client, receiver = await stage.open()
        recorder = client.observer = Recorder()
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge("no-such-id")
        assert [(operation.name, error) for operation, error in recorder.ended] == [("settle", caught.value)]

    @rule("V1")
    async def test_an_observer_that_fails_changes_nothing(self, stage: Stage) -> None:
        """An observer that raises does not change how messages are sent, received and acknowledged."""
        client, receiver = await stage.open()
        client.observer = _Failing()
        await client.send_message(EventMessage(b"x"))
        await stage.drain(receiver, 1)
        await stage.silence(receiver)

    @rule("V1")
    async def test_nothing_is_printed(self, stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
        """The library prints to neither standard stream, and adds no handler to a logger."""
        handlers = _handlers()
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        await stage.drain(receiver, 1)
        await client.close()
        assert tuple(capfd.readouterr()) == ("", "")
        assert _handlers() == handlers
