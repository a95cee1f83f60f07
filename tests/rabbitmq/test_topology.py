"""Exchanges and queues: how they are created, and which existing ones are accepted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from events_core import ErrorCode, EventError, EventMessage, PublishError, ReceiveError
from events_core.testing import TcpProxy
from events_rabbitmq.source import RabbitMQSource

from ..receiving import PATIENCE, gather, numbered, numbers, take
from ..waiting import until
from .console import Console, client


def test_a_subscription_is_a_durable_quorum_queue(own: Console) -> None:
    """Q1: the queue is durable and replicated, never expires, and has no delivery limit of its own."""

    async def scenario() -> None:
        async with own.client() as both, both.subscribe():
            row = described(own, own.queue)
            assert row["durable"]
            assert not row["exclusive"]
            assert dict(row["arguments"])["x-queue-type"] == "quorum"
            assert "x-expires" not in dict(row["arguments"])

    asyncio.run(scenario())


def described(own: Console, queue: str) -> dict[str, Any]:
    rows = own.server.listed("list_queues", "name", "durable", "exclusive", "arguments")
    (row,) = [row for row in rows if row["name"] == queue]
    row["arguments"] = {name: value for name, _, value in row["arguments"]} if row["arguments"] else {}
    return row


def test_an_ephemeral_subscription_is_deleted_at_close(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q1: its queue exists while the receiver lives, and is gone when ``close`` returns."""
    monkeypatch.setattr(RabbitMQSource, "close_time", PATIENCE)  # on a busy machine, the server answers late

    async def scenario() -> None:
        async with client(console.topic, url=console.url) as both:
            receiver = await both.subscribe()
            queue = console.queue_of(receiver.subscription)
            assert console.has_queue(queue)
            await receiver.close(timeout=10 * PATIENCE)
            assert not console.has_queue(queue)

    asyncio.run(scenario())


def test_an_ephemeral_subscription_expires_after_a_crash(console: Console) -> None:
    """Q1: when its receiver has died, the server deletes the queue after the idle time."""

    async def abandoned() -> None:
        with TcpProxy(console.server.address) as proxy:
            through = console.server.url_for(address=proxy.address)
            crashed = client(console.topic, url=through, ephemeral_expires="2")
            receiver = await crashed.subscribe()
            queue = console.queue_of(receiver.subscription)
            with proxy.cut():  # a client that cannot reach its server cannot delete the queue
                await crashed.close(timeout=0)
            await until(lambda: not console.has_queue(queue))

    asyncio.run(abandoned())


def test_an_ephemeral_subscription_in_use_does_not_expire(console: Console) -> None:
    """Q1: a receiver that waits keeps its queue, although no message comes."""

    async def scenario() -> None:
        async with client(console.topic, url=console.url, ephemeral_expires="10") as both, both.subscribe() as receiver:
            assert await receiver.receive_message(12) is None
            await both.send_message(EventMessage(b"1"))
            assert (await take(receiver)).data == b"1"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("x-queue-type", {"x_queue_type": "classic"}),
        ("x-message-ttl", {"x_message_ttl": 60_000}),
        ("x-max-length", {"x_max_length": 10}),
        ("x-dead-letter-exchange", {"x_dead_letter_exchange": "other"}),
        ("x-single-active-consumer", {"x_single_active_consumer": True}),
    ],
)
def test_a_queue_with_other_arguments_is_refused(console: Console, argument: str, arguments: dict[str, Any]) -> None:
    """Q2: the error is INVALID and names the argument, the queue and what to do."""
    console.declare_exchange()
    console.declare_queue(**arguments)

    async def scenario() -> EventError:
        async with client(console.topic, url=console.url) as both:
            with pytest.raises(ReceiveError, match=argument) as caught:
                await both.subscribe(console.subscription)
            return caught.value

    error = asyncio.run(scenario())
    assert error.code is ErrorCode.INVALID
    assert console.queue in str(error)
    assert "create=never" in str(error)


def test_the_queue_of_another_connection_alone_is_refused(console: Console) -> None:
    """Q2: the error is PERMISSION_DENIED, names the queue and says that another connection has it for itself."""
    console.declare_exchange()

    async def scenario() -> EventError:
        async with client(console.topic, url=console.url, create="never") as both:
            with pytest.raises(ReceiveError, match=console.queue) as caught:
                await both.subscribe(console.subscription)
            return caught.value

    with console.channel() as channel:
        channel.queue_declare(console.queue, exclusive=True)
        error = asyncio.run(scenario())
    assert error.code is ErrorCode.PERMISSION_DENIED
    assert "another connection has the queue for itself" in str(error)


@pytest.mark.parametrize(
    ("argument", "kind", "settings"),
    [
        ("type", "direct", {}),
        ("durable", "fanout", {"durable": False}),
        ("auto_delete", "fanout", {"auto_delete": True}),
        ("alternate-exchange", "fanout", {"arguments": {"alternate-exchange": "other"}}),
    ],
)
def test_an_exchange_with_other_arguments_is_refused(
    console: Console, argument: str, kind: str, settings: dict[str, Any]
) -> None:
    """Q2: the error is INVALID and names the argument and the exchange."""
    console.declare_exchange(kind, **settings)

    async def scenario() -> EventError:
        async with client(console.topic, url=console.url) as sender:
            with pytest.raises(PublishError, match=argument) as caught:
                await sender.send_message(EventMessage(b"1"))
            return caught.value

    error = asyncio.run(scenario())
    assert error.code is ErrorCode.INVALID
    assert console.topic in str(error)


def test_nothing_is_created_without_permission(console: Console) -> None:
    """Q2: with create=never both a send and subscribe say what is missing, and create nothing."""

    async def scenario() -> None:
        async with client(console.topic, url=console.url, create="never") as both:
            with pytest.raises(PublishError, match=console.topic) as sending:
                await both.send_message(EventMessage(b"1"))
            with pytest.raises(ReceiveError, match=console.topic) as subscribing:
                await both.subscribe(console.subscription)
            assert (sending.value.code, subscribing.value.code) == (ErrorCode.NOT_FOUND, ErrorCode.NOT_FOUND)
        assert not console.has_exchange()
        assert not console.has_queue()

    asyncio.run(scenario())


@pytest.mark.parametrize("arguments", [{"x_queue_type": "classic"}, {"x_message_ttl": 600_000}, {"x_max_length": 9}])
def test_an_existing_queue_of_any_kind_is_used_without_creating(console: Console, arguments: dict[str, Any]) -> None:
    """Q2: with create=never, queues of other programs work, classic ones too."""
    console.declare_exchange()
    console.declare_queue(**arguments)

    async def scenario() -> None:
        async with console.client(create="never") as both, both.subscribe() as receiver:
            await both.send_messages(numbered(3))
            received = await gather(receiver, 3)
            assert numbers(received) == [0, 1, 2]
            await receiver.nack(received[0])
            await receiver.acknowledge_messages(received[1:])
            again = await take(receiver)
            assert again.data == b"0"
            await receiver.acknowledge(again)

    asyncio.run(scenario())
    assert console.ready() == 0


def test_a_name_does_not_change_the_meaning_of_an_error(console: Console) -> None:
    """The server quotes names in its errors; words in them, such as ``limit``, say nothing about the reason."""

    async def scenario() -> EventError:
        async with client(f"limit of (timed out) {console.topic}", url=console.url, create="never") as sender:
            with pytest.raises(PublishError) as caught:
                await sender.send_message(EventMessage(b"1"))
            return caught.value

    assert asyncio.run(scenario()).code is ErrorCode.NOT_FOUND


def test_one_existing_queue_is_a_topic_by_itself(console: Console) -> None:
    """With topology=queue a client sends to a queue and receives from it, and needs no exchange."""
    with console.channel() as channel:
        channel.queue_declare(console.topic, durable=True)

    async def scenario() -> None:
        async with (
            client(console.topic, url=console.url, topology="queue", create="never") as both,
            both.subscribe(console.topic) as receiver,
        ):
            await both.send_message(EventMessage(b"1"))
            message = await take(receiver)
            await receiver.acknowledge(message)
            assert message.data == b"1"

    asyncio.run(scenario())
    assert console.ready(console.topic) == 0
    assert not console.has_exchange()


def test_a_stream_is_refused(console: Console) -> None:
    """A stream forgets no message that was nacked or acknowledged; the receive says that it is not supported."""
    console.declare_exchange()
    with console.channel() as channel:
        channel.queue_declare(console.queue, durable=True, arguments={"x-queue-type": "stream"})
        channel.queue_bind(console.queue, console.topic)

    async def scenario() -> EventError:
        async with console.client(create="never") as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            with pytest.raises(EventError, match="stream") as caught:
                await receiver.receive_message(60)
            return caught.value

    assert asyncio.run(scenario()).code in (ErrorCode.INVALID, ErrorCode.UNSUPPORTED)


def test_a_deleted_subscription_is_gone(console: Console) -> None:
    """``delete_subscription`` deletes the queue, and says NOT_FOUND the second time."""

    async def scenario() -> None:
        async with console.client() as both:
            await both.send_message(EventMessage(b"1"))
            await both.delete_subscription(console.subscription)
            assert not console.has_queue()
            with pytest.raises(EventError, match=console.subscription) as caught:
                await both.delete_subscription(console.subscription)
            assert caught.value.code is ErrorCode.NOT_FOUND

    asyncio.run(scenario())
