"""Deliveries: messages that come back, dead letters, and applications that are slow."""

from __future__ import annotations

import asyncio
import logging

import pytest

from events_core import EventMessage, consume

from ..receiving import PATIENCE, gather, numbered, numbers, take
from ..waiting import until
from .console import Console, client


def test_attempts_are_counted(console: Console) -> None:
    """R11: each nack raises the attempt by one, with and without a key."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            for key in (None, "k"):
                await both.send_message(EventMessage(b"1", ordering_key=key))
                attempts = []
                for _ in range(4):
                    message = await take(receiver)
                    attempts.append(message.delivery_attempt)
                    await receiver.nack(message, delay=0)
                await receiver.acknowledge(await take(receiver))
                assert attempts == [1, 2, 3, 4]

    asyncio.run(scenario())


def test_a_message_without_a_key_does_not_wait_for_a_failed_one(console: Console) -> None:
    """R10, R11: a nacked message comes again after its delay, and later ones meanwhile."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_messages(numbered(3))
            await receiver.nack(await take(receiver), delay=3600)
            later = [await take(receiver), await take(receiver)]
            assert numbers(later) == [1, 2]
            await receiver.nack(later[0], delay=0.1)
            again = await take(receiver)
            assert (again.message_id, again.delivery_attempt) == (later[0].message_id, 2)

    asyncio.run(scenario())


def test_a_key_goes_on_with_the_message_that_failed(console: Console) -> None:
    """R10: 1 and 2 come again before 3, although 3 was here already."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_messages(numbered(4, key="k"))
            await until(lambda: receiver.stats.buffered == 4)
            received = await receiver.receive_messages(3)
            await receiver.acknowledge(received[0])
            await receiver.nack(received[1])
            assert numbers(await gather(receiver, 3)) == [1, 2, 3]

    asyncio.run(scenario())


def test_a_handler_that_is_cancelled_hands_its_message_back(console: Console) -> None:
    """H2: the message comes to the next loop of the same receiver at once, at the same attempt."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            for key in (None, "k"):
                await both.send_message(EventMessage(b"1", ordering_key=key))
                started = asyncio.Event()

                async def hang(message: object, started: asyncio.Event = started) -> None:
                    started.set()
                    await asyncio.sleep(3600)

                running = asyncio.create_task(consume(receiver, hang))
                await asyncio.wait_for(started.wait(), PATIENCE)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                message = await take(receiver)
                assert message.delivery_attempt == 1
                await receiver.acknowledge(message)

    asyncio.run(scenario())


@pytest.mark.parametrize("key", [None, "k"])
def test_a_message_that_failed_too_often_becomes_a_letter(
    console: Console, caplog: pytest.LogCaptureFixture, key: str | None
) -> None:
    """R12: it moves to the dead-letter topic, and only then the position passes it."""
    dead = f"{console.topic}-dead"

    async def scenario() -> None:
        options = {"max_delivery_attempts": "2", "dead_letter_topic": dead}
        async with console.client(**options) as both, both.subscribe() as receiver:
            identity = await both.send_message(EventMessage(b"bad", {"kind": "x"}, ordering_key=key))
            for _ in range(2):
                await receiver.nack(await take(receiver), delay=0)
            (letter,) = await asyncio.to_thread(console.records, 1, topic=dead)
            assert letter.value() == b"bad"
            headers = dict(letter.headers() or [])
            assert headers["kind"] == b"x"
            assert headers["dead_letter_source_message_id"] == identity.encode()
            await until(lambda: console.committed() == 1)
            assert identity in caplog.text

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())


def test_a_slow_application_stays_in_its_group(console: Console) -> None:
    """R5, R8: while nothing is taken for longer than a session, the receiver keeps its partition and its order."""

    async def scenario() -> None:
        options = {"session_timeout": "12", "max_outstanding_messages": "10"}
        async with console.client(**options) as both, both.subscribe() as receiver:
            await both.send_messages(numbered(300, key="k"))
            (first,) = await receiver.receive_messages(1)
            await asyncio.sleep(13)  # also longer than the thread waits before it pauses all partitions
            await receiver.acknowledge(first)
            came = numbers([first])
            while len(came) < 300:
                some = await receiver.receive_messages(100, PATIENCE)
                assert some, f"{len(came)} of 300 came"
                came += numbers(some)
                await receiver.acknowledge_messages(some)
            assert came == list(range(300))
            assert receiver.stats.duplicates == 0

    asyncio.run(scenario())


def test_an_ephemeral_receiver_gets_what_is_sent_from_now_on(console: Console) -> None:
    """Q1: it has no group, and what was sent before does not come."""
    console.create_topic(partitions=2)

    async def scenario() -> None:
        async with client(console.topic, bootstrap_servers=console.address) as both:
            await both.send_messages(numbered(10))
            async with both.subscribe() as receiver:
                assert not await asyncio.to_thread(console.has_group, receiver.subscription)
                await both.send_messages(EventMessage(b"%d" % number) for number in range(10, 20))
                assert sorted(numbers(await gather(receiver, 10))) == list(range(10, 20))

    asyncio.run(scenario())
