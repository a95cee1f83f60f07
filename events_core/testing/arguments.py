"""Q2, R1, R2, R11, S3, C2: wrong arguments."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from events_core import AcknowledgeError, ConfigurationError, ErrorCode, EventMessage
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, texts

__all__ = ["Arguments"]

HALF = "\ud800"
"""Half of a surrogate pair: a str that cannot be encoded."""
TOO_LARGE: Any = 10**400
"""An int that is larger than any float."""

_NO_NAMES: list[tuple[Any, type[Exception]]] = [
    ("", ValueError),
    (HALF, ValueError),
    (7, TypeError),
    (b"name", TypeError),
]
_NO_NUMBERS: list[tuple[Any, type[Exception]]] = [(math.nan, ValueError), (TOO_LARGE, ValueError), ("1", TypeError)]
_NO_DELAYS: list[tuple[Any, type[Exception]]] = [*_NO_NUMBERS, (-1, ValueError), (math.inf, ValueError)]


async def _refused(call: Callable[[Any], Awaitable[object]], value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await call(value)


class Arguments:
    """Wrong arguments, which every backend refuses in the same way, before they reach the broker."""

    @rule("Q2")
    async def test_a_name_that_is_none_is_refused(self, stage: Stage) -> None:
        """A name that is empty or cannot be encoded is a ValueError, and another type is a TypeError."""
        client = stage.client()
        for call in (client.subscribe, client.delete_subscription):
            for value, kind in _NO_NAMES:
                await _refused(call, value, kind)
        await _refused(client.delete_subscription, None, TypeError)

    @pytest.mark.parametrize("option", ["subscription", "dead_letter_topic"])
    @rule("O1")
    async def test_a_configured_name_that_is_no_text_is_refused(self, stage: Stage, option: str) -> None:
        """A configured name with half of a surrogate pair is a ConfigurationError, before any I/O."""
        more = {"max_delivery_attempts": "5"} if option == "dead_letter_topic" else {}
        with pytest.raises(ConfigurationError, match=option):
            stage.client(**{option: f"x{HALF}"}, **more)
        with pytest.raises(ConfigurationError, match="topic_name"):
            stage.client(f"x{HALF}")

    @rule("R1", "R2")
    async def test_a_timeout_that_is_no_number_is_refused(self, stage: Stage) -> None:
        """A timeout of NaN, or beyond the range of a float, is a ValueError, and the receiver goes on."""
        client, receiver = await stage.open()
        # A message is waiting: a call that is refused must not take it.
        await client.send_message(EventMessage(b"x"))
        for value, kind in _NO_NUMBERS:
            await _refused(receiver.receive_message, value, kind)
            await _refused(lambda timeout: receiver.receive_messages(1, timeout), value, kind)
        for limit in ("1", 1.5, math.nan):
            await _refused(receiver.receive_messages, limit, TypeError)
        message = await receiver.receive_message(math.inf)
        assert message is not None
        await receiver.acknowledge(message)

    @rule("R11")
    async def test_a_delay_that_is_no_number_is_refused(self, stage: Stage) -> None:
        """A delay that is not a number is refused, and the message stays held."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        for value, kind in _NO_DELAYS:
            await _refused(lambda delay: receiver.nack(message, delay=delay), value, kind)
            await _refused(lambda delay: receiver.nack_messages([message], delay=delay), value, kind)
        await receiver.acknowledge(message)
        await stage.silence(receiver)

    @rule("S3")
    async def test_an_id_that_is_none_is_refused(self, stage: Stage) -> None:
        """An id that cannot be encoded is NOT_FOUND, and a value of another type is a TypeError."""
        _, receiver = await stage.open()
        for call in (receiver.acknowledge, receiver.nack):
            with pytest.raises(AcknowledgeError) as caught:
                await call(HALF)
            assert caught.value.code is ErrorCode.NOT_FOUND
            for value in (7, None, b"id"):
                await _refused(call, value, TypeError)

    @rule("C2")
    async def test_a_time_to_close_that_is_no_number_closes_nothing(self, stage: Stage) -> None:
        """For close and ping, a timeout of NaN or beyond the range of a float is a ValueError; infinity is not."""
        client, receiver = await stage.open()
        for value, kind in _NO_NUMBERS:
            for call in (receiver.close, client.close, client.ping):
                await _refused(call, value, kind)
        await client.send_message(EventMessage(b"x"))
        assert texts(await stage.drain(receiver, 1)) == ["x"]
        assert await client.ping(math.inf) >= 0
        # A finite time for which no lock can wait: ``threading`` refuses more than its ``TIMEOUT_MAX``.
        await receiver.close(1e300)
        await client.close(math.inf)
