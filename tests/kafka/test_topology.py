"""Topics and consumer groups: how they are created, found and deleted."""

from __future__ import annotations

import asyncio

import pytest

from events_core import ErrorCode, EventConnectionError, EventError, EventMessage, ReceiveError
from events_kafka.admin import Administrator
from events_kafka.options import KafkaOptions
from events_kafka.topology import Topology

from ..receiving import numbered, take
from .console import Console, client


def test_a_topic_is_created_as_the_options_say(console: Console) -> None:
    """Q2: the topic has the partitions and the retention that the options name."""

    async def scenario() -> None:
        async with console.client(partitions="5", replication_factor="1", retention="3600") as sender:
            await sender.ping(timeout=60)

    asyncio.run(scenario())
    assert console.partitions() == 5
    assert console.topic_settings()["retention.ms"] == "3600000"


def test_a_topic_that_exists_is_not_changed(console: Console) -> None:
    """Q2: options for new topics mean nothing for one that exists."""
    console.create_topic(partitions=2, retention_ms="1000000")

    async def scenario() -> None:
        async with console.client(partitions="5", retention="3600") as sender:
            await sender.send_message(EventMessage(b""))

    asyncio.run(scenario())
    assert console.partitions() == 2
    assert console.topic_settings()["retention.ms"] == "1000000"


def test_many_clients_create_one_topic(console: Console) -> None:
    """Q2: clients that find the topic missing at the same moment all work."""

    async def one(number: int) -> str:
        async with console.client() as sender:
            return await sender.send_message(EventMessage(b"%d" % number))

    async def scenario() -> None:
        ids = await asyncio.gather(*map(one, range(8)))
        assert len(set(ids)) == 8

    asyncio.run(scenario())


@pytest.mark.parametrize("create", ["never", "subscription"])
def test_a_missing_topic_is_told(console: Console, create: str) -> None:
    """Q2: unless create=all, a missing topic is NOT_FOUND, promptly."""

    async def scenario() -> EventError:
        async with console.client(create=create) as sender:
            with pytest.raises(EventConnectionError, match=console.topic) as caught:
                await sender.ping(timeout=60)
            return caught.value

    assert asyncio.run(scenario()).code is ErrorCode.NOT_FOUND


def test_too_many_replicas_are_refused(console: Console) -> None:
    """Q2: the error names the option."""

    async def scenario() -> EventError:
        async with console.client(replication_factor="30") as sender:
            with pytest.raises(EventConnectionError, match="replication_factor") as caught:
                await sender.ping(timeout=60)
            return caught.value

    assert asyncio.run(scenario()).code is ErrorCode.INVALID


def test_a_configured_subscription_exists_before_the_first_send(console: Console) -> None:
    """Q2: its group has committed a position for every partition when the client has connected."""

    async def scenario() -> None:
        async with console.client(partitions="3") as sender:
            await sender.send_message(EventMessage(b""))

    asyncio.run(scenario())
    assert [console.committed(partition) for partition in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(("start", "positions"), [("latest", 3), ("earliest", 1)])
def test_a_new_group_starts_where_the_option_says(console: Console, start: str, positions: int) -> None:
    """Q3: latest is the end of the partition, earliest the first record that is kept."""
    console.create_topic()
    for _ in range(3):
        console.produce(b"")
    console.delete_records(before=1)

    async def scenario() -> None:
        async with console.client(start=start) as sender:
            await sender.ping(timeout=60)

    asyncio.run(scenario())
    assert console.committed() == positions


def test_a_new_group_starts_at_a_time(console: Console) -> None:
    """Q3: the position is the first record since then; a partition without one starts at its end."""
    # Kafka deletes records of 1970 when it next looks for old ones, once in five minutes.
    console.create_topic(partitions=2, retention_ms="-1")
    for milliseconds in (1000, 2000, 3000):
        console.produce(b"", partition=0, timestamp=milliseconds)
    console.produce(b"", partition=1, timestamp=1000)

    async def scenario() -> None:
        async with console.client(start="1970-01-01T00:00:02Z") as sender:
            await sender.ping(timeout=60)

    asyncio.run(scenario())
    assert [console.committed(0), console.committed(1)] == [1, 1]


def test_a_group_that_exists_keeps_its_position(console: Console) -> None:
    """Q3: start counts for a new subscription only."""
    console.create_topic()
    for _ in range(3):
        console.produce(b"")
    console.commit(2)

    async def scenario() -> None:
        async with console.client(start="earliest") as sender:
            await sender.ping(timeout=60)

    asyncio.run(scenario())
    assert console.committed() == 2


def test_a_group_may_be_shared_with_other_programs(console: Console) -> None:
    """The option group_id names the group, which then has no topic in its name."""
    console.create_topic()
    group = f"{console.topic}-shared"

    async def scenario() -> None:
        async with console.client(subscription=group, group_id="{subscription}") as sender:
            await sender.ping(timeout=60)

    asyncio.run(scenario())
    assert console.position(group=group) is not None


def test_a_missing_subscription_is_told(console: Console) -> None:
    """Q2: with create=never, subscribing to a group without a position is NOT_FOUND, and creates nothing."""
    console.create_topic()

    async def scenario() -> EventError:
        async with console.client(create="never") as receiving:
            with pytest.raises(ReceiveError, match="create=subscription") as caught:
                await receiving.subscribe()
            return caught.value

    assert asyncio.run(scenario()).code is ErrorCode.NOT_FOUND
    assert not console.has_group()


def test_a_subscription_is_deleted(console: Console) -> None:
    """Deleting removes the group with its positions; a second time it is NOT_FOUND."""

    async def scenario() -> EventError:
        async with console.client() as both:
            await both.send_messages(numbered(3))
            assert await asyncio.to_thread(console.has_group)
            await both.delete_subscription(console.subscription)
            with pytest.raises(ReceiveError) as caught:
                await both.delete_subscription(console.subscription)
            return caught.value

    assert asyncio.run(scenario()).code is ErrorCode.NOT_FOUND
    assert not console.has_group()


def test_letters_have_a_topic_and_a_subscription(console: Console) -> None:
    """R12: the subscription of the dead-letter topic begins with its oldest letter."""
    dead = f"{console.topic}-dead"
    options = {"dead_letter_topic": dead, "max_delivery_attempts": "5"}

    async def scenario() -> None:
        async with client(dead, bootstrap_servers=console.address) as other:
            await other.send_message(EventMessage(b"an old letter"))
        async with console.client(**options) as receiving, receiving.subscribe():
            pass

    asyncio.run(scenario())
    letters = Console(console.server)
    letters.topic = dead
    letters.subscription = f"{dead}-letters"
    assert letters.committed() == 0


def test_a_subscription_that_is_created_again_skips_nothing(console: Console) -> None:
    """F1: what others have sent to a topic since it was created again is received, also with start=latest."""
    console.create_topic()
    console.produce(b"sent meanwhile")
    options = KafkaOptions(bootstrap_servers=console.address, subscription=console.subscription, create="all")

    async def scenario() -> None:
        admin = Administrator(options)
        await admin.open()
        try:
            await Topology(admin, console.topic, options).create(again=True)
        finally:
            await admin.close()

    asyncio.run(scenario())
    assert console.committed() == 0


def test_a_dead_letter_topic_that_was_deleted_is_created_again(console: Console) -> None:
    """R12: with create=all, the next letter creates the topic, and nothing is lost."""
    dead = Console(console.server)

    async def scenario() -> None:
        options = {"dead_letter_topic": dead.topic, "max_delivery_attempts": "5"}
        async with console.client(**options) as both, both.subscribe() as receiver:
            for number in range(2):
                await both.send_message(EventMessage(b"%d" % number))
                await receiver.reject(await take(receiver))
                if number == 0:
                    await asyncio.to_thread(dead.delete_topic)

    asyncio.run(scenario())
    (letter,) = dead.records(1)
    assert letter.value() == b"1"
