"""S6, H3: messages that a handler rejects, or asks for later."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from typing import Any

import pytest

from events_core import (
    AcknowledgeError,
    ConfigurationError,
    ErrorCode,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    ReceivedMessage,
    Reject,
    RetryAfter,
    consume,
)
from events_core.testing.rules import rule
from events_core.testing.skipping import not_declared
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Deciding"]


async def _require_reject(stage: Stage) -> None:
    """End the test if the backend does not declare ``reject``, once it has refused to."""
    # A backend may declare ``reject`` only for some configurations; the class tells the most that it can do.
    if not type(stage.client()).full_capabilities.reject:
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        await stage.refused("reject", lambda: receiver.reject(message))


async def _received(stage: Stage, **options: str) -> tuple[EventReceiver, ReceivedMessage]:
    client, receiver = await stage.open(**options)
    await client.send_message(EventMessage(b"x", {"a": "b"}))
    return receiver, await stage.receive(receiver)


def _assert_is_letter(letter: ReceivedMessage, stage: Stage, reason: str) -> None:
    assert letter.data == b"x"
    assert letter.attributes.get("a") == "b", "the letter lost an attribute of the message"
    assert any(stage.subscription in value for value in letter.attributes.values()), (
        "the letter's attributes do not name the subscription that it comes from"
    )
    assert reason in letter.attributes.values(), "the letter's attributes do not give the reason"


class Deciding:
    """Handlers that decide what becomes of a message."""

    @rule("S6", proves=["reject"])
    async def test_a_rejected_message_is_dead_lettered_at_once(self, stage: Stage) -> None:
        """At its first attempt it goes to the dead-letter topic, with the reason, and only there."""
        await _require_reject(stage)
        dead = await stage.undertaker()
        receiver, message = await _received(stage, **stage.dead_letters)
        await receiver.reject(message, "no total")
        assert receiver.stats.held == 0
        _assert_is_letter(await stage.receive(dead), stage, "no total")
        await stage.silence(receiver, dead)

    @rule("S6", "S2")
    async def test_rejecting_twice_is_a_no_op(self, stage: Stage) -> None:
        """One letter comes of it, and every other outcome is ALREADY_SETTLED."""
        await _require_reject(stage)
        dead = await stage.undertaker()
        receiver, message = await _received(stage, **stage.dead_letters)
        for target in (message, message, message.message_id):
            await receiver.reject(target)
        for settle in (receiver.acknowledge, receiver.nack):
            with pytest.raises(AcknowledgeError) as caught:
                await settle(message)
            assert caught.value.code is ErrorCode.ALREADY_SETTLED
        await stage.drain(dead, 1)
        await stage.silence(receiver, dead)

    @rule("S6", "R8")
    async def test_a_rejected_message_frees_its_key(self, stage: Stage) -> None:
        """Its successors come in order, those in hand can be settled, and the letters keep the order of the key."""
        await _require_reject(stage)
        await stage.require_ordering()
        try:
            stage.client(ordering="true", **stage.dead_letters)
        except ConfigurationError:
            not_declared("dead_letter together with ordering")
        dead = await stage.undertaker(ordering="true")
        client, receiver = await stage.open_ordered(**stage.dead_letters)
        await client.send_messages(numbered(6, key="k"))
        came: list[ReceivedMessage] = []
        while len(came) < 6:
            run = await receiver.receive_messages(3, stage.harness.patience)
            assert run, f"{len(came)} of 6 messages came, then none within {stage.harness.patience} s"
            for message in run:
                # Every second one: those between must come in order, and the letters too.
                await (receiver.reject if len(came) % 2 else receiver.acknowledge)(message)
                came.append(message)
        assert texts(came) == texts(numbered(6))
        letters = await stage.drain(dead, 3)
        assert [(each.data, each.ordering_key) for each in letters] == [(b"0001", "k"), (b"0003", "k"), (b"0005", "k")]
        await stage.silence(receiver)

    @rule("S6")
    async def test_rejecting_without_a_dead_letter_topic_is_refused(self, stage: Stage) -> None:
        """Without the option ``dead_letter_topic`` it is UNSUPPORTED, and the message stays held."""
        receiver, message = await _received(stage)
        with pytest.raises(EventRuntimeError) as caught:
            await receiver.reject(message)
        assert caught.value.code is ErrorCode.UNSUPPORTED
        assert receiver.stats.held == 1
        await receiver.acknowledge(message)
        await stage.silence(receiver)

    @rule("S6")
    async def test_a_reason_that_is_no_text_is_refused(self, stage: Stage) -> None:
        """A reason of another type is a TypeError, and the message stays held."""
        await _require_reject(stage)
        receiver, message = await _received(stage, **stage.dead_letters)
        reason: Any = ValueError("no total")
        with pytest.raises(TypeError):
            await receiver.reject(message, reason)
        await receiver.acknowledge(message)
        await stage.silence(receiver)

    @rule("H3")
    async def test_a_handler_rejects_its_message(self, stage: Stage) -> None:
        """The message is dead-lettered with the reason, and the exception goes on."""
        await _require_reject(stage)
        dead = await stage.undertaker()
        receiver, message = await _received(stage, **stage.dead_letters)
        with pytest.raises(Reject):
            async with receiver.processing(message):
                raise Reject("no total")
        assert receiver.stats.held == 0
        _assert_is_letter(await stage.receive(dead), stage, "no total")
        await stage.silence(receiver, dead)

    @rule("H3")
    async def test_a_message_that_cannot_be_rejected_is_nacked(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without a dead-letter topic an ERROR names the message, and it comes again with its attempt counted."""
        receiver, message = await _received(stage)
        with pytest.raises(Reject):
            async with receiver.processing(message):
                raise Reject("no total")
        assert receiver.stats.held == 0
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert [text for text in errors if message.message_id in text], f"no ERROR names the message: {errors}"
        (again,) = await stage.drain(receiver, 1)
        assert again.delivery_attempt == (2 if receiver.capabilities.delivery_attempts else None)

    @rule("H3", "R11")
    async def test_a_handler_asks_for_its_message_later(self, stage: Stage) -> None:
        """It does not come before the delay is over, its attempt is counted, and the exception goes on."""
        receiver, message = await _received(stage)
        began = time.monotonic()
        with pytest.raises(RetryAfter):
            async with receiver.processing(message):
                raise RetryAfter(stage.short_delay)
        assert receiver.stats.held == 0
        (again,) = await stage.drain(receiver, 1)
        assert time.monotonic() - began >= stage.short_delay, "it came before its delay was over"
        assert again.delivery_attempt == (2 if receiver.capabilities.delivery_attempts else None)

    @rule("H3", "R11")
    async def test_a_delay_beyond_the_limit_is_shortened(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        """The message is nacked with the broker's longest delay, and a WARNING names it."""
        longest = float(stage.require("limits.max_nack_delay"))
        receiver, message = await _received(stage)
        with pytest.raises(RetryAfter):
            async with receiver.processing(message):
                raise RetryAfter(longest + 1)
        assert receiver.stats.held == 0, "the message was not nacked"
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert [text for text in warnings if message.message_id in text], f"no WARNING names the message: {warnings}"
        # With a shorter limit the message may rightly come within the time of the silence.
        if longest > stage.harness.settle_time:
            await stage.silence(receiver)

    @rule("H3", "H2")
    async def test_consuming_goes_on_after_a_rejection(self, stage: Stage) -> None:
        """The message is handled once and dead-lettered, and the others are handled as if nothing had happened."""
        await _require_reject(stage)
        dead = await stage.undertaker()
        client, receiver = await stage.open(**stage.dead_letters)
        await client.send_messages(numbered(3))
        handled: dict[str, int] = defaultdict(int)
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            handled[message.data_as_string()] += 1
            if len(handled) == 3:
                stop.set()
            if message.data == b"0001":
                raise Reject("no total")

        await consume(receiver, handle, stop=stop)
        assert handled == {"0000": 1, "0001": 1, "0002": 1}
        assert texts(await stage.drain(dead, 1)) == ["0001"]
        await stage.silence(receiver, dead)

    @rule("H3", "H2", "R8")
    async def test_consuming_keeps_the_order_of_a_key_that_waits(self, stage: Stage) -> None:
        """While a message waits for its delay, other keys go on, and its successors come after it."""
        client, receiver = await stage.open_ordered()
        await client.send_messages([*numbered(3, key="a"), *numbered(3, key="b")])
        handled: dict[str | None, list[str]] = defaultdict(list)
        stop = asyncio.Event()
        asked = False

        async def handle(message: ReceivedMessage) -> None:
            nonlocal asked
            if message.ordering_key == "a" and message.data == b"0001" and not asked:
                asked = True
                raise RetryAfter(stage.short_delay)
            handled[message.ordering_key].append(message.data_as_string())
            if sum(map(len, handled.values())) == 6:
                stop.set()

        await consume(receiver, handle, concurrency=2, stop=stop)
        assert handled == {"a": texts(numbered(3)), "b": texts(numbered(3))}
        await stage.silence(receiver)
