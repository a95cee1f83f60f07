"""V1: the observer, and no output."""

from __future__ import annotations

import logging

import pytest

from events_core import AcknowledgeError, EventMessage, Operation
from events_core.testing.rules import rule
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
