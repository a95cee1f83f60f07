"""A connection ends while messages are held, acknowledged or on their way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, ReceivedMessage, consume
from events_core.engine import BrokerError
from events_core.testing import TcpProxy
from events_rabbitmq import source
from events_rabbitmq.address import addresses
from events_rabbitmq.connection import connect
from events_rabbitmq.consuming import Consumer
from events_rabbitmq.options import RabbitMQOptions

from ..receiving import PATIENCE, acknowledge_what_is_left, gather, numbered, numbers, take
from ..waiting import until
from .console import Console


@contextmanager
def through(console: Console) -> Iterator[tuple[TcpProxy, str]]:
    """Enter with a proxy of the server, and the URL that leads through it."""
    with TcpProxy(console.server.address) as proxy:
        yield proxy, console.server.url_for(address=proxy.address)


async def bodies(receiver: EventReceiver, wanted: set[bytes]) -> list[ReceivedMessage]:
    """Receive and acknowledge until all *wanted* bodies have come."""
    came: list[ReceivedMessage] = []
    while not wanted <= {message.data for message in came}:
        message = await take(receiver)
        came += await acknowledge_what_is_left(receiver, [message])
    return came


async def acknowledges(receiver: EventReceiver, message: ReceivedMessage) -> bool:
    """Acknowledge *message*; return False if its time was over."""
    code = await failure(receiver.acknowledge(message))
    assert code in (None, ErrorCode.TIMEOUT)
    return code is None


async def failure(settling: Awaitable[None]) -> ErrorCode | None:
    """Settle one message; return the code of the error, or ``None`` for a success."""
    try:
        await settling
    except AcknowledgeError as error:
        return next(iter(error.failed.values())).code
    return None


async def outcome(settle: Callable[[], Awaitable[None]]) -> ErrorCode | None:
    """Settle one message again and again until the server answers in time; return as :func:`failure` does."""
    async with asyncio.timeout(PATIENCE):
        while True:
            code = await failure(settle())
            if code is not ErrorCode.TIMEOUT:
                return code


def test_a_full_receiver_settles_what_it_held_when_its_connection_ended(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1, F2, R7: the application holds all that it may; its acknowledgements succeed on the next connection."""
    monkeypatch.setattr(source, "_REDELIVERY_TIME", PATIENCE)

    async def scenario() -> None:
        with through(console) as (proxy, url):
            async with (
                console.client(url=url, max_outstanding_messages="10") as both,
                both.subscribe() as receiver,
            ):
                await both.send_messages(numbered(10))
                held = await gather(receiver, 10)
                proxy.drop()
                await receiver.acknowledge_messages(held)
                await both.send_message(EventMessage(b"next"))
                assert (await take(receiver)).data == b"next"

    asyncio.run(scenario())


def test_a_nack_of_a_full_receiver_brings_the_message_again(console: Console) -> None:
    """F1, S3: the only message that the receiver may hold is nacked after its connection has ended."""

    async def scenario() -> None:
        with through(console) as (proxy, url):
            async with console.client(url=url, max_outstanding_messages="1") as both, both.subscribe() as receiver:
                await both.send_message(EventMessage(b"again"))
                held = await take(receiver)
                proxy.drop()
                await receiver.nack(held, delay=0)
                again = await take(receiver)
                assert again.message_id == held.message_id
                await receiver.acknowledge(again)

    asyncio.run(scenario())


def test_consume_goes_on_when_all_handlers_were_busy(console: Console) -> None:
    """F1: the connection ends while each handler has a message, and there is no room for another one."""
    done: set[int] = set()

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            started.add(int(message.data))
            await go_on.wait()
            done.update(numbers([message]))

        started: set[int] = set()
        with through(console) as (proxy, url):
            async with console.client(url=url, max_outstanding_messages="5") as both, both.subscribe() as receiver:
                await both.send_messages(numbered(20))
                working = asyncio.create_task(consume(receiver, handle, concurrency=5))
                await until(lambda: len(started) == 5)
                proxy.drop()
                go_on.set()
                await until(lambda: len(done) == 20)
                working.cancel()
                await asyncio.wait([working])

    asyncio.run(scenario())
    assert done == set(range(20))


def test_another_message_does_not_take_over_a_held_delivery(console: Console) -> None:
    """R7: after a loss, a message with the id of a held one comes; it is handed out, not acknowledged with it."""

    async def scenario() -> None:
        with through(console) as (proxy, url):
            async with console.client(url=url, max_outstanding_messages="1") as both, both.subscribe() as receiver:
                console.publish(b"A", message_id="1")
                held = await take(receiver)
                console.publish(b"B", message_id="1")
                proxy.drop()
                await acknowledge_what_is_left(receiver, [held])
                came = await bodies(receiver, {b"B"})
                assert came

    asyncio.run(scenario())


def test_an_equal_message_is_no_copy_of_one_that_was_acknowledged(console: Console) -> None:
    """R7, R9: the server has handled an acknowledgement, and its answer is lost; the next equal message is handed out.

    Only a message that was out before can be the one that is held.
    """

    async def scenario() -> None:
        with through(console) as (proxy, url):
            async with console.client(url=url, max_outstanding_messages="1") as both, both.subscribe() as receiver:
                console.publish(b"tick")
                held = await take(receiver)
                with proxy.lose_answers():
                    acknowledging = asyncio.create_task(acknowledge_what_is_left(receiver, [held]))
                    await until(lambda: console.messages() == 0)
                    console.publish(b"tick")
                    # The second one is on its way now, in the answers that are lost.
                    proxy.drop()
                await acknowledging
                again = await take(receiver)
                assert again.data == b"tick"
                await receiver.acknowledge(again)

    asyncio.run(scenario())


@asynccontextmanager
async def acknowledged_in_silence(own: Console) -> AsyncIterator[tuple[EventReceiver, ReceivedMessage]]:
    """Yield a receiver and its message, whose acknowledgement was written twice while the server was paused."""
    async with own.client(ack_timeout="3", heartbeat="60") as both, both.subscribe() as receiver:
        await both.send_message(EventMessage(b"1"))
        message = await take(receiver)
        own.server.pause()
        try:
            assert [await acknowledges(receiver, message) for _ in range(2)] == [False, False]
        finally:
            own.server.resume()
        yield receiver, message
    assert own.ready() == 0


def test_an_acknowledgement_is_confirmed_only_by_the_server(own: Console) -> None:
    """S1, S5: an acknowledgement that got no answer is asked again; it succeeds only when the server answers."""

    async def scenario() -> None:
        async with acknowledged_in_silence(own) as (receiver, message):
            assert await outcome(lambda: receiver.acknowledge(message)) is None

    asyncio.run(scenario())


def test_a_nack_after_an_acknowledgement_without_an_answer_fails(own: Console) -> None:
    """S2, S5: the acknowledgement was written, and its time was over; the server handles it, so a nack fails."""

    async def scenario() -> None:
        async with acknowledged_in_silence(own) as (receiver, message):
            assert await outcome(lambda: receiver.nack(message, delay=0)) is ErrorCode.ALREADY_SETTLED
            assert receiver.stats.held == 0

    asyncio.run(scenario())


def test_an_acknowledgement_after_a_nack_without_an_answer_fails(own: Console) -> None:
    """S3, S5, R9: the nack was written, and its time was over; the message comes again, so it is not acknowledged."""

    async def scenario() -> None:
        options = {"ack_timeout": "3", "heartbeat": "60", "max_outstanding_messages": "1"}
        async with own.client(**options) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            message = await take(receiver)
            own.server.pause()
            try:
                assert await failure(receiver.nack(message, delay=0)) is ErrorCode.TIMEOUT
                assert not await acknowledges(receiver, message)
            finally:
                own.server.resume()
            assert await outcome(lambda: receiver.acknowledge(message)) is ErrorCode.EXPIRED
            again = await take(receiver)
            assert again.data == b"1"
            assert await outcome(lambda: receiver.acknowledge(again)) is None
        assert own.ready() == 0

    asyncio.run(scenario())


def test_an_equal_message_is_no_copy_after_two_losses(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """R7, R9: as before, but the connection ends once more before the acknowledgement has ended."""
    monkeypatch.setattr(source, "_REDELIVERY_TIME", 10 * PATIENCE)

    async def scenario() -> None:
        with through(console) as (proxy, url):
            async with console.client(url=url) as both, both.subscribe() as receiver:
                console.publish(b"tick", message_id="order")
                held = await take(receiver)
                with proxy.lose_answers():
                    acknowledging = asyncio.create_task(acknowledge_what_is_left(receiver, [held]))
                    await until(lambda: console.messages() == 0)
                    proxy.drop()
                await until(lambda: receiver.stats.reconnects == 1)
                proxy.drop()
                await until(lambda: receiver.stats.reconnects == 2)
                console.publish(b"tick", message_id="order")
                again = await take(receiver)
                assert not acknowledging.done()
                monkeypatch.setattr(source, "_REDELIVERY_TIME", 0)
                await acknowledging
                await receiver.acknowledge(again)

    asyncio.run(scenario())


@pytest.mark.parametrize("identity", [None, "order"])
def test_a_message_that_comes_before_the_answer_is_no_copy(console: Console, identity: str | None) -> None:
    """R7, R9: an equal message comes while the acknowledgement of the one before is under way; it is handed out."""

    async def scenario() -> None:
        with through(console) as (proxy, url):
            async with console.client(url=url) as both, both.subscribe() as receiver:
                console.publish(b"tick", message_id=identity)
                first = await take(receiver)
                with proxy.delay(0.5):  # the message has half of the way of the acknowledgement and its answer
                    acknowledging = asyncio.create_task(receiver.acknowledge(first))
                    await asyncio.sleep(0)
                    await asyncio.to_thread(console.publish, b"tick", message_id=identity)
                    await acknowledging
                    second = await take(receiver)
                    assert second.data == b"tick"
                    await receiver.acknowledge(second)
                assert receiver.stats.duplicates == 0

    asyncio.run(scenario())


def test_a_consumer_that_has_ended_hands_out_nothing(console: Console) -> None:
    """F2: messages that reach the socket before the channel is closed belong to a consumer that has ended already."""

    async def scenario() -> None:
        console.declare_exchange()
        console.declare_queue()
        address = addresses(RabbitMQOptions(url=console.url))[0]
        connection = await connect(address, None, heartbeat=30, timeout=PATIENCE, client_name="test")
        try:
            ended = asyncio.Event()
            consumer = await Consumer.open(connection, console.queue, 100, lambda _: ended.set(), {})
            taking = asyncio.create_task(consumer.take(10))
            await asyncio.sleep(0)
            for body in (b"1", b"2"):
                console.publish(body)  # blocks this loop, so the messages wait in the socket

            # The loop reads the socket in its next turn, before the task that takes runs again.
            asyncio.get_running_loop().call_soon(consumer.abandon, "test")
            with pytest.raises(BrokerError, match="test"):
                await taking
            assert ended.is_set()
            await until(lambda: console.ready() == 2)
        finally:
            await connection.close()

    asyncio.run(scenario())
