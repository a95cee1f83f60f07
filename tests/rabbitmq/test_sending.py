"""Messages that no queue gets, that are too large, and exchanges of other types."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from events_core import ErrorCode, EventMessage, PublishError

from ..receiving import PATIENCE, gather, numbers, take
from ..warning import warnings
from .console import Console, client
from .sending import send_all_but_the_second
from .server import Server


def test_messages_that_no_queue_gets_are_told_once(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """P1: sends without a subscription succeed, and one WARNING names the topic."""

    async def scenario() -> None:
        async with client(console.topic, url=console.url) as sender:
            for _ in range(3):
                await sender.send_message(EventMessage(b"nobody"))

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    (told,) = warnings(caplog)
    assert console.topic in told


def test_a_message_that_no_queue_gets_fails_if_that_is_asked_for(console: Console) -> None:
    """P3: with unroutable=fail the send is NOT_FOUND, and the next one that a queue gets succeeds."""
    console.declare_exchange()

    async def scenario() -> None:
        async with console.client(create="never", unroutable="fail") as sender:
            with pytest.raises(PublishError, match=console.topic) as caught:
                await sender.send_message(EventMessage(b"nobody"))
            assert caught.value.code is ErrorCode.NOT_FOUND
            console.declare_queue()
            await sender.send_message(EventMessage(b"somebody"))
            assert console.ready() == 1

    asyncio.run(scenario())


@pytest.fixture
def small_messages(own_server: Server) -> Iterator[int]:
    """Let the server refuse messages of more than 10,000 bytes."""
    before = own_server.evaluate("application:get_env(rabbit, max_message_size).")
    own_server.evaluate(
        "application:set_env(rabbit, max_message_size, 10000), persistent_term:erase(max_message_size)."
    )
    yield 10_000
    size = before.removeprefix("{ok,").removesuffix("}")
    own_server.evaluate(f"application:set_env(rabbit, max_message_size, {size}).")


def test_a_message_beyond_the_servers_limit_fails_alone(own: Console, small_messages: int) -> None:
    """P3: the server refuses one message of a batch; the others are stored, and the error says what to do."""
    batch = [EventMessage(b"0"), EventMessage(b"1" + bytes(2 * small_messages)), EventMessage(b"2")]

    async def scenario() -> None:
        async with own.client() as sender:
            await send_all_but_the_second(sender, batch, refusal="max_message_size")
            await sender.send_message(EventMessage(b"3"))

    asyncio.run(scenario())
    # The refusal ends the channel, so the others were sent again and may be there twice.
    assert set(own.drain()) == {b"0", b"2", b"3"}


def test_a_message_beyond_the_option_is_refused_before_it_is_sent(console: Console) -> None:
    """P2: the error names the message, its size and the limit."""

    async def scenario() -> None:
        async with console.client(max_message_bytes="100") as sender:
            with pytest.raises(PublishError, match="max_message_bytes is 100") as caught:
                await sender.send_message(EventMessage(bytes(200)))
            assert caught.value.code is ErrorCode.INVALID

    asyncio.run(scenario())


def test_a_large_message_travels_in_many_frames(console: Console) -> None:
    """A message of 5 MB arrives as it was sent."""
    data = bytes(range(256)) * 20_000

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(data))
            message = await take(receiver)
            assert message.data == data
            await receiver.acknowledge(message)

    asyncio.run(scenario())


def test_a_topic_exchange_routes_by_key(console: Console) -> None:
    """With exchange_type=topic, a subscription gets what its binding_keys match."""
    options = {"exchange_type": "topic"}

    async def scenario() -> None:
        async with (
            console.client(binding_keys="order.*", **options) as receiving,
            receiving.subscribe() as receiver,
            client(console.topic, url=console.url, routing_key="order.new", **options) as orders,
            client(console.topic, url=console.url, routing_key="invoice.new", **options) as invoices,
        ):
            await invoices.send_message(EventMessage(b"0"))
            await orders.send_message(EventMessage(b"1"))
            assert numbers(await gather(receiver, 1)) == [1]
            assert await receiver.receive_message(0.5) is None

    asyncio.run(scenario())


def test_a_message_is_sent_as_documented(console: Console) -> None:
    """Other programs see the id, attributes as text headers, and a persistent message."""

    async def scenario() -> str:
        async with console.client() as sender:
            return await sender.send_message(EventMessage(b"1", {"kind": "näw"}))

    identity = asyncio.run(scenario())
    taken = console.take()
    assert taken is not None
    body, properties = taken
    assert body == b"1"
    assert properties.message_id == identity
    assert properties.headers["kind"] == "näw"
    assert properties.delivery_mode == 2


def test_sends_go_on_while_subscriptions_are_deleted(console: Console) -> None:
    """P3: the server refuses a message of which a queue is just being deleted; the other subscriptions get it."""

    async def scenario() -> None:
        passers_by = client(console.topic, url=console.url)
        async with passers_by, console.client() as both, both.subscribe() as receiver:
            is_over = False

            async def come_and_go() -> None:
                while not is_over:
                    async with passers_by.subscribe():
                        await asyncio.sleep(0.01)

            leavers = [asyncio.create_task(come_and_go()) for _ in range(4)]
            sent: list[str] = []
            for first in range(0, 1200, 20):
                sent += await both.send_messages([EventMessage(b"%d" % n) for n in range(first, first + 20)])
            is_over = True
            await asyncio.gather(*leavers)
            came: set[int] = set()
            while len(came) < len(sent):
                some = await receiver.receive_messages(200, PATIENCE)
                assert some, f"{len(came)} of {len(sent)} came"
                came.update(numbers(some))
                await receiver.acknowledge_messages(some)

    asyncio.run(scenario())
