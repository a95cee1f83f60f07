"""An outbox keeps order, loses nothing but what its policy says, and counts each message once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import attrs
import pytest

from events_core import EventConfig, EventMessage, PublishError, create_client
from events_core.integrations.outbox import Outbox, OutboxStats
from tests.core.network_memory import NetworkClient, outage, stall

from ..patience import PATIENCE, failure_naming
from .outboxes import Broker, broker, numbered, occupied, until

NONE = OutboxStats(waiting=0, sending=0, sent=0, dropped=0, refused=0, unsent=0, unconfirmed=0)


def run(test: Callable[[Broker], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        async with broker(**options) as place:
            await test(place)

    asyncio.run(main())


def test_everything_is_sent_in_order() -> None:
    """The end of the block waits until the broker has stored every message."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client) as outbox:
            for message in numbered(*range(3000)):
                assert outbox.put_nowait(message)
        assert outbox.stats == attrs.evolve(NONE, sent=3000)
        assert await place.numbers() == list(range(3000))

    run(test)


def test_a_failure_that_passes_ends_no_message() -> None:
    """When the client has given up, the outbox sends the messages again, in order."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client) as outbox:
            with outage():
                for message in numbered(*range(20)):
                    outbox.put_nowait(message)
                await failure_naming("network", PublishError, lambda: place.client.send_message(EventMessage(b"-1")))
            place.client._publisher._send_timeout = PATIENCE  # type: ignore[attr-defined]
            for message in numbered(*range(20, 40)):
                outbox.put_nowait(message)
        assert outbox.stats == attrs.evolve(NONE, sent=40)
        assert await place.numbers() == list(range(40))

    run(test, send_timeout=0.2)


def test_a_client_that_takes_few_at_once_gets_few_at_once() -> None:
    """If the client refuses a batch that exceeds its bounds, the outbox sends a part of it, and loses nothing."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client) as outbox:
            for message in numbered(*range(5)):
                outbox.put_nowait(message)
        assert outbox.stats == attrs.evolve(NONE, sent=5)
        assert await place.numbers() == list(range(5))

    run(test, publish_on_limit="error", publish_max_messages="2")


def test_drop_newest() -> None:
    """A full outbox drops what comes, and the broker gets exactly the rest."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client, policy="drop_newest", max_messages=10) as outbox:
            with stall():
                await occupied(outbox)
                taken = [outbox.put_nowait(message) for message in numbered(*range(1, 31))]
        assert taken == [True] * 10 + [False] * 20
        assert outbox.stats == attrs.evolve(NONE, sent=11, dropped=20)
        assert await place.numbers() == list(range(11))

    run(test)


def test_drop_oldest() -> None:
    """A full outbox drops what waits longest, and never what is on its way."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client, policy="drop_oldest", max_messages=10) as outbox:
            with stall():
                await occupied(outbox)
                taken = [outbox.put_nowait(message) for message in numbered(*range(1, 31))]
        assert all(taken)
        assert outbox.stats == attrs.evolve(NONE, sent=11, dropped=20)
        assert await place.numbers() == [0, *range(21, 31)]

    run(test)


def test_bytes_are_bounded_too() -> None:
    """Large messages fill the outbox before there are many; one that exceeds the bound is taken alone."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client, max_bytes=1000) as outbox:
            with stall():
                await occupied(outbox)
                assert outbox.put_nowait(EventMessage(bytes(5000)))
                assert not outbox.put_nowait(EventMessage(bytes(1)))
        assert outbox.stats == attrs.evolve(NONE, sent=2, dropped=1)

    run(test)


def test_large_messages_travel_apart() -> None:
    """A send has a bounded number of bytes, so a second large message waits for the first."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client) as outbox:
            with stall():
                for _ in range(2):
                    outbox.put_nowait(EventMessage(bytes(3_000_000)))
                await until(lambda: outbox.stats.sending > 0)
                assert (outbox.stats.sending, outbox.stats.waiting) == (1, 1)
        assert outbox.stats == attrs.evolve(NONE, sent=2)

    run(test)


def test_wait() -> None:
    """A full outbox lets its callers wait until there is room, and loses nothing."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client, policy="wait", max_messages=10) as outbox:

            async def caller(first: int) -> None:
                for message in numbered(*range(first, first + 50), key=str(first)):
                    assert await outbox.put(message)

            async with asyncio.TaskGroup() as callers:
                with stall():
                    await occupied(outbox)
                    for first in (100, 200, 300):
                        callers.create_task(caller(first))
                    await until(lambda: outbox.stats.waiting >= 10)
                    assert outbox.stats.waiting <= 12  # the limit, and one message for each caller beyond it
        assert outbox.stats == attrs.evolve(NONE, sent=151)
        numbers = await place.numbers()
        for first in (100, 200, 300):
            assert [number for number in numbers if first <= number < first + 50] == list(range(first, first + 50))

    run(test)


def test_a_cancelled_put() -> None:
    """A caller that is cancelled while it waits for room has put nothing in."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client, policy="wait", max_messages=1) as outbox:
            with stall():
                await occupied(outbox)
                outbox.put_nowait(*numbered(1))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await outbox.put(*numbered(2))
        assert outbox.stats == attrs.evolve(NONE, sent=2)
        assert await place.numbers() == [0, 1]

    run(test)


def test_nobody_waits_forever(caplog: pytest.LogCaptureFixture) -> None:
    """After a wait in vain the outbox drops what comes, and logs that once; it waits again when it has been empty."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client, policy="wait", max_messages=1, max_wait=0.05) as outbox:
            for first in (0, 10):
                with stall():
                    await occupied(outbox)
                    outbox.put_nowait(*numbered(first + 1))
                    late = numbered(first + 2, first + 3, first + 4)
                    assert [await outbox.put(message) for message in late] == [False] * 3
                await until(lambda: outbox.stats.waiting == outbox.stats.sending == 0)
        assert outbox.stats == attrs.evolve(NONE, sent=4, dropped=6)
        assert await place.numbers() == [0, 1, 0, 11]

    run(test)
    assert len([record for record in caplog.records if "no caller waits" in record.message]) == 2


def test_full_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning tells that messages are dropped, and one record that the outbox is empty again."""

    async def test(place: Broker) -> None:
        async with Outbox(place.client, max_messages=1) as outbox:
            with stall():
                await occupied(outbox)
                for message in numbered(*range(1, 100)):
                    outbox.put_nowait(message)

    with caplog.at_level(logging.INFO, "events_core.outbox"):
        run(test)
    levels = [record.levelname for record in caplog.records if record.name == "events_core.outbox"]
    assert levels == ["WARNING", "INFO"]
    assert "98 messages" in caplog.text


def test_a_bad_message_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A message that the client refuses is counted, and the others of its batch are sent in order."""

    async def test(place: Broker) -> None:
        messages = numbered(*range(20))
        messages[7] = EventMessage(b"7", {"k" * 10_000: ""}, ordering_key="k")
        messages[13] = EventMessage(b"13", {"refused": ""}, ordering_key="k")
        async with Outbox(place.client) as outbox:
            for message in messages:
                outbox.put_nowait(message)
        assert outbox.stats == attrs.evolve(NONE, sent=18, refused=2)
        assert await place.numbers() == [number for number in range(20) if number not in (7, 13)]

    run(test)
    assert caplog.text.count("was refused") == 1


def test_close_reports_what_it_could_not_send(caplog: pytest.LogCaptureFixture) -> None:
    """When the time is over, each message that is left is unsent, or unconfirmed if it was on its way."""

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client)
        with stall():
            await occupied(outbox)
            for message in numbered(*range(1, 6)):
                outbox.put_nowait(message)
            stats = await outbox.close(timeout=0.05)
        assert stats == attrs.evolve(NONE, unsent=5, unconfirmed=1)
        assert stats.offered == 6
        assert not outbox.put_nowait(*numbered(6))
        assert (await outbox.close()).unsent == 6

    run(test)
    assert "5 messages that were not sent, and 1 that were not confirmed" in caplog.text


def test_the_shortest_close_counts() -> None:
    """A second caller with less patience ends the wait of the first."""

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client)
        with stall():
            await occupied(outbox)
            patient = asyncio.create_task(outbox.close(timeout=3600))
            await asyncio.sleep(0)
            hasty = await outbox.close(timeout=0.05)
            assert await patient == hasty == attrs.evolve(NONE, unconfirmed=1)

    run(test)


def test_a_cancelled_close_closes_at_once() -> None:
    """Cancelling a close ends it, and everything is counted."""

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client)
        with stall():
            await occupied(outbox)
            closing = asyncio.create_task(outbox.close(timeout=3600))
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            assert outbox.stats == attrs.evolve(NONE, unconfirmed=1)

    run(test)


def test_a_close_ends_the_wait_for_room() -> None:
    """A caller that waits for room goes on when the outbox closes, and its message is unsent."""

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client, policy="wait", max_messages=1, max_wait=3600)
        with stall():
            await occupied(outbox)
            outbox.put_nowait(*numbered(1))
            putting = asyncio.create_task(outbox.put(*numbered(2)))
            await asyncio.sleep(0)
            await outbox.close(timeout=0.05)
            assert await putting is False
        assert outbox.stats == attrs.evolve(NONE, unsent=2, unconfirmed=1)

    run(test)


def test_an_idle_outbox_has_no_task() -> None:
    """Nothing runs before the first message, and nothing after the last one was sent."""

    async def test(place: Broker) -> None:
        before = asyncio.all_tasks()
        outbox = Outbox(place.client)
        assert asyncio.all_tasks() == before
        outbox.put_nowait(*numbered(0))
        assert asyncio.all_tasks() != before
        await until(lambda: outbox.stats.sent == 1)
        await until(lambda: asyncio.all_tasks() == before)

    run(test)


def test_messages_survive_their_event_loop() -> None:
    """What one event loop left over is sent by the next one that puts something in."""

    async def put(place: Broker, outbox: Outbox, number: int) -> None:
        outbox.put_nowait(*numbered(number))

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client)
        await asyncio.to_thread(asyncio.run, put(place, outbox, 0))
        assert outbox.stats.sent == 0
        outbox.put_nowait(*numbered(1))
        await outbox.close()
        # The first loop ended while number 0 was on its way, so it may be stored twice.
        assert list(dict.fromkeys(await place.numbers())) == [0, 1]

    run(test)


def test_an_outbox_is_closed_in_another_loop() -> None:
    """It has nothing left to send, and waits for no task of the loop that has ended."""
    client = create_client("memory://another-loop/orders")
    outbox = Outbox(client)

    async def put() -> None:
        outbox.put_nowait(*numbered(0))
        await until(lambda: outbox.stats.sent == 1)

    async def close() -> OutboxStats:
        async with client:
            return await outbox.close()

    asyncio.run(put())
    assert asyncio.run(close()) == attrs.evolve(NONE, sent=1)


def test_a_message_is_prepared_in_the_context_of_its_caller() -> None:
    """A function adds what belongs to the caller, which the task that sends does not know."""
    trace = ContextVar("trace", default="")

    async def caller(outbox: Outbox, name: str) -> None:
        trace.set(name)
        outbox.put_nowait(*numbered(0))

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client, prepare=lambda message: message.with_attribute("trace", trace.get()))
        for name in ("a", "b"):
            await asyncio.create_task(caller(outbox, name))
        await outbox.close()
        assert [message.attributes["trace"] for message in await place.stored()] == ["a", "b"]

    run(test)


def test_a_message_that_cannot_be_prepared(caplog: pytest.LogCaptureFixture) -> None:
    """It is sent as it was, and the log has the exception."""

    def fail(message: EventMessage) -> EventMessage:
        raise LookupError("a defect")

    async def test(place: Broker) -> None:
        async with Outbox(place.client, prepare=fail) as outbox:
            assert outbox.put_nowait(*numbered(0))
        assert await place.numbers() == [0]

    run(test)
    assert "LookupError: a defect" in caplog.text


def abandon(scenario: Coroutine[Any, Any, None]) -> None:
    """Run *scenario* in a loop that is then closed without cancelling its tasks."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it complains about the tasks that it leaves
    loop.run_until_complete(scenario)
    loop.close()


def test_messages_survive_a_loop_that_was_abandoned() -> None:
    """A loop that is closed without cancelling its tasks keeps the outbox from nothing."""

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client)
        with stall():
            await asyncio.to_thread(abandon, occupied(outbox))
        outbox.put_nowait(*numbered(1))
        await outbox.close()
        assert list(dict.fromkeys(await place.numbers())) == [0, 1]

    run(test)


def test_an_outbox_that_is_full_when_its_loop_is_abandoned_empties_in_the_next() -> None:
    """The next message finds no room, but those before it are sent."""

    async def fill(outbox: Outbox) -> None:
        await occupied(outbox)
        outbox.put_nowait(*numbered(1))

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client, max_messages=1)
        with stall():
            await asyncio.to_thread(abandon, fill(outbox))
        assert not outbox.put_nowait(*numbered(2))
        await until(lambda: outbox.stats.sent == 2)
        assert list(dict.fromkeys(await place.numbers())) == [0, 1]

    run(test)


def test_a_caller_of_an_abandoned_loop_holds_nobody_up() -> None:
    """It waits for room for good, and the outbox goes on without it."""
    left: list[asyncio.Task[bool]] = []

    async def wait_for_room(outbox: Outbox) -> None:
        await occupied(outbox)
        outbox.put_nowait(*numbered(1))
        left.append(asyncio.create_task(outbox.put(*numbered(2))))
        await until(lambda: bool(outbox._room_waiters))

    async def test(place: Broker) -> None:
        outbox = Outbox(place.client, policy="wait", max_messages=1, max_wait=PATIENCE)
        with stall():
            await asyncio.to_thread(abandon, wait_for_room(outbox))
        assert await outbox.put(*numbered(3))
        await outbox.close()
        assert list(dict.fromkeys(await place.numbers())) == [0, 1, 3]

    run(test)


def test_a_send_that_ends_after_the_close_is_not_counted_twice() -> None:
    """A client that swallows its cancellation changes no counter afterwards."""
    released = asyncio.Event()

    class Stubborn(NetworkClient):
        async def send_message(self, message: EventMessage) -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await released.wait()
            return "17"

    async def main() -> None:
        outbox = Outbox(Stubborn(EventConfig("stubborn")))
        await occupied(outbox)
        others = asyncio.all_tasks()
        assert await outbox.close(timeout=0) == attrs.evolve(NONE, unconfirmed=1)
        released.set()
        ended, _ = await asyncio.wait(others - {asyncio.current_task()})
        assert [task.exception() for task in ended] == [None]
        assert outbox.stats == attrs.evolve(NONE, unconfirmed=1)

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [{"policy": "drop"}, {"max_messages": 0}, {"max_bytes": 0}])
def test_wrong_arguments(wrong: dict[str, object]) -> None:
    """An unknown policy and a limit below 1 are refused."""

    async def test(place: Broker) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Outbox(place.client, **wrong)  # type: ignore[arg-type]

    run(test)
