"""The keys in Redis: which of them are kept, and what other programs may do to them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from redis import Redis

from events_core import EventConfig, EventMessage, EventReceiver, ReceivedMessage
from events_core.testing import TcpProxy
from events_redis import RedisClient

from .servers import Server

PATIENCE = 60.0


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid4().hex}"


@pytest.fixture
def redis(server: Server) -> Iterator[Redis]:
    with Redis.from_url(f"redis://{server.address}", decode_responses=True) as redis:
        yield redis


def client(address: str, topic: str) -> RedisClient:
    # A lease, and all that a call may take, are long enough for a machine that is busy.
    timeouts = dict.fromkeys(("send_timeout", "ack_timeout", "connect_timeout", "lease"), "300")
    options = {"server": address, "create": "all", "subscription": "s", **timeouts}
    return RedisClient(EventConfig(topic, options=options, backend="redis"))


async def receive(receiver: EventReceiver, count: int) -> list[ReceivedMessage]:
    """Receive and acknowledge *count* messages."""
    received: list[ReceivedMessage] = []
    while len(received) < count:
        some = await receiver.receive_messages(count - len(received), PATIENCE)
        assert some
        await receiver.acknowledge_messages(some)
        received += some
    return received


def test_messages_that_all_have_acknowledged_are_deleted(server: Server, topic: str, redis: Redis) -> None:
    """The log keeps messages that a subscription needs.  Redis deletes whole nodes, so a few more may stay."""

    async def use() -> None:
        async with (
            client(server.address, topic) as one,
            await one.subscribe() as receiver,
            await one.subscribe("t") as other,
        ):
            await one.send_messages([EventMessage(b"x" * 100) for _ in range(1000)])
            await receive(receiver, 1000)
            assert redis.xlen(f"events:{{{topic}}}") == 1000
            await receive(other, 1000)

    asyncio.run(use())
    assert redis.xlen(f"events:{{{topic}}}") <= 100


def test_a_topic_without_subscriptions_keeps_nothing(server: Server, topic: str, redis: Redis) -> None:
    """A message that no subscription gets takes no memory."""

    async def use() -> None:
        async with client(server.address, topic) as orders:
            await orders.delete_subscription("s")
            await orders.send_messages([EventMessage(b"x")] * 3)

    asyncio.run(use())
    assert redis.xlen(f"events:{{{topic}}}") == 0


def test_a_deleted_subscription_leaves_no_key(server: Server, topic: str, redis: Redis) -> None:
    """Its waiting keys, leases and counters are deleted with it."""

    async def use() -> None:
        async with client(server.address, topic) as orders:
            # Closed first, because a receiver creates a deleted subscription again (F1).
            async with orders.subscribe() as receiver:
                await orders.send_messages([EventMessage(b"x", ordering_key=key) for key in "aabb"])
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                await receiver.nack(message, delay=60)
            assert redis.hkeys(f"events:{{{topic}}}:key:s")
            await orders.delete_subscription("s")

    asyncio.run(use())
    assert redis.keys(f"events:{{{topic}}}*") == [f"events:{{{topic}}}"]


def test_an_ephemeral_subscription_of_a_dead_process_is_dropped(server: Server, topic: str, redis: Redis) -> None:
    """The next send drops it if it gave no sign of life for an hour."""
    log = f"events:{{{topic}}}"

    async def use() -> None:
        async with client(server.address, topic) as orders:
            await orders.ping(PATIENCE)
            redis.xgroup_create(log, "~dead")
            redis.zadd(f"{log}:seen", {"~dead": (time.time() - 3601) * 1000})
            await orders.ping(PATIENCE)
            await orders.send_message(EventMessage(b"x"))

    asyncio.run(use())
    assert [group["name"] for group in redis.xinfo_groups(log)] == ["s"]


def test_an_entry_of_another_program_is_skipped(
    server: Server, topic: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning names it, and it keeps no message from coming."""

    async def use() -> list[ReceivedMessage]:
        async with client(server.address, topic) as orders, await orders.subscribe() as receiver:
            redis.xadd(f"events:{{{topic}}}", {"field": "value"})
            await orders.send_message(EventMessage(b"x"))
            return await receive(receiver, 1)

    with caplog.at_level(logging.WARNING, "events_redis"):
        (message,) = asyncio.run(use())
    assert message.data == b"x"
    assert "is no message and is skipped" in caplog.text
    assert redis.xpending(f"events:{{{topic}}}", "s")["pending"] == 0


def test_an_entry_that_was_deleted_does_not_block_its_key(server: Server, topic: str, redis: Redis) -> None:
    """An operator may delete a poisonous message from the stream: the later ones of its key come."""

    async def use() -> list[ReceivedMessage]:
        async with client(server.address, topic) as orders:
            first, _ = await orders.send_messages([EventMessage(data, ordering_key="k") for data in (b"1", b"2")])
            redis.xdel(f"events:{{{topic}}}", first)
            async with await orders.subscribe() as receiver:
                return await receive(receiver, 1)

    assert [message.data for message in asyncio.run(use())] == [b"2"]


def test_a_cancelled_fetch_gives_back_what_it_took(server: Server, topic: str, redis: Redis) -> None:
    """The answer is on its way when the receiver closes.  Another receiver gets the message at once, uncounted."""

    async def use(proxy: TcpProxy) -> ReceivedMessage | None:
        async with client(proxy.address, topic) as slow, client(server.address, topic) as orders:
            receiver = await slow.subscribe()
            with proxy.delay(0.05):
                await orders.send_message(EventMessage(b"x"))
                ends = time.monotonic() + PATIENCE
                while not redis.hlen(f"events:{{{topic}}}:holder:s"):
                    assert time.monotonic() < ends
                    await asyncio.sleep(0.01)
                await receiver.close(timeout=PATIENCE)
            async with await orders.subscribe() as other:
                return await other.receive_message(PATIENCE)  # long before the end of a lease

    with TcpProxy(server.address) as proxy:
        message = asyncio.run(use(proxy))
    assert message is not None
    assert message.delivery_attempt == 1


def test_large_messages_come_in_several_answers(server: Server, topic: str) -> None:
    """The server is never busy with more than some megabytes at a time, and the order of a key holds all the same."""

    async def use() -> list[int]:
        async with client(server.address, topic) as orders, await orders.subscribe() as receiver:
            await orders.send_messages([EventMessage(b"%d" % n + b"x" * 2**20, ordering_key="k") for n in range(10)])
            return [message.data[0] - ord("0") for message in await receive(receiver, 10)]

    assert asyncio.run(use()) == list(range(10))
