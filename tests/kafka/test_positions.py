"""Committed positions: nothing that failed or is held is passed, and what was acknowledged does not come again."""

from __future__ import annotations

import asyncio
import logging

import pytest
from confluent_kafka import Producer

from events_core import EventMessage, EventReceiver, ReceivedMessage

from ..receiving import PATIENCE, gather, numbered, numbers, settle_all, take
from ..waiting import until
from .conftest import StartCluster
from .console import QUIET, Console


def test_a_position_follows_acknowledgements(console: Console) -> None:
    """S1: what is acknowledged is committed soon, while the receiver goes on."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_messages(numbered(10))
            await receiver.acknowledge_messages(await gather(receiver, 10))
            await until(lambda: console.committed() == 10)

    asyncio.run(scenario())


def test_a_close_commits(console: Console) -> None:
    """C1: what was acknowledged a moment ago does not come again."""

    async def scenario() -> None:
        async with console.client() as both:
            async with both.subscribe() as receiver:
                await both.send_messages(numbered(3))
                await receiver.acknowledge_messages(await gather(receiver, 3))
            await until(lambda: console.committed() == 3)

    asyncio.run(scenario())


def test_a_held_message_keeps_the_position(console: Console) -> None:
    """R9: the position stays at the lowest message that is not settled, however many later ones are."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_messages(numbered(10))
            received = await gather(receiver, 10)
            await receiver.acknowledge_messages([*received[:2], *received[3:]])
            await until(lambda: console.committed() == 2)
            await receiver.acknowledge(received[2])
            await until(lambda: console.committed() == 10)

    asyncio.run(scenario())


def test_a_nacked_message_keeps_the_position(console: Console) -> None:
    """R9: a message that failed stays behind the position until it is acknowledged, also over a close."""

    async def scenario() -> None:
        async with console.client() as both:
            async with both.subscribe() as receiver:
                await both.send_messages(numbered(5))
                received = await gather(receiver, 5)
                await receiver.nack(received[1], delay=3600)
                await receiver.acknowledge_messages([received[0], *received[2:]])
            await until(lambda: console.committed() == 1)
            async with both.subscribe() as receiver:
                message = await take(receiver)
                assert message.data == b"1"
                await receiver.acknowledge(message)
            await until(lambda: console.committed() == 5)

    asyncio.run(scenario())


def test_what_was_acknowledged_beyond_the_position_does_not_come_again(console: Console) -> None:
    """R9: the metadata of the commit names it, so the next receiver gets only what is left."""

    async def scenario() -> None:
        async with console.client() as both:
            async with both.subscribe() as receiver:
                await both.send_messages(numbered(10))
                received = await gather(receiver, 10)
                await receiver.acknowledge_messages(received[i] for i in (1, 2, 5, 9))
            async with both.subscribe() as receiver:
                assert numbers(await gather(receiver, 6)) == [0, 3, 4, 6, 7, 8]

    asyncio.run(scenario())


def test_metadata_of_another_program_is_ignored(console: Console) -> None:
    """R9: a position that an administrator has set means all messages from there on."""

    async def scenario() -> None:
        async with console.client() as both:
            async with both.subscribe() as receiver:
                await both.send_messages(numbered(5))
                await receiver.acknowledge_messages(await gather(receiver, 5))
            await until(lambda: console.members() == 0)  # otherwise the broker refuses the commit
            await asyncio.to_thread(console.commit, 2, metadata="events 1 0 1+4")
            async with both.subscribe() as receiver:
                assert numbers(await gather(receiver, 3)) == [2, 3, 4]

    asyncio.run(scenario())


def test_a_running_receiver_commits_what_is_acknowledged_beyond_the_position(console: Console) -> None:
    """R9: after a crash it would not come again, because the metadata of the last commit names it."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_messages(numbered(10))
            received = await gather(receiver, 10)
            await receiver.acknowledge_messages(received[5:])
            await until(lambda: bool((found := console.position()) and found.metadata))
            position = console.position()
            assert position is not None
            assert (position.offset, position.metadata) == (0, "events 1 0 5+5")

    asyncio.run(scenario())


def test_a_broker_may_take_less_metadata(start_cluster: StartCluster) -> None:
    """R9: the position is committed all the same, with as much as the broker takes; the rest comes again."""
    (server,) = start_cluster(1, "offset.metadata.max.bytes=100")
    console = Console(server)

    async def scenario() -> None:
        async with console.client() as both:
            async with both.subscribe() as receiver:
                await both.send_messages(numbered(201))
                received = await gather(receiver, 201)
                # The metadata names each of them with four bytes.
                await receiver.acknowledge_messages(received[1::2])
                await receiver.acknowledge(received[0])
                await until(lambda: console.committed() == 2)
            position = console.position()
            assert position is not None
            assert position.offset == 2
            assert 50 < len(position.metadata or "") <= 100
            async with both.subscribe() as receiver:
                came = await settle_all_once(receiver)
            assert set(range(2, 201, 2)) <= came
            assert not came & {3, 5, 7, 9, 11}

    asyncio.run(scenario())


async def settle_all_once(receiver: EventReceiver) -> set[int]:
    """Acknowledge until the message with the number 200 has come; return all numbers that came."""
    came: set[int] = set()
    while 200 not in came:
        some = await receiver.receive_messages(100, PATIENCE)
        assert some, f"{len(came)} came"
        came |= set(numbers(some))
        await receiver.acknowledge_messages(some)
    return came


def test_a_group_that_kafka_has_forgotten_is_told(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """Q3: when the positions have expired, the receiver starts as a new one does, and a WARNING says so."""

    async def scenario() -> None:
        async with console.client() as both:
            async with both.subscribe() as receiver:
                await both.send_message(EventMessage(b"skipped"))
                await take(receiver)
            assert "forgotten" not in caplog.text
            await until(lambda: console.members() == 0)  # otherwise the broker refuses the deletion
            await both.delete_subscription(console.subscription)
            async with both.subscribe() as receiver:
                await both.send_message(EventMessage(b"next"))
                assert (await take(receiver)).data == b"next"
            assert "forgotten" in caplog.text

    with caplog.at_level(logging.WARNING, "events_kafka"):
        asyncio.run(scenario())


def test_offsets_of_aborted_transactions_are_passed(console: Console) -> None:
    """R9: with read_committed, records of an aborted transaction do not come, and do not keep the position."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"0"))
            await asyncio.to_thread(transact, console, [b"aborted"] * 3, commit=False)
            await asyncio.to_thread(transact, console, [b"1", b"2"], commit=True)
            last = await both.send_message(EventMessage(b"3"))
            assert await settle_all(receiver, 4) == [0, 1, 2, 3]
            # Not the end of the partition: the record that ends the transaction may be behind the last message.
            await until(lambda: console.committed() == int(last.split("/")[-1]) + 1)

    asyncio.run(scenario())


def transact(console: Console, values: list[bytes], *, commit: bool) -> None:
    producer = Producer({"bootstrap.servers": console.address, "transactional.id": console.topic, **QUIET})
    producer.init_transactions(PATIENCE)
    producer.begin_transaction()
    for value in values:
        producer.produce(console.topic, value)
    producer.flush(PATIENCE)
    if commit:
        producer.commit_transaction(PATIENCE)
    else:
        producer.abort_transaction(PATIENCE)


def test_a_gap_pauses_its_partition_alone(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """R5: behind a held message only max_gap settled ones gather; other partitions go on."""
    console.create_topic(partitions=2)

    async def scenario() -> None:
        options = {"max_gap": "20", "max_outstanding_messages": "10"}
        async with console.client(**options) as both, both.subscribe() as receiver:
            for number in range(200):
                await asyncio.to_thread(console.produce, b"%d" % number, partition=number % 2)
            held, came = await settle_all_but_the_first_of_a_partition(receiver)
            assert "max_gap" in caplog.text
            of_held = [message for message in came if partition_of(message) == partition_of(held)]
            assert len(of_held) < 50
            assert len(came) - len(of_held) == 100
            await receiver.acknowledge(held)
            left = 200 - len(came) - 1
            assert len(await settle_all(receiver, 0)) == 0
            assert len([await settle_one(receiver) for _ in range(left)]) == left
            await until(lambda: (console.committed(0), console.committed(1)) == (100, 100))

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())


def partition_of(message: ReceivedMessage) -> str:
    return message.message_id.split("/")[1]


async def settle_one(receiver: EventReceiver) -> ReceivedMessage:
    message = await take(receiver)
    await receiver.acknowledge(message)
    return message


async def settle_all_but_the_first_of_a_partition(
    receiver: EventReceiver,
) -> tuple[ReceivedMessage, list[ReceivedMessage]]:
    """Hold the first message, and acknowledge the others: 100 of the other partition, until none comes."""
    held = await take(receiver)
    came: list[ReceivedMessage] = []
    others = 0
    while some := await receiver.receive_messages(10, 5 if others == 100 else PATIENCE):
        await receiver.acknowledge_messages(some)
        came += some
        others += sum(partition_of(message) != partition_of(held) for message in some)
    return held, came
