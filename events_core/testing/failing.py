"""§5: errors, by class, code and place."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest

from events_core import (
    AcknowledgeError,
    ErrorCode,
    EventError,
    EventMessage,
    EventRuntimeError,
    PublishError,
    ReceiveError,
)
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered

__all__ = ["Failing"]


class Failing:
    """Errors, for each kind of operation."""

    async def _caught(self, stage: Stage, kind: type[EventError], call: Awaitable[object]) -> EventError:
        """Return the error that *call* raises, after checking that it names the backend and the topic."""
        with pytest.raises(kind) as caught:
            await call
        error = caught.value
        place = (error.backend, error.topic_name)
        assert place == (stage.config().backend, stage.topic_name), (
            f"{error!r} names {place}, not the backend and the topic"
        )
        return error

    @rule("§5")
    async def test_the_class_says_which_operation_failed(self, stage: Stage) -> None:
        """Sending, subscribing and settling each raise their own class, with backend and topic."""
        client, receiver = await stage.open()
        missing = stage.name("missing")
        error = await self._caught(stage, ReceiveError, client.delete_subscription(missing))
        assert (error.code, error.retryable) == (ErrorCode.NOT_FOUND, False)
        for settle in (receiver.acknowledge, receiver.nack):
            error = await self._caught(stage, AcknowledgeError, settle("no-such-id"))
            assert (error.code, error.retryable) == (ErrorCode.NOT_FOUND, False)
        bounded = stage.client(publish_max_messages="1", publish_on_limit="error")
        error = await self._caught(stage, PublishError, bounded.send_messages(numbered(2)))
        assert (error.code, error.retryable) == (ErrorCode.EXHAUSTED, True)

    @rule("§5")
    async def test_a_refused_message_is_an_error_of_sending(self, stage: Stage) -> None:
        """A message that is too large is INVALID, alone or in a batch, with backend and topic."""
        largest = stage.require("limits.max_message_bytes")
        client = stage.client()
        bad = EventMessage(bytes(largest + 1))
        for sending in (client.send_message(bad), client.send_messages([bad])):
            error = await self._caught(stage, PublishError, sending)
            assert (error.code, error.retryable) == (ErrorCode.INVALID, False)

    @rule("§5", "S4")
    async def test_each_failure_of_a_batch_is_an_error_of_settling(self, stage: Stage) -> None:
        """Each error in ``failed`` has class, backend and topic as if it had been raised alone."""
        _, receiver = await stage.open()
        for settle in (receiver.acknowledge_messages, receiver.nack_messages):
            error = await self._caught(stage, AcknowledgeError, settle(["no-such-id", "nor-this"]))
            assert isinstance(error, AcknowledgeError)
            for each in error.failed.values():
                assert isinstance(each, AcknowledgeError), f"it is a {type(each).__name__}"
                assert (each.backend, each.topic_name) == (error.backend, error.topic_name)

    @rule("§5", "C3")
    async def test_what_is_closed_says_where(self, stage: Stage) -> None:
        """CLOSED is an ``EventRuntimeError`` for every operation."""
        client, receiver = await stage.open()
        await client.close()
        for call in (client.ping(), client.subscribe(), receiver.receive_message()):
            error = await self._caught(stage, EventRuntimeError, call)
            assert (error.code, error.retryable) == (ErrorCode.CLOSED, False)
