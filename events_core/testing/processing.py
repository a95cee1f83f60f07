"""H1, H2: ``processing``, and ``consume``."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Any

import pytest

from events_core import EventMessage, EventReceiver, ReceivedMessage, consume
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Processing"]


async def _received(stage: Stage, **options: str) -> tuple[EventReceiver, ReceivedMessage]:
    client, receiver = await stage.open(**options)
    await client.send_message(EventMessage(b"x"))
    return receiver, await stage.receive(receiver)


async def _assert_uncounted(stage: Stage, receiver: EventReceiver) -> None:
    """Check that the message comes again, and that its attempt was not counted where the backend can do that."""
    (again,) = await stage.drain(receiver, 1)
    found = receiver.capabilities
    if found.delivery_attempts and not found.handback_counts:
        assert again.delivery_attempt == 1, "handing back counted an attempt"
    await stage.silence(receiver)


class Processing:
    """Messages that are settled by how their handlers end."""

    @rule("H1")
    async def test_what_was_processed_is_acknowledged(self, stage: Stage) -> None:
        """A message whose block succeeds is acknowledged."""
        receiver, message = await _received(stage)
        async with receiver.processing(message) as processed:
            assert processed is message
            assert receiver.stats.held == 1
        assert receiver.stats.held == 0
        await stage.silence(receiver)

    @rule("H1")
    async def test_what_failed_is_nacked(self, stage: Stage) -> None:
        """A message whose block raises comes again with its attempt counted, and the exception goes on."""
        receiver, message = await _received(stage)
        with pytest.raises(ArithmeticError):
            async with receiver.processing(message):
                raise ArithmeticError
        assert receiver.stats.held == 0
        (again,) = await stage.drain(receiver, 1)
        assert again.delivery_attempt == (2 if receiver.capabilities.delivery_attempts else None)

    @rule("H1")
    async def test_what_was_cancelled_is_handed_back(self, stage: Stage) -> None:
        """A message whose block is cancelled comes again, uncounted where the backend can do that."""
        receiver, message = await _received(stage)
        begun = asyncio.Event()

        async def process() -> None:
            async with receiver.processing(message):
                begun.set()
                await asyncio.Event().wait()

        processing = asyncio.create_task(process())
        await begun.wait()
        processing.cancel()
        await asyncio.wait([processing])
        assert processing.cancelled()
        await _assert_uncounted(stage, receiver)

    @rule("H1")
    async def test_what_expired_meanwhile_is_logged(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        """If a message comes again before its block ends, the end of the block is logged and changes nothing."""
        receiver, message = await _received(stage, max_lease_duration="1")
        caplog.set_level(logging.WARNING, "events_core")
        async with receiver.processing(message):
            again = await stage.receive(receiver)
        assert [record for record in caplog.records if message.message_id in record.getMessage()]
        await stage.expired(receiver, [again])

    @rule("H2")
    async def test_consuming_acknowledges_what_was_handled(self, stage: Stage) -> None:
        """Each message is handled once, and after ``stop`` running handlers finish and no message is received."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(10))
        handled: list[ReceivedMessage] = []
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            handled.append(message)
            if len(handled) == 10:
                stop.set()
            # When ``stop`` is set, this handler still runs.  Its message must be acknowledged all the same.
            await asyncio.sleep(0.01)

        await consume(receiver, handle, concurrency=3, stop=stop)
        assert sorted(texts(handled)) == texts(numbered(10))
        assert receiver.stats.held == 0
        await stage.silence(receiver)

    @rule("H2")
    async def test_consuming_refuses_a_plain_function(self, stage: Stage) -> None:
        """A plain function is called once, and its message comes again, uncounted where the backend can do that."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        handled: list[ReceivedMessage] = []
        handle: Any = handled.append
        with pytest.raises(TypeError):
            await consume(receiver, handle)
        assert len(handled) == 1, "the function was called again"
        await _assert_uncounted(stage, receiver)

    @rule("H2")
    async def test_consuming_outlives_a_failing_handler(self, stage: Stage) -> None:
        """A message whose handler fails comes again, and the others are handled before that."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(4))
        handled: dict[str, int] = defaultdict(int)
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            handled[message.data_as_string()] += 1
            if message.data == b"0001" and handled["0001"] == 1:
                raise ArithmeticError
            if sum(handled.values()) == 5:
                stop.set()

        await consume(receiver, handle, stop=stop)
        assert handled == {"0000": 1, "0001": 2, "0002": 1, "0003": 1}
        await stage.silence(receiver)

    @rule("H2")
    async def test_consuming_handles_as_many_at_once_as_it_may(self, stage: Stage) -> None:
        """With ``concurrency=3``, three handlers run at the same time, and never four."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(6))
        at_work = most = handled = 0
        # Three must be in hand at once, or the barrier never opens.
        together = asyncio.Barrier(3)
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            nonlocal at_work, most, handled
            at_work += 1
            most = max(most, at_work)
            await together.wait()
            # If a fourth handler started too early, it would begin in this turn of the loop and be counted.
            await asyncio.sleep(0)
            at_work -= 1
            handled += 1
            if handled == 6:
                stop.set()

        await consume(receiver, handle, concurrency=3, stop=stop)
        assert most == 3
        assert receiver.stats.held == 0

    @rule("H2", "R8")
    async def test_consuming_keeps_the_order_of_a_key(self, stage: Stage) -> None:
        """Of each key one handler runs at a time, and messages come in order, also after a failure."""
        client, receiver = await stage.open_ordered()
        await client.send_messages([*numbered(5, key="a"), *numbered(5, key="b")])
        at_work: list[str | None] = []
        together: list[str | None] = []
        handled: dict[str | None, list[str]] = defaultdict(list)
        stop = asyncio.Event()
        failed = False

        async def handle(message: ReceivedMessage) -> None:
            nonlocal failed
            together.extend(key for key in at_work if key == message.ordering_key)
            at_work.append(message.ordering_key)
            # Without a wait here no other handler could run in the meantime, and the test would prove nothing.
            await asyncio.sleep(0.001)
            at_work.remove(message.ordering_key)
            if message.data == b"0002" and message.ordering_key == "a" and not failed:
                failed = True
                raise ArithmeticError
            handled[message.ordering_key].append(message.data_as_string())
            if sum(map(len, handled.values())) == 10:
                stop.set()

        await consume(receiver, handle, concurrency=4, stop=stop)
        assert not together, "two handlers of one key ran at the same time"
        assert handled == {"a": texts(numbered(5)), "b": texts(numbered(5))}

    @rule("H2")
    async def test_consuming_is_cancelled(self, stage: Stage) -> None:
        """A cancelled ``consume`` cancels its handlers and hands their messages back."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        begun = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            begun.set()
            await asyncio.Event().wait()

        consuming = asyncio.create_task(consume(receiver, handle))
        await begun.wait()
        consuming.cancel()
        await asyncio.wait([consuming])
        assert consuming.cancelled()
        await _assert_uncounted(stage, receiver)

    @rule("H2", "C1")
    async def test_consuming_ends_with_its_receiver(self, stage: Stage) -> None:
        """If its receiver closes, ``consume`` returns after the running handlers, without an error."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(1))
        closing: list[asyncio.Task[None]] = []

        async def handle(message: ReceivedMessage) -> None:
            # In a task, because ``close`` waits for held messages and this handler holds one.
            closing.append(asyncio.create_task(receiver.close()))
            await asyncio.sleep(0.01)

        await consume(receiver, handle, concurrency=2)
        await asyncio.gather(*closing)
        _, other = await stage.open()
        await stage.silence(other)
