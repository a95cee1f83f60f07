"""The problems that people reported of other clients of Pub/Sub, each tried on this one.

Their numbers, and the tests that stand elsewhere, are in ``problems.py``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Awaitable, Callable

import grpc
import pytest

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, PublishError
from events_core.engine import Delivery
from events_gcp import GcpPubSubClient, pull_pace, reading

from .broker import Broker
from .console import client
from .faults import FaultyServer, serving
from .waiting import PATIENCE, until

NAME = "orders"


def play(test: Callable[[Broker, GcpPubSubClient], Awaitable[None]], topic: str = NAME, **options: str) -> None:
    """Run *test* with a broker that has a subscription, and a client of it."""

    async def scenario() -> None:
        async with serving(Broker()) as broker:
            broker.subscription(NAME, topic, enable_message_ordering=True)
            async with client(topic, emulator_host=broker.address, create="never", **options) as both:
                await test(broker, both)

    asyncio.run(asyncio.wait_for(scenario(), 300))


def messages(count: int, key: str | None = None) -> list[EventMessage]:
    return [EventMessage(b"%d" % number, ordering_key=key) for number in range(count)]


async def take(receiver: EventReceiver, count: int) -> list[bytes]:
    """Receive *count* messages, in the order in which they come; they stay held."""
    received: list[bytes] = []
    while len(received) < count:
        some = await receiver.receive_messages(count - len(received), PATIENCE)
        assert some, f"{len(received)} of {count} came"
        received += [message.data for message in some]
    return received


# Memory, threads and descriptors


def test_a_settled_message_leaves_nothing_behind() -> None:
    """Problem 1: after a thousand messages were received and acknowledged, no object of them is left."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        async with await both.subscribe(NAME) as receiver:
            await both.send_messages([EventMessage(b"kept?")] * 1000)
            for _ in range(1000):
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                await receiver.acknowledge(message)
            message = None
            gc.collect()
            kept = [each for each in gc.get_objects() if isinstance(each, Delivery) and each.data == b"kept?"]
            assert len(kept) <= 1

    play(test)


def test_a_server_that_ignores_the_bound_fills_no_memory() -> None:
    """Problem 1, R5: the buffer is bounded, except for the last response of the server."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        await both.send_messages(messages(5000))
        async with await both.subscribe(NAME) as receiver:
            await until(lambda: receiver.stats.buffered >= 50)
            assert await receiver.receive_message(PATIENCE)
            assert receiver.stats.buffered + receiver.stats.held <= 50 + 100

    play(test, max_outstanding_messages="50")


def test_no_batch_starts_a_thread() -> None:
    """Problem 2: a hundred publish requests leave as many threads as the first one."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        await both.send_message(EventMessage(b"x"))
        before = threading.active_count()
        for _ in range(100):
            await both.send_message(EventMessage(b"x"))
        assert broker.requests["Publish", NAME] == 101
        assert threading.active_count() <= before

    play(test)


def test_clients_that_were_closed_leave_no_descriptor_and_no_thread() -> None:
    """Problem 3: a client for each send is slow, but it leaks nothing."""

    async def send(broker: Broker) -> None:
        async with client(NAME, emulator_host=broker.address, create="never") as sender:
            await sender.send_message(EventMessage(b"x"))

    async def scenario() -> None:
        async with serving(Broker()) as broker:
            await send(broker)
            descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
            for _ in range(20):
                await send(broker)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors and threading.active_count() <= threads)

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_no_reconnection_starts_a_thread() -> None:
    """Problem 10: twenty streams that end leave as many threads as one."""
    server = FaultyServer()
    server.responses = [[b"%d" % number] for number in range(21)]
    server.ends = dict.fromkeys(range(20), grpc.StatusCode.UNAVAILABLE)

    async def scenario() -> None:
        async with (
            serving(server),
            client(emulator_host=server.address, create="never") as receiving,
            await receiving.subscribe("billing") as receiver,
        ):
            await take(receiver, 1)
            before = threading.active_count()
            await take(receiver, 20)
            assert receiver.stats.reconnects == 20
            assert threading.active_count() <= before

    asyncio.run(asyncio.wait_for(scenario(), 300))


# Sending


def test_a_send_ends_although_nobody_answers() -> None:
    """Problem 16, P7: without an answer, the send ends after send_timeout, and the error says so."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        await both.ping(PATIENCE)
        broker.fail("Publish", NAME, left=float("inf"))
        with pytest.raises(PublishError, match="send_timeout=1 s") as caught:
            await both.send_message(EventMessage(b"x"))
        assert caught.value.code is ErrorCode.TIMEOUT

    play(test, send_timeout="1")


def test_a_key_goes_on_after_a_failed_send() -> None:
    """Problem 13, P3: after a failed send, the next send of the key is stored."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        broker.fail("Publish", NAME, grpc.StatusCode.PERMISSION_DENIED)
        with pytest.raises(PublishError):
            await both.send_message(EventMessage(b"refused", ordering_key="k"))
        assert await both.send_message(EventMessage(b"next", ordering_key="k"))

    play(test)


def test_the_first_send_after_a_ping_connects_no_more() -> None:
    """Problem 18: a ping before the first send connects, and the send uses the same connection."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        await both.ping(PATIENCE)
        (peer,) = broker.peers
        await both.send_message(EventMessage(b"x"))
        assert broker.peers == {peer}

    play(test)


# Receiving


def test_a_failed_acknowledgement_does_not_end_the_stream() -> None:
    """Problem 5, S5: the acknowledgement raises, and the next message comes on the same stream."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        async with await both.subscribe(NAME) as receiver:
            await both.send_message(EventMessage(b"0"))
            message = await receiver.receive_message(PATIENCE)
            assert message is not None
            broker.fail("Acknowledge", NAME, grpc.StatusCode.UNAVAILABLE, left=float("inf"))
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(message)
            assert caught.value.code is ErrorCode.TIMEOUT
            await both.send_message(EventMessage(b"1"))
            assert await take(receiver, 1) == [b"1"]
            assert broker.requests["StreamingPull", NAME] == 1

    play(test, ack_timeout="1")


@pytest.mark.usefixtures("patient_close")
def test_a_routine_end_of_a_stream_is_no_news(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Problem 6, V1: neither a stream that ends after its usual time nor a close logs a warning."""
    monkeypatch.setattr(reading, "_ROUTINE_AGE", 0.0)
    server = FaultyServer()
    server.responses = [[b"0"], [b"1"]]
    server.ends = {0: grpc.StatusCode.UNAVAILABLE}

    async def scenario() -> None:
        async with (
            serving(server),
            client(emulator_host=server.address, create="never") as receiving,
            await receiving.subscribe("billing") as receiver,
        ):
            assert await take(receiver, 2) == [b"0", b"1"]

    with caplog.at_level(logging.INFO):
        asyncio.run(asyncio.wait_for(scenario(), 300))
    assert len(server.streams) == 2
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_what_waits_behind_a_long_handler_keeps_its_lease() -> None:
    """Problem 7, R6: leases of buffered messages are renewed too, so nothing comes twice."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        broker.subscription(NAME, NAME, grace=10, ack_deadline_seconds=10)
        sent = await both.send_messages(messages(3))
        async with await both.subscribe(NAME) as receiver:
            assert await receiver.receive_message(PATIENCE)
            await until(lambda: all(broker.modified.count((each, 10)) >= 2 for each in sent))
            assert receiver.stats.duplicates == 0

    play(test, receive_mode="pull")


def test_closing_ends_although_nobody_answers() -> None:
    """Problem 11, C2: close ends with a message held and a server that answers nothing."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        receiver = await both.subscribe(NAME)
        await both.send_messages(messages(2))
        await take(receiver, 1)
        for method in ("Acknowledge", "ModifyAckDeadline", "Publish", "StreamingPull"):
            broker.fail(method, NAME, left=float("inf"))
        await both.close(timeout=1)
        assert not both.is_connected

    play(test)


@pytest.mark.usefixtures("patient_close")
def test_a_closing_receiver_gives_back_a_whole_key() -> None:
    """Problem 12, C1: held and buffered messages of a key go back at once, in order."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        sent = await both.send_messages(messages(5, "k"))
        async with await both.subscribe(NAME) as receiver:
            assert await receiver.receive_message(PATIENCE)
            await until(lambda: receiver.stats.buffered == 4)
        assert broker.modified == [(each, 0) for each in sent]

    play(test)


def test_a_key_needs_no_acknowledgement_to_go_on() -> None:
    """Problem 14, R8: one call returns several messages of a key, of which none was acknowledged before."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        await both.send_messages(messages(5, "k"))
        async with await both.subscribe(NAME) as receiver:
            await until(lambda: receiver.stats.buffered == 5)
            run = await receiver.receive_messages(5, PATIENCE)
            assert [message.data for message in run] == [b"0", b"1", b"2", b"3", b"4"]
        assert not broker.acknowledged

    play(test)


def test_nacks_without_a_policy_come_later_each_time() -> None:
    """Problem 19, R11: the delay grows; the fifth nack of a message delays it for two seconds."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        (sent,) = await both.send_messages(messages(1))
        async with await both.subscribe(NAME) as receiver:
            for _ in range(5):
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                await receiver.nack(message)
            assert broker.modified == [*[(sent, 0)] * 4, (sent, 2)]

    play(test)


def test_what_is_not_ours_any_more_is_not_handed_out() -> None:
    """Problem 20: with exactly-once delivery, a message is dropped if the server does not confirm its lease."""
    server = FaultyServer()
    server.responses = [[b"0", b"1"]]
    server.ended = {"ack-0-0"}
    server.subscription.enable_exactly_once_delivery = True

    async def scenario() -> None:
        async with (
            serving(server),
            client(emulator_host=server.address, create="never") as receiving,
            await receiving.subscribe("billing") as receiver,
        ):
            assert await take(receiver, 1) == [b"1"]
            assert await receiver.receive_message(0.2) is None

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_a_request_to_settle_stays_below_the_limit_of_the_service() -> None:
    """Problem 21, S4: three thousand deliveries, with ids as long as the service's, take several requests."""

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        sent = await both.send_messages(messages(3000))
        async with await both.subscribe(NAME) as receiver:
            held = await receiver.receive_messages(100, PATIENCE)
            await until(lambda: receiver.stats.buffered > 2500)
            while len(held) < 3000:
                held += await receiver.receive_messages(3000, PATIENCE)
            await receiver.acknowledge_messages(held)
        assert sorted(broker.acknowledged) == sorted(sent)
        assert 100_000 < broker.largest <= 512 * 1024

    play(test, max_outstanding_messages="4000")


@pytest.mark.usefixtures("patient_close")
def test_a_pull_that_is_answered_late_gives_back_what_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problem 22: a message that a pull brings while the receiver closes comes to the next receiver at once."""
    monkeypatch.setattr(pull_pace, "_MIN_TIMEOUT", PATIENCE)  # a pull that ends now would not bring it

    async def test(broker: Broker, both: GcpPubSubClient) -> None:
        subscription = broker.subscription(NAME, NAME)
        receiver = await both.subscribe(NAME)
        await until(lambda: len(broker.pulling) == 1)
        closing = asyncio.create_task(receiver.close(timeout=0))
        await asyncio.sleep(0)
        subscription.add(broker.message(b"late"))
        await closing
        assert not subscription.out
        assert [message.data for message in subscription.waiting] == [b"late"]

    play(test, receive_mode="pull")
