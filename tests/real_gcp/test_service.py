"""Tests on the service of Google Cloud itself.

You need a project in which you may create topics and subscriptions, and application default credentials::

    EVENTS_TEST_PROJECT=acme-dev EVENTS_TEST_REGION=europe-west2 pytest tests/real_gcp

They take about four minutes.  They create some ten topics and as many subscriptions, whose names begin with
``events-real-``.  Each is announced, and removed at the end, also after a failure.  The messages are few and small,
except for one of 10 MB.  Without a project or credentials all tests are skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, PublishError, ReceivedMessage
from events_core.engine import Delivery

from .conftest import EMULATED, Project

on_service = pytest.mark.skipif(EMULATED, reason="an emulator differs")


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(300):
            await test

    asyncio.run(bounded())


async def gather(receiver: EventReceiver, count: int) -> list[ReceivedMessage]:
    """Receive *count* messages; they stay held."""
    # All of them must be here first: a message waits while the one before it of its key is held.
    async with asyncio.timeout(120):
        while receiver.stats.buffered < count:
            await asyncio.sleep(0.05)
    received = list(await receiver.receive_messages(count, 60))
    assert len(received) == count, f"{len(received)} of {count} came"
    return received


def keyed(count: int) -> list[EventMessage]:
    return [EventMessage(b"%d" % number, ordering_key="k") for number in range(count)]


@pytest.mark.parametrize("mode", ["stream", "pull"])
def test_what_is_sent_arrives(project: Project, mode: str) -> None:
    """P1: a hundred messages arrive with their ids and attributes, and each is acknowledged."""

    async def test() -> None:
        topic = project.topic(f"arrives-{mode}")
        name = project.subscription(topic)
        async with project.client(topic, receive_mode=mode) as both, await both.subscribe(name) as receiver:
            messages = [EventMessage(b"%d" % number, {"number": str(number)}) for number in range(100)]
            sent = await both.send_messages(messages)
            received = {message.message_id: message for message in await gather(receiver, 100)}
            assert set(received) == set(sent)
            assert all(message.attributes["number"] == message.data.decode() for message in received.values())
            await receiver.acknowledge_messages(received.values())

    run(test())


def test_a_nacked_key_goes_on_where_it_failed(project: Project) -> None:
    """R10: the nacked message comes, then the later ones of its key, in order."""

    async def test() -> None:
        topic = project.topic("nacked")
        name = project.subscription(topic)
        async with project.client(topic) as both, await both.subscribe(name) as receiver:
            await both.send_messages(keyed(5))
            held = await gather(receiver, 5)
            await receiver.nack(held[0], delay=0.2)
            again = await gather(receiver, 5)
            assert [message.data for message in again] == [b"0", b"1", b"2", b"3", b"4"]
            await receiver.acknowledge_messages(again)

    run(test())


def test_what_a_receiver_gives_back_comes_to_the_next_in_order(project: Project) -> None:
    """C1, R8: messages of a key that a closing receiver held come to the next one in order."""

    async def test() -> None:
        topic = project.topic("given-back")
        name = project.subscription(topic)
        async with project.client(topic) as both:
            async with await both.subscribe(name) as first:
                await both.send_messages(keyed(4))
                await gather(first, 2)
            async with await both.subscribe(name) as second:
                received = await gather(second, 4)
                assert [message.data for message in received] == [b"0", b"1", b"2", b"3"]
                await second.acknowledge_messages(received)

    run(test())


def test_a_lease_is_renewed(project: Project) -> None:
    """R6: a message that is held for 25 s with a lease of 10 s does not come again."""

    async def test() -> None:
        topic = project.topic("lease")
        name = project.subscription(topic)
        async with project.client(topic, ack_deadline="10") as both, await both.subscribe(name) as receiver:
            await both.send_message(EventMessage(b"x"))
            (message,) = await gather(receiver, 1)
            assert await receiver.receive_message(25) is None
            assert receiver.stats.duplicates == 0
            await receiver.acknowledge(message)

    run(test())


@on_service
def test_the_service_answers_pings(project: Project) -> None:
    """V1: a stream without messages shows a sign of life every 30 s."""

    async def test() -> None:
        topic = project.topic("pings")
        name = project.subscription(topic)
        async with project.client(topic) as both, await both.subscribe(name) as receiver:
            assert await receiver.receive_message(50) is None
            assert receiver.stats.last_alive_age is not None
            assert receiver.stats.last_alive_age < 40

    run(test())


@on_service
def test_a_filter_is_applied(project: Project) -> None:
    """A message that does not match is not received."""

    async def test() -> None:
        topic = project.topic("filter")
        wanted = 'attributes.kind = "invoice"'
        name = project.subscription(topic, filter=wanted)
        async with project.client(topic, filter=wanted) as both, await both.subscribe(name) as receiver:
            await both.send_messages([EventMessage(b"0", {"kind": "offer"}), EventMessage(b"1", {"kind": "invoice"})])
            (message,) = await gather(receiver, 1)
            assert message.data == b"1"
            await receiver.acknowledge(message)

    run(test())


def test_exactly_once_delivery_tells_of_each_message(project: Project) -> None:
    """S3: acknowledging an ended delivery is EXPIRED, and the other acknowledgement succeeds."""

    async def test() -> None:
        topic = project.topic("exactly-once")
        name = project.subscription(topic, enable_exactly_once_delivery=True, enable_message_ordering=False)
        path = f"projects/{project.name}/subscriptions/{name}"
        async with project.client(topic) as both, await both.subscribe(name) as receiver:
            await both.send_messages([EventMessage(b"0"), EventMessage(b"1")])
            held = await gather(receiver, 2)
            delivery = held[0].delivery
            assert isinstance(delivery, Delivery)
            project.subscriber.acknowledge(subscription=path, ack_ids=[delivery.token])
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge_messages(held)
            assert {each: error.code for each, error in caught.value.failed.items()} == {
                held[0].message_id: ErrorCode.EXPIRED
            }

    run(test())


def test_dead_letters_keep_their_order(project: Project) -> None:
    """R12: with order, the receiver moves the message at its last attempt, and the key goes on."""

    async def test() -> None:
        topic, dead = project.topic("failing"), project.topic("letters")
        name, letters = project.subscription(topic), project.subscription(dead)
        options = {"ordering": "true", "dead_letter_topic": dead, "max_delivery_attempts": "5"}
        async with project.client(topic, **options) as both, project.client(dead, ordering="false") as undertaker:
            receiver, grave = await both.subscribe(name), await undertaker.subscribe(letters)
            async with receiver, grave:
                await both.send_messages(keyed(2))
                for _ in range(5):
                    await receiver.nack((await gather(receiver, 2))[0], delay=0)
                (letter,) = await gather(grave, 1)
                assert letter.data == b"0"
                await grave.acknowledge(letter)
                (successor,) = await gather(receiver, 1)
                assert successor.data == b"1"
                await receiver.acknowledge(successor)

    run(test())


def test_the_largest_message_arrives(project: Project) -> None:
    """P2: a message of 9,998,000 bytes arrives."""

    async def test() -> None:
        topic = project.topic("large")
        name = project.subscription(topic)
        async with project.client(topic) as both, await both.subscribe(name) as receiver:
            await both.send_message(EventMessage(bytes(9_998_000)))
            (message,) = await gather(receiver, 1)
            assert len(message.data) == 9_998_000
            await receiver.acknowledge(message)

    run(test())


def test_a_missing_topic_is_told(project: Project) -> None:
    """P7: the send raises NOT_FOUND at once, without a retry."""

    async def test() -> None:
        async with project.client("events-real-missing", ordering="false") as sender:
            with pytest.raises(PublishError) as caught:
                await sender.send_message(EventMessage(b"x"))
            assert caught.value.code is ErrorCode.NOT_FOUND

    run(test())
