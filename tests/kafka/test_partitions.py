"""Partitions that are added, topics that are created again, and positions that the broker no longer has."""

from __future__ import annotations

import asyncio
import logging

import pytest

from events_core import AcknowledgeError, ErrorCode, EventMessage
from events_core.engine import BrokerError
from events_kafka.source import KafkaSource
from events_kafka.topology import Topology

from ..receiving import acknowledge_what_is_left, gather, numbered, numbers, settle_data, take, take_after
from ..waiting import until
from .console import Console, client

WATCHFUL = {"librdkafka": "topic.metadata.refresh.interval.ms=1000"}
"""Options with which a receiver soon notices that its topic has changed."""


def test_a_partition_that_is_added_starts_at_its_beginning(console: Console) -> None:
    """R9: what was sent to a new partition before the receiver knew of it is received."""
    console.create_topic()

    async def scenario() -> None:
        async with console.client(**WATCHFUL) as both, both.subscribe() as receiver:
            await asyncio.to_thread(console.add_partitions, 3)
            for partition in range(3):
                await asyncio.to_thread(console.produce, b"%d" % partition, partition=partition)
            await settle_data(receiver, {b"0", b"1", b"2"})
            await until(lambda: [console.committed(partition) for partition in range(3)] == [1, 1, 1])

    asyncio.run(scenario())


def test_a_partition_that_was_added_meanwhile_starts_at_its_beginning(console: Console) -> None:
    """R9: a partition was added while the subscription had no receiver."""
    console.create_topic()

    async def scenario() -> None:
        async with console.client(**WATCHFUL) as both:
            async with both.subscribe() as receiver:
                await both.send_message(EventMessage(b"x"))
                await receiver.acknowledge(await take(receiver))
            await asyncio.to_thread(console.add_partitions, 2)
            await asyncio.to_thread(console.produce, b"added", partition=1)
            async with both.subscribe() as receiver:
                assert (await take(receiver)).data == b"added"

    asyncio.run(scenario())


def test_an_ephemeral_receiver_notices_added_partitions(console: Console) -> None:
    """Q1: an ephemeral subscription gets what is sent to partitions that were added."""
    console.create_topic()

    async def scenario() -> None:
        options = {"bootstrap_servers": console.address, **WATCHFUL}
        async with client(console.topic, **options) as both, both.subscribe() as receiver:
            await asyncio.to_thread(console.add_partitions, 2)
            await asyncio.to_thread(console.produce, b"added", partition=1)
            assert (await take(receiver)).data == b"added"

    asyncio.run(scenario())


def test_a_topic_that_is_created_again_starts_at_its_beginning(
    console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    """F1, F2: messages of the new topic come, those of the old one have expired, and a WARNING tells of it."""
    console.create_topic()

    async def scenario() -> None:
        async with console.client(create="subscription", **WATCHFUL) as both, both.subscribe() as receiver:
            await both.send_messages(numbered(10))
            held, *others = await gather(receiver, 10)
            await receiver.acknowledge_messages(others)
            await until(lambda: bool((found := console.position()) and found.metadata))
            await asyncio.to_thread(console.delete_topic)
            await asyncio.to_thread(console.create_topic)
            await asyncio.to_thread(console.produce, b"new")
            message = await take_after(receiver, ErrorCode.NOT_FOUND)
            assert message.data == b"new"
            await receiver.acknowledge(message)
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(held)
            assert caught.value.code is ErrorCode.EXPIRED
            await until(lambda: console.committed() == 1)

    with caplog.at_level(logging.WARNING, "events_kafka"):
        asyncio.run(scenario())
    assert "created again" in caplog.text


def test_a_deleted_topic_is_created_again(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1: with create=all the receiver creates what is missing, and goes on."""

    async def scenario() -> None:
        async with console.client(**WATCHFUL) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"old"))
            await receiver.acknowledge(await take(receiver))
            # A commit that librdkafka repeats until there is a topic again would count for the new one.
            await until(lambda: console.committed() == 1)
            await asyncio.to_thread(console.delete_topic)
            await until(lambda: console.partitions() > 0)
            await asyncio.to_thread(console.produce, b"new")
            message = await take(receiver)
            assert message.data == b"new"
            await receiver.acknowledge(message)

    with caplog.at_level(logging.WARNING, "events_kafka"):
        asyncio.run(scenario())
    assert "was deleted" in caplog.text


class Reports:
    """The number of times that a receiver has learned that its topic is missing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        failed = KafkaSource.failed

        def count(source: KafkaSource, error: BrokerError) -> None:
            failed(source, error)
            self.count += error.code is ErrorCode.NOT_FOUND

        monkeypatch.setattr(KafkaSource, "failed", count)

    async def another(self) -> None:
        """Wait for another one."""
        before = self.count
        await until(lambda: self.count > before)


def test_a_deleted_topic_is_created_again_when_the_receiver_has_room(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: with create=all, the receiver is full when it learns that the topic is missing.  No receive fails."""
    reports = Reports(monkeypatch)

    async def scenario() -> None:
        async with console.client(max_outstanding_messages="1", **WATCHFUL) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"old"))
            await receiver.acknowledge(await take(receiver))
            await until(lambda: console.committed() == 1)
            await both.send_message(EventMessage(b"held"))
            held = await take(receiver)
            await asyncio.to_thread(console.delete_topic)
            await reports.another()
            await acknowledge_what_is_left(receiver, [held])
            receiving = asyncio.create_task(take(receiver))
            await until(lambda: receiving.done() or console.partitions() > 0)
            if not receiving.done():
                await asyncio.to_thread(console.produce, b"new")
            assert (await receiving).data == b"new"

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", [False, True])
def test_a_deleted_topic_is_created_again_however_long_it_takes(
    console: Console, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """F1: with create=all, the topic is reported as missing again while a request creates it, or fails to."""
    reports = Reports(monkeypatch)
    create = Topology.create
    tries = 0

    async def create_slowly(topology: Topology, *, again: bool = False) -> None:
        nonlocal tries
        tries += again
        if again and tries == 1:
            await reports.another()
            if fails:
                raise BrokerError("the brokers are busy", ErrorCode.UNAVAILABLE, retryable=True)
        await create(topology, again=again)

    monkeypatch.setattr(Topology, "create", create_slowly)

    async def scenario() -> None:
        async with console.client(**WATCHFUL) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"old"))
            await receiver.acknowledge(await take(receiver))
            await until(lambda: console.committed() == 1)
            receiving = asyncio.create_task(take(receiver))
            await asyncio.to_thread(console.delete_topic)
            await until(lambda: receiving.done() or console.partitions() > 0)
            if not receiving.done():
                await asyncio.to_thread(console.produce, b"new")
            assert (await receiving).data == b"new"

    asyncio.run(scenario())


def test_messages_that_retention_has_deleted_are_told(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """R9: the receiver goes on with the oldest message that is left, and a WARNING says what is gone."""

    async def scenario() -> None:
        async with console.client() as both:
            async with both.subscribe():
                await both.send_messages(numbered(10))
            committed = console.committed()
            assert committed is not None
            await asyncio.to_thread(console.delete_records, committed + 5)
            async with both.subscribe() as receiver:
                assert numbers(await gather(receiver, 5)) == [5, 6, 7, 8, 9]

    with caplog.at_level(logging.WARNING, "events_kafka"):
        asyncio.run(scenario())
    assert "are gone" in caplog.text


def test_a_position_behind_the_end_goes_to_the_beginning(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """R9: a position that the partition does not have is never followed by silence."""

    async def scenario() -> None:
        async with console.client() as both:
            await both.send_messages(numbered(3))
            # The group has a position already, and no member has joined it, so that anybody may commit.
            await asyncio.to_thread(console.commit, 1000)
            async with both.subscribe() as receiver:
                assert numbers(await gather(receiver, 3)) == [0, 1, 2]

    with caplog.at_level(logging.WARNING, "events_kafka"):
        asyncio.run(scenario())
    assert "the position was 1000" in caplog.text
