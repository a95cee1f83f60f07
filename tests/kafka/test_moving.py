"""Partitions that move between the receivers of a subscription."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
from confluent_kafka import Consumer, ConsumerGroupState

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, EventRuntimeError, ReceivedMessage

from ..receiving import PATIENCE, acknowledge_what_is_left, gather, numbered, numbers, settle_all, take
from ..waiting import until
from .console import QUIET, Console

SHORT = {"session_timeout": "6"}


async def spread(console: Console, receivers: Sequence[EventReceiver], partitions: int) -> None:
    """Send negative numbers to all partitions until each of the receivers has got one, and all are acknowledged."""
    got: set[EventReceiver] = set()
    left: set[int] = set()
    lowest = 0
    async with asyncio.timeout(PATIENCE):
        while left or len(got) < len(receivers):
            for partition in range(0 if left else partitions):
                lowest -= 1
                left.add(lowest)
                await asyncio.to_thread(console.produce, b"%d" % lowest, partition=partition)
            for receiver in receivers:
                # A partition may move before the acknowledgement.
                some = await acknowledge_what_is_left(receiver, await receiver.receive_messages(100, 0.2))
                if some:
                    got.add(receiver)
                    left.difference_update(numbers(some))


def test_two_receivers_share_the_partitions(console: Console) -> None:
    """Q1: each partition has one receiver at a time, and each message goes to one."""
    console.create_topic(partitions=4)

    async def scenario() -> None:
        async with console.client() as both:
            first, second = await both.subscribe(), await both.subscribe()
            await spread(console, [first, second], 4)
            for number in range(40):
                await asyncio.to_thread(console.produce, b"%d" % number, partition=number % 4)
            came: list[int] = []
            owners: dict[str, set[EventReceiver]] = {}
            async with asyncio.timeout(PATIENCE):
                while len(came) < 40:
                    for receiver in (first, second):
                        some = await receiver.receive_messages(100, 0.2)
                        await receiver.acknowledge_messages(some)
                        came += [number for number in numbers(some) if number >= 0]
                        for message in some:
                            owners.setdefault(message.message_id.split("/")[1], set()).add(receiver)
            assert sorted(came) == list(range(40))
            assert all(len(each) == 1 for each in owners.values())

    asyncio.run(scenario())


def test_a_close_gives_the_rest_to_the_other_receiver_in_order(console: Console) -> None:
    """C1, R8: the first receiver holds 0 to 4 and has 5 to 9 buffered; the other one gets 0 first."""
    console.create_topic()

    async def scenario() -> None:
        async with console.client() as both:
            first = await both.subscribe()
            await both.send_messages(numbered(10, key="k"))
            await gather(first, 10)
            second = await both.subscribe()
            await first.close(timeout=0)
            assert await settle_all(second, 10) == list(range(10))

    asyncio.run(scenario())


def test_what_is_held_when_its_partition_moves_has_expired(console: Console) -> None:
    """F2: an acknowledgement after the move is EXPIRED, and the message comes to the next receiver."""
    console.create_topic(partitions=2)

    async def scenario() -> None:
        async with console.client() as both:
            first = await both.subscribe()
            for partition in range(2):
                await asyncio.to_thread(console.produce, b"%d" % partition, partition=partition)
            held = {message.data: message for message in await gather(first, 2)}
            second = await both.subscribe()
            moved = await take(second)
            await second.acknowledge(moved)
            with pytest.raises(AcknowledgeError) as caught:
                await first.acknowledge(held[moved.data])
            assert caught.value.code is ErrorCode.EXPIRED
            (kept,) = set(held) - {moved.data}
            await first.acknowledge(held[kept])
            await until(lambda: (console.committed(0), console.committed(1)) == (1, 1))

    asyncio.run(scenario())


def test_what_was_acknowledged_before_its_partition_moves_does_not_come_again(console: Console) -> None:
    """R9: settled messages are committed before another receiver gets the partition."""
    console.create_topic(partitions=2)

    async def scenario() -> None:
        async with console.client() as both:
            first = await both.subscribe()
            for number in range(100):
                await asyncio.to_thread(console.produce, b"%d" % number, partition=number % 2)
            received = await gather(first, 100)
            second = await both.subscribe()
            done: set[bytes] = set()
            for message in received:
                if int(message.data) % 10:
                    done |= {each.data for each in await acknowledge_what_is_left(first, [message])}
                    await asyncio.sleep(0.03)  # so that the partition moves in between
            again: set[bytes] = set()
            while some := await second.receive_messages(100, 5 if again else PATIENCE):
                again |= {message.data for message in some}
                await second.acknowledge_messages(some)
            assert again
            assert not again & done

    asyncio.run(scenario())


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_partition_that_was_paused_goes_on_when_it_comes_back(
    console: Console, caplog: pytest.LogCaptureFixture, strategy: str
) -> None:
    """R9: a held message pauses its partition, which moves to another receiver and back; the message comes again."""
    console.create_topic(partitions=2)

    async def scenario() -> None:
        options = {"max_gap": "5", "librdkafka": f"partition.assignment.strategy={strategy}"}
        async with console.client(**options) as both:
            first = await both.subscribe()
            for number in range(20):
                await asyncio.to_thread(console.produce, b"%d" % number, partition=number % 2)
            received = await gather(first, 20)
            held = {message.data: message for message in received if int(message.data) < 2}
            await first.acknowledge_messages([message for message in received if int(message.data) > 1])
            await until(lambda: caplog.text.count("pauses") == 2)
            second = await both.subscribe()
            moved = await take(second)
            assert await acknowledge_what_is_left(first, [held[moved.data]]) == []
            await second.close(timeout=0)
            again = await take(first)
            assert again.data == moved.data
            await first.acknowledge(again)

    asyncio.run(scenario())


def test_a_close_in_the_middle_of_a_rebalance_is_no_failure(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """C1: the receiver leaves when the rebalance is over, also after its close has returned, and warns of nothing."""
    console.create_topic(partitions=2)

    async def scenario() -> None:
        eager = "partition.assignment.strategy=range"
        async with console.client(librdkafka=eager) as both:
            with slow_member(console) as poll:
                receiver = await both.subscribe()
                # It waits for the other member, which is to give its partitions up first, and does not look.
                await until(lambda: console.state() == ConsumerGroupState.PREPARING_REBALANCING)
                await receiver.close(timeout=PATIENCE)
                assert "closing" not in caplog.text
                assert console.members() == 2
                await until(lambda: poll() == 2 and console.members() == 1)

    asyncio.run(scenario())


@contextmanager
def slow_member(console: Console) -> Iterator[Callable[[], int]]:
    """Enter with another program's member of the group, which has all partitions.

    It looks for news of the group only when the yielded function is called, which returns how many partitions it has.
    """
    settings = {"bootstrap.servers": console.address, "group.id": console.group, **QUIET}
    consumer = Consumer({**settings, "partition.assignment.strategy": "range"})

    def poll() -> int:
        consumer.poll(0.1)
        return len(consumer.assignment())

    # With a callback, librdkafka gives nothing up before a poll has called it.
    consumer.subscribe([console.topic], on_revoke=lambda consumer, partitions: consumer.unassign())
    console.until_known(lambda: poll() > 0)
    try:
        yield poll
    finally:
        consumer.close()


def test_a_static_member_that_restarts_has_its_partition_again(console: Console) -> None:
    """C1: while it is away, nobody else gets its partition, and the other receivers keep all that they hold."""
    console.create_topic(partitions=2)

    async def scenario() -> None:
        async with console.client(static_member="one") as first, console.client(static_member="two") as other:
            one, two = await first.subscribe(), await other.subscribe()
            await spread(console, [one, two], 2)
            await asyncio.to_thread(console.produce, b"1", partition=0)
            await asyncio.to_thread(console.produce, b"1", partition=1)
            held, mine = await take(two), await take(one)
            await one.acknowledge(mine)
            await one.close()
            assert console.members() == 2
            partition = int(mine.message_id.split("/")[1])
            await asyncio.to_thread(console.produce, b"2", partition=partition)
            async with first.subscribe() as again:
                message = await take(again)
                assert (message.data, int(message.message_id.split("/")[1])) == (b"2", partition)
                await again.acknowledge(message)
                await two.acknowledge(held)
                await until(lambda: console.committed(1 - partition) == console.end(1 - partition))
            assert await two.receive_message(0.5) is None

    asyncio.run(scenario())


class Ledger:
    """The truth about messages that carry the number of their place in their key."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        """The number of acknowledged messages of each key."""
        self.problems: list[str] = []
        self.again = 0
        self.expired = 0

    def received(self, message: ReceivedMessage, name: str) -> None:
        key, number = message.ordering_key or "", int(message.data)
        done = self.done.get(key, 0)
        self.again += number < done
        if number > done:
            self.problems.append(f"{name} got {number} of {key}, and {done} are done: {message.message_id}")

    def acknowledged(self, message: ReceivedMessage) -> None:
        """Call it before the acknowledgement, since the next message of the key comes before that returns."""
        key, number = message.ordering_key or "", int(message.data)
        self.done[key] = max(self.done.get(key, 0), number + 1)

    def failed(self, message: ReceivedMessage) -> None:
        """Take back the last call of :meth:`acknowledged`."""
        key, number = message.ordering_key or "", int(message.data)
        self.expired += 1
        self.done[key] = min(self.done[key], number)


async def work(receiver: EventReceiver, ledger: Ledger, name: str) -> None:
    async for message in receiver:
        ledger.received(message, name)
        await asyncio.sleep(0.003)  # the work; several partitions move meanwhile
        if random.random() < 0.05:
            with suppress(EventRuntimeError):  # the receiver is closed
                await receiver.nack(message, delay=0.01)
            continue
        try:
            ledger.acknowledged(message)
            await receiver.acknowledge(message)
        except (AcknowledgeError, EventRuntimeError):  # the partition has moved, or the receiver is closed
            ledger.failed(message)


async def member(console: Console, ledger: Ledger, name: str, seconds: float) -> None:
    """Work for some *seconds* in the subscription, then leave it."""
    async with console.client(**SHORT) as client:
        receiver = await client.subscribe()
        workers = [asyncio.create_task(work(receiver, ledger, name)) for _ in range(4)]
        await asyncio.sleep(seconds)
        await receiver.close(timeout=random.choice([0, 2]))
        await asyncio.gather(*workers)


async def visit(console: Console, ledger: Ledger, name: str) -> None:
    """Join and leave again and again, also in the middle of a rebalance."""
    while True:
        await member(console, ledger, name, random.random() * 2)


def test_order_holds_while_receivers_come_and_go(console: Console) -> None:
    """R8, R9, R10: of each key, nothing comes before what was sent before it is acknowledged, and nothing is lost."""
    console.create_topic(partitions=4)
    count, keys = 6000, 20
    ledger = Ledger()

    async def scenario() -> None:
        async with console.client(**SHORT) as sender:
            await (await sender.subscribe()).close(timeout=0)  # so that the subscription exists
            await sender.send_messages(
                EventMessage(b"%d" % (number // keys), ordering_key=f"k{number % keys}") for number in range(count)
            )
            steady = asyncio.create_task(member(console, ledger, "steady", 3600))
            guests = [asyncio.create_task(visit(console, ledger, name)) for name in ("one", "other")]
            async with asyncio.timeout(3 * PATIENCE):
                while sum(ledger.done.values()) < count:
                    await asyncio.sleep(0.1)
            for each in (steady, *guests):
                each.cancel()
            ends = await asyncio.gather(steady, *guests, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends

    asyncio.run(scenario())
    assert ledger.problems == []
    assert ledger.done == {f"k{key}": count // keys for key in range(keys)}
