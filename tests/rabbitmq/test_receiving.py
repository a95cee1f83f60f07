"""Deliveries: the consumer timeout, consumers that the server cancels, attempts, and order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

import pytest

from events_core import EventMessage, EventReceiver, ReceivedMessage

from ..receiving import PATIENCE, acknowledge_what_is_left, gather, numbered, numbers, settle_all, settle_data, take
from ..waiting import until
from .console import Console
from .server import Server


@pytest.fixture
def hasty_server(own_server: Server) -> Iterator[Server]:
    """Let the server end new channels that hold a delivery for more than 10 s; it looks every second."""
    timeout = own_server.evaluate("element(2, application:get_env(rabbit, consumer_timeout)).")
    tick = own_server.evaluate("application:get_env(rabbit, channel_tick_interval, 60000).")
    own_server.evaluate("application:set_env(rabbit, consumer_timeout, 10000).")
    own_server.evaluate("application:set_env(rabbit, channel_tick_interval, 1000).")
    yield own_server
    own_server.evaluate(f"application:set_env(rabbit, consumer_timeout, {timeout}).")
    own_server.evaluate(f"application:set_env(rabbit, channel_tick_interval, {tick}).")


def test_a_receiver_outlives_the_consumer_timeout(own: Console, hasty_server: Server) -> None:
    """F2, R7: the server closes the channel of a slow consumer; the message comes again, and can be acknowledged."""

    async def scenario() -> None:
        async with own.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"slow"))
            held = await take(receiver)
            await until(lambda: receiver.stats.reconnects > 0)
            done = await acknowledge_what_is_left(receiver, [held])  # none, if the server took long to give it again
            await both.send_message(EventMessage(b"next"))
            await settle_data(receiver, {b"next"} if done else {b"next", b"slow"})

    asyncio.run(scenario())


# The option is far below the timeout of the server.  So a channel lives on, however late a busy machine gives back
# what is on it.


def test_messages_go_back_before_the_consumer_timeout(console: Console) -> None:
    """R6: with the option consumer_timeout, what is held goes to another receiver in time, and the channel lives on."""

    async def scenario() -> None:
        async with (
            console.client(consumer_timeout="3") as one,
            console.client(consumer_timeout="3") as other,
            one.subscribe() as slow,
            other.subscribe() as quick,
        ):
            await one.send_messages(numbered(2))
            held = await take(slow)
            await settle_data(quick, {held.data})
            assert slow.stats.reconnects == quick.stats.reconnects == 0

    asyncio.run(scenario())


def test_a_buffered_message_goes_back_before_the_consumer_timeout(console: Console) -> None:
    """R6: what nobody takes from the buffer goes to another receiver too, and the channel lives on."""

    async def scenario() -> None:
        async with console.client(consumer_timeout="3") as both, both.subscribe() as slow:
            await both.send_messages(numbered(20))
            await until(lambda: slow.stats.buffered == 20)  # so none is left to come to another one first
            async with both.subscribe() as quick:
                assert await quick.receive_message(PATIENCE)
                assert slow.stats.reconnects == quick.stats.reconnects == 0

    asyncio.run(scenario())


def test_a_full_receiver_takes_no_more_after_a_nack(console: Console) -> None:
    """R5: the receiver holds all that it may and nacks again and again; the others stay in the queue."""

    async def scenario() -> None:
        async with console.client(max_outstanding_messages="10") as both, both.subscribe() as receiver:
            await both.send_messages(numbered(100))
            held = await gather(receiver, 10)
            for _ in range(8):
                await receiver.nack(held.pop(), delay=0)
                held.append(await take(receiver))
                assert await asyncio.to_thread(console.ready) >= 90

    asyncio.run(scenario())


def test_a_full_receiver_that_closes_takes_no_more(console: Console) -> None:
    """C1: the receiver holds all that it may and closes; what it settles makes no room for others."""

    async def scenario() -> None:
        async with console.client(max_outstanding_messages="10") as both:
            receiver = await both.subscribe()
            await both.send_messages(numbered(30))
            held = await gather(receiver, 10)
            closing = asyncio.create_task(receiver.close(timeout=600))
            await until(lambda: console.queue not in console.server.command("list_consumers", "--quiet"))
            await receiver.acknowledge_messages(held[:9])
            assert await asyncio.to_thread(console.ready) == 20
            await receiver.acknowledge(held[9])
            await closing

    asyncio.run(scenario())


def test_attempts_are_counted(console: Console) -> None:
    """R11: each nack raises the attempt by one."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            attempts = []
            for _ in range(4):
                message = await take(receiver)
                attempts.append(message.delivery_attempt)
                await receiver.nack(message)
            await receiver.acknowledge(await take(receiver))
            assert attempts == [1, 2, 3, 4]

    asyncio.run(scenario())


def test_attempts_outlive_the_receiver(console: Console) -> None:
    """R11: another receiver goes on counting, because the server counts."""

    async def scenario() -> None:
        async with console.client() as both:
            await both.send_message(EventMessage(b"1"))
            attempts = []
            for _ in range(3):
                async with both.subscribe() as receiver:
                    message = await take(receiver)
                    attempts.append(message.delivery_attempt)
                    await receiver.nack(message, delay=0)
            # A close gives back what it had prefetched, and 3.10 counts that too (handback_counts).
            assert attempts[0] == 1
            assert attempts == sorted(set(attempts))

    asyncio.run(scenario())


def test_a_nacked_message_is_never_lost(console: Console) -> None:
    """R9: no delivery limit of the server drops a message that fails 30 times."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            for _ in range(30):
                await receiver.nack(await take(receiver), delay=0)
            await receiver.acknowledge(await take(receiver))

    asyncio.run(scenario())


def test_a_message_that_failed_too_often_becomes_a_letter(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """R12: it moves to the dead-letter topic, and one WARNING names it."""
    dead = f"{console.topic}-dead"

    async def scenario() -> None:
        options = {"max_delivery_attempts": "2", "dead_letter_topic": dead}
        async with console.client(**options) as both, both.subscribe() as receiver:
            identity = await both.send_message(EventMessage(b"bad", {"kind": "x"}))
            for _ in range(2):
                await receiver.nack(await take(receiver), delay=0)
            letters = f"{dead}:{dead}-letters"
            await until(lambda: console.ready(letters) == 1)
            assert console.ready() == 0
            taken = console.take(letters)
            assert taken is not None
            assert taken[0] == b"bad"
            assert taken[1].headers["kind"] == "x"
            await until(lambda: identity in caplog.text)  # the letter is in the queue before the client knows it

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())


def test_one_receiver_at_a_time_gets_the_messages_of_all_keys(console: Console) -> None:
    """R8: with ordering=true a second receiver of the subscription waits until the first one has closed."""

    async def scenario() -> None:
        async with console.client(ordering="true") as both:
            first, second = await both.subscribe(), await both.subscribe()
            await both.send_messages(numbered(3, key="k"))
            received = await gather(first, 3)
            assert numbers(received) == [0, 1, 2]
            assert await second.receive_message(1) is None
            await first.acknowledge_messages(received)
            await first.close(timeout=0)
            await both.send_messages(numbered(1, key="k"))
            assert (await take(second)).data == b"0"

    asyncio.run(scenario())


def test_a_close_gives_the_rest_to_the_next_receiver_in_order(console: Console) -> None:
    """C1, R8: the first receiver holds 0 to 4 and has 5 to 9 buffered; the next one gets 0 first."""

    async def scenario() -> None:
        async with console.client(ordering="true") as both:
            first, second = await both.subscribe(), await both.subscribe()
            await both.send_messages(numbered(10, key="k"))
            assert numbers(await gather(first, 5)) == [0, 1, 2, 3, 4]
            closing = asyncio.create_task(first.close(timeout=0))
            assert await settle_all(second, 10) == list(range(10))
            await closing

    asyncio.run(scenario())


def test_a_close_that_waits_for_the_application_keeps_the_order(console: Console) -> None:
    """C1, R8: while the first receiver settles what it holds, the next one gets nothing; then it gets the rest."""

    async def scenario() -> None:
        async with console.client(ordering="true") as both:
            first, second = await both.subscribe(), await both.subscribe()
            await both.send_messages(numbered(10, key="k"))
            held = await gather(first, 5)
            closing = asyncio.create_task(first.close(timeout=30))
            assert await second.receive_message(1) is None
            await first.acknowledge_messages(held[:3])
            assert await second.receive_message(1) is None
            await first.acknowledge_messages(held[3:])
            await closing
            assert numbers(await gather(second, 5)) == [5, 6, 7, 8, 9]

    asyncio.run(scenario())


def test_a_killed_connection_gives_the_rest_in_order(own: Console) -> None:
    """R8: the connection of the active receiver breaks; whoever gets the messages gets them in order."""

    async def scenario() -> None:
        async with own.client(ordering="true") as one, own.client(ordering="true") as other:
            first, second = await one.subscribe(), await other.subscribe()
            await one.send_messages(numbered(20, key="k"))
            await until(lambda: first.stats.buffered == 20)  # later ones would wait for the held ones of their key
            held = await gather(first, 5)
            assert numbers(held) == [0, 1, 2, 3, 4]
            await asyncio.to_thread(own.server.command, "close_all_connections", "test")
            came: list[int] = []

            async def drain(receiver: EventReceiver, held: Sequence[ReceivedMessage] = ()) -> None:
                # If what was held comes to its receiver again, it is not handed out again (R7).
                came.extend(numbers(await acknowledge_what_is_left(receiver, held)))
                while len(set(came)) < 20:
                    some = await receiver.receive_messages(10, 0.5)
                    came.extend(numbers(some))
                    await acknowledge_what_is_left(receiver, some)

            async with asyncio.timeout(90):
                await asyncio.gather(drain(first, held), drain(second))
            assert list(dict.fromkeys(came)) == list(range(20))

    asyncio.run(scenario())


def test_a_nack_does_not_let_the_successors_overtake(console: Console) -> None:
    """R10: after a nack the key goes on with that message."""

    async def scenario() -> None:
        async with console.client(ordering="true") as both, both.subscribe() as receiver:
            await both.send_messages(numbered(5, key="k"))
            first, *_ = await gather(receiver, 5)
            await receiver.nack(first, delay=0.5)
            again = await settle_all(receiver, 5)
            assert again == [0, 1, 2, 3, 4]

    asyncio.run(scenario())


def test_keys_are_refused_without_order(console: Console) -> None:
    """Without ordering=true the subscription promises no order, and says so."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            assert receiver.capabilities.ordering == "none"
        ordered = console.client(ordering="true", subscription=f"{console.subscription}-o")
        async with ordered, ordered.subscribe() as receiver:
            assert receiver.capabilities.ordering == "subscription"

    asyncio.run(scenario())
