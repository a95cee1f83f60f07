"""Deliveries: leases, order, dead letters, exactly once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from statistics import median

import pytest

from events_core import (
    AcknowledgeError,
    ErrorCode,
    EventMessage,
    EventReceiver,
    PublishError,
    ReceivedMessage,
)
from events_core.engine import Delivery
from events_core.testing import TcpProxy
from events_gcp import pull_pace

from .broker import Broker
from .console import Console, client
from .faults import serving
from .waiting import PATIENCE, until


def keyed(count: int) -> list[EventMessage]:
    return [EventMessage(b"%d" % number, ordering_key="k") for number in range(count)]


async def gather(receiver: EventReceiver, count: int, timeout: float = PATIENCE) -> list[ReceivedMessage]:
    """Return *count* messages, in the order in which they come."""
    received: list[ReceivedMessage] = []
    while len(received) < count:
        some = await receiver.receive_messages(count - len(received), timeout)
        assert some, f"{len(received)} of {count} came"
        received += some
    return received


async def gather_run(receiver: EventReceiver, count: int) -> list[ReceivedMessage]:
    """Return *count* messages of a key.  They must all be here first: if some are held, the others wait.

    If they expire before they are received, only some of them may have come again.  These expire too, with the others.
    """
    while True:
        await until(lambda: receiver.stats.buffered >= count)
        run = await receiver.receive_messages(count, PATIENCE)
        assert run, f"none of {count} came"
        if len(run) == count:
            return run


async def acknowledge_in_the_end(receiver: EventReceiver, messages: Sequence[ReceivedMessage]) -> None:
    """Acknowledge *messages*.  What expires meanwhile on a busy machine comes again, and is acknowledged then."""
    left = set(data(messages))
    while left:
        try:
            await receiver.acknowledge_messages(messages)
        except AcknowledgeError as error:
            if any(each.code is not ErrorCode.EXPIRED for each in error.failed.values()):
                raise
            messages = [message for message in messages if message.message_id not in error.failed]
        left -= set(data(messages))
        if left:
            messages = await receiver.receive_messages(len(left), PATIENCE)
            assert messages, f"{left} did not come again"


def data(messages: Sequence[ReceivedMessage]) -> list[bytes]:
    return [message.data for message in messages]


def ack_id(message: ReceivedMessage) -> str:
    assert isinstance(message.delivery, Delivery)
    token: str = message.delivery.token
    return token


def test_what_nobody_read_is_not_handed_out_with_a_stale_lease(console: Console) -> None:
    """R5, R6: messages sent beyond the bound go back and come again once each, while one is held long."""

    async def receive() -> list[bytes]:
        async with console.client(max_outstanding_messages="1", ack_deadline="10") as slow:
            receiver = await slow.subscribe(f"{console.topic_name}-s")
            await slow.send_messages([EventMessage(b"%d" % number, ordering_key="k") for number in range(4)])
            received = []
            while len(received) < 4:
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                assert await receiver.receive_message(3 if not received else 0) is None
                await receiver.acknowledge(message)
                received.append(message.data)
            assert await receiver.receive_message(0.3) is None
            return received

    assert asyncio.run(receive()) == [b"0", b"1", b"2", b"3"]


def test_a_short_nack_does_not_outlive_its_receiver() -> None:
    """R11: a message nacked with a short delay is given back when the receiver closes."""

    async def receive() -> None:
        async with serving(Broker()) as broker:
            subscription = broker.subscription("billing", "orders")
            async with client(emulator_host=broker.address, create="never") as both:
                receiver = await both.subscribe("billing")
                sent = await both.send_message(EventMessage(b"x"))
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                await receiver.nack(message, delay=0.9)
                await receiver.close()
                # On a busy machine, it may come again before the receiver closes, and is given back once more.
                assert set(broker.modified) == {(sent, 0)}
                assert [each.message_id for each in subscription.waiting] == [sent]

    asyncio.run(receive())


# Leases


def test_what_a_stranger_let_lapse_comes_when_its_lease_is_over(console: Console) -> None:
    """R9: a message that another subscriber took and never settled comes when its lease runs out."""
    name = f"{console.topic_name}-s"
    console.create(name, ack_deadline_seconds=10, enable_message_ordering=True)

    async def receive() -> None:
        async with console.client(subscription=name) as both:
            sent = await both.send_message(EventMessage(b"x"))
            assert [message.message_id for message in console.pull(name).values()] == [sent]
            receiver = await both.subscribe()
            (message,) = await gather(receiver, 1)
            assert message.message_id == sent
            await receiver.acknowledge(message)

    asyncio.run(receive())


def test_a_message_held_too_long_expires(console: Console) -> None:
    """R6: settling it raises EXPIRED, and it comes again, as do the later ones of its key, in order."""

    async def receive() -> None:
        async with console.client(max_lease_duration="1") as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_messages(keyed(3))
            held = await gather_run(receiver, 3)
            again = await gather_run(receiver, 3)
            assert data(again) == data(held) == [b"0", b"1", b"2"]
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(held[0])
            assert caught.value.code is ErrorCode.EXPIRED
            await acknowledge_in_the_end(receiver, again)

    asyncio.run(receive())


def test_a_pulled_message_is_kept_for_as_long_as_the_subscription_says() -> None:
    """R6: a pull cannot name a lease, so the deadline of the subscription counts, and none runs out."""

    async def receive() -> None:
        async with serving(Broker()) as broker:
            broker.subscription("billing", "orders", grace=10, ack_deadline_seconds=10)
            options = {"create": "never", "receive_mode": "pull", "ack_deadline": "60"}
            async with client(emulator_host=broker.address, **options) as both:
                receiver = await both.subscribe("billing")
                sent = await both.send_message(EventMessage(b"x"))
                (message,) = await gather(receiver, 1)
                await until(lambda: (sent, 10) in broker.modified)
                assert receiver.stats.duplicates == 0
                await receiver.acknowledge(message)

    asyncio.run(receive())


def test_the_message_behind_a_long_handler_is_fresh() -> None:
    """R12: a full receiver acknowledges after a long time; the message that comes then is not sent back."""

    async def receive() -> None:
        async with serving(Broker()) as broker:
            broker.keeps_bounds = True
            broker.subscription("billing", "orders", grace=PATIENCE)
            options = {"create": "never", "max_outstanding_messages": "1", "ack_deadline": "40"}
            async with client(emulator_host=broker.address, **options) as both:
                receiver = await both.subscribe("billing")
                sent = await both.send_messages([EventMessage(b"0"), EventMessage(b"1")])
                (first,) = await gather(receiver, 1)
                await asyncio.sleep(10.5)  # more than a quarter of the lease
                await receiver.acknowledge(first)
                (second,) = await gather(receiver, 1)
                assert second.message_id == sent[1]
                assert (sent[1], 0) not in broker.modified
                await receiver.acknowledge(second)

    asyncio.run(receive())


# Order


def test_a_nacked_key_goes_on_where_it_failed(console: Console) -> None:
    """R10: the nacked message comes, then the later ones, once each; acknowledged ones stay acknowledged."""

    async def receive() -> None:
        async with console.client() as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_messages(keyed(5))
            held = await gather_run(receiver, 5)
            await receiver.acknowledge(held[0])
            await receiver.nack(held[1], delay=0.2)
            again = await gather_run(receiver, 4)
            assert data(again) == [b"1", b"2", b"3", b"4"]
            await receiver.acknowledge_messages(again)
            assert await receiver.receive_message(0.5) is None

    asyncio.run(receive())


@pytest.mark.parametrize("options", [{}, {"max_outstanding_messages": "1"}, {"receive_mode": "pull"}], ids=str)
def test_an_expired_key_goes_on_where_it_expired(console: Console, options: dict[str, str]) -> None:
    """R6, R10: no later message is handed out before the expired one, however few the receiver had fetched."""

    async def receive() -> list[bytes]:
        async with console.client(max_lease_duration="1", **options) as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_messages(keyed(4))
            await gather(receiver, 1)
            received: list[bytes] = []
            while len(set(received)) < 4:
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                received.append(message.data)
                await acknowledge_in_the_end(receiver, [message])
            return received

    # Whatever expires again on a busy machine comes before its successors as well.
    assert asyncio.run(receive()) == [b"0", b"1", b"2", b"3"]


def test_the_delay_of_a_keyed_nack_may_be_longer_than_a_lease(console: Console) -> None:
    """R11: the receiver itself keeps the message for the whole delay."""

    async def receive() -> None:
        async with console.client(max_lease_duration="4") as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_messages(keyed(2))
            (first,) = await gather(receiver, 1)
            nacked = time.monotonic()
            await receiver.nack(first, delay=6)
            run = await gather_run(receiver, 2)
            assert time.monotonic() - nacked >= 6
            assert data(run) == [b"0", b"1"]
            await acknowledge_in_the_end(receiver, run)

    asyncio.run(receive())


@pytest.mark.usefixtures("patient_close")
def test_what_a_closing_receiver_held_of_a_key_goes_back_in_order(console: Console) -> None:
    """C1, R8: the next receiver gets these messages before those that are sent afterwards."""
    name = f"{console.topic_name}-s"

    async def receive() -> None:
        async with console.client() as both:
            first = await both.subscribe(name)
            await both.send_messages(keyed(4))
            await gather_run(first, 2)
            await first.close(timeout=0)
            await both.send_message(EventMessage(b"4", ordering_key="k"))
            second = await both.subscribe(name)
            received = await gather_run(second, 5)
            assert data(received) == [b"0", b"1", b"2", b"3", b"4"]
            await second.acknowledge_messages(received)

    asyncio.run(receive())


def test_handing_back_lets_no_successor_overtake(console: Console) -> None:
    """R8: a full receiver hands a message back; unread messages of the key come in order."""

    async def receive() -> None:
        async with console.client(max_outstanding_messages="2") as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_message(EventMessage(b"u"))
            await both.send_messages(keyed(4))
            held = await gather_run(receiver, 2)
            unkeyed, first = sorted(held, key=lambda message: message.ordering_key or "")
            await receiver.hand_back(unkeyed)
            received = [first.data]
            await receiver.acknowledge(first)
            while len(received) < 4:
                (message,) = await gather(receiver, 1)
                await receiver.acknowledge(message)
                received += [message.data] if message.ordering_key else []
            assert received == [b"0", b"1", b"2", b"3"]

    asyncio.run(receive())


# Dead letters


def test_dead_letters_keep_their_key_in_order(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """R12: with order, five failures move the message with its key; only that message counts attempts."""
    dead = f"{console.topic_name}-dead"
    options = {"ordering": "true", "dead_letter_topic": dead, "max_delivery_attempts": "5"}

    async def receive() -> None:
        async with console.client(**options) as both, console.of(dead).client() as undertaker:
            letters = await undertaker.subscribe(f"{dead}-s")
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_messages(keyed(3))
            for attempt in range(1, 6):
                run = await gather_run(receiver, 3)
                assert data(run) == [b"0", b"1", b"2"]
                assert [message.delivery_attempt for message in run] == [attempt, 1, 1]
                await receiver.nack(run[0], delay=0)
            (letter,) = await gather(letters, 1)
            assert (letter.data, letter.ordering_key) == (b"0", "k")
            assert letter.attributes["dead_letter_source_message_id"] == run[0].message_id
            assert letter.attributes["dead_letter_delivery_attempts"] == "5"
            assert f"message {run[0].message_id} failed 5 times" in caplog.text
            assert f"was moved to dead-letter topic {dead!r}" in caplog.text
            await letters.acknowledge(letter)
            rest = await gather_run(receiver, 2)
            assert data(rest) == [b"1", b"2"]
            await receiver.acknowledge_messages(rest)
            assert await receiver.receive_message(0.5) is None

    asyncio.run(receive())


def test_a_dead_letter_without_a_topic_stays_held(console: Console) -> None:
    """R12: if the topic is missing, the nack raises, the message stays held, and later ones wait."""
    options = {"ordering": "true", "dead_letter_topic": f"{console.topic_name}-dead", "max_delivery_attempts": "5"}

    async def receive() -> None:
        async with console.client(**options) as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_messages(keyed(2))
            for _ in range(4):
                await receiver.nack((await gather_run(receiver, 2))[0], delay=0)
            run = await gather_run(receiver, 2)
            console.publisher.delete_topic(topic=f"{console.topic}-dead")
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.nack(run[0])
            assert caught.value.code is ErrorCode.NOT_FOUND
            assert await receiver.receive_message(0.3) is None
            await receiver.acknowledge(run[0])
            (successor,) = await gather(receiver, 1)
            assert successor.data == b"1"
            await receiver.acknowledge(successor)

    asyncio.run(receive())


def test_a_last_attempt_that_expires_is_a_dead_letter_too(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """R12, R6: the letter has everything that was sent, the log names it, and the key goes on."""
    dead = f"{console.topic_name}-dead"
    options = {"ordering": "true", "dead_letter_topic": dead, "max_delivery_attempts": "5", "max_lease_duration": "5"}

    async def receive() -> None:
        async with console.client(**options) as both, console.of(dead).client() as undertaker:
            letters = await undertaker.subscribe(f"{dead}-s")
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_message(EventMessage(b"precious", {"name": "value"}, ordering_key="k"))
            for _ in range(4):
                await receiver.nack((await gather(receiver, 1))[0], delay=0)
            await gather(receiver, 1)
            (letter,) = await gather(letters, 1)
            assert (letter.data, letter.attributes["name"], letter.ordering_key) == (b"precious", "value", "k")
            await letters.acknowledge(letter)
            await both.send_message(EventMessage(b"next", ordering_key="k"))
            (following,) = await gather(receiver, 1)
            assert following.data == b"next"
            await receiver.acknowledge(following)

    asyncio.run(receive())
    moved = [record.getMessage() for record in caplog.records if dead in record.getMessage()]
    assert [text for text in moved if f"failed 5 times in subscription '{console.topic_name}-s'" in text]


@pytest.mark.parametrize("ordering", ["true", "false"])
def test_a_rejected_message_becomes_a_dead_letter_at_once(
    console: Console, caplog: pytest.LogCaptureFixture, ordering: str
) -> None:
    """S6: the receiver publishes the letter at the first attempt, with or without order, and acknowledges."""
    dead = f"{console.topic_name}-dead"
    options = {"ordering": ordering, "dead_letter_topic": dead, "max_delivery_attempts": "5"}

    async def receive() -> None:
        async with console.client(**options) as both, console.of(dead).client() as undertaker:
            letters = await undertaker.subscribe(f"{dead}-s")
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_message(EventMessage(b"x", {"name": "value"}))
            (message,) = await gather(receiver, 1)
            await receiver.reject(message, "there is no total")
            (letter,) = await gather(letters, 1)
            assert (letter.data, letter.attributes["name"]) == (b"x", "value")
            assert letter.attributes["dead_letter_reason"] == "there is no total"
            assert letter.attributes["dead_letter_source_message_id"] == message.message_id
            assert letter.attributes["dead_letter_delivery_attempts"] == "1"
            await letters.acknowledge(letter)
            assert await receiver.receive_message(0.5) is None

    asyncio.run(receive())
    assert console.pull(f"{console.topic_name}-s", seconds=1) == {}
    assert "was rejected at attempt 1" in caplog.text


def test_pubsub_moves_dead_letters_where_there_is_no_order(console: Console) -> None:
    """R12: without order, Pub/Sub counts the attempts and moves the message."""
    dead = f"{console.topic_name}-dead"
    options = {"dead_letter_topic": dead, "max_delivery_attempts": "5"}

    async def receive() -> None:
        async with console.client(**options) as both, console.of(dead).client() as undertaker:
            letters = await undertaker.subscribe(f"{dead}-s")
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_message(EventMessage(b"x"))
            for attempt in range(1, 6):
                (message,) = await gather(receiver, 1)
                assert message.delivery_attempt == attempt
                await receiver.nack(message, delay=0)
            (letter,) = await gather(letters, 1)
            assert letter.data == b"x"
            assert letter.attributes["CloudPubSubDeadLetterSourceSubscription"] == receiver.subscription
            await letters.acknowledge(letter)

    asyncio.run(receive())


def test_keyed_messages_without_order_become_dead_letters_too(console: Console) -> None:
    """R12: without order, Pub/Sub gets each nack of a message with a key, and moves it."""
    dead = f"{console.topic_name}-dead"
    options = {"dead_letter_topic": dead, "max_delivery_attempts": "5"}

    async def receive() -> None:
        async with console.client(**options) as unordered, console.of(dead).client() as undertaker:
            letters = await undertaker.subscribe(f"{dead}-s")
            receiver = await unordered.subscribe(f"{console.topic_name}-s")
            assert receiver.capabilities.ordering == "none"
            async with console.client() as sender:
                await sender.send_messages(keyed(2))
            attempts = []
            while len(attempts) < 5:
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                if message.data == b"0":
                    attempts.append(message.delivery_attempt)
                    await receiver.nack(message, delay=0)
                else:
                    await receiver.acknowledge(message)
            assert attempts == [1, 2, 3, 4, 5]
            (letter,) = await gather(letters, 1)
            assert letter.data == b"0"
            await letters.acknowledge(letter)

    asyncio.run(receive())


def test_keys_without_order_do_not_wait_for_each_other(console: Console) -> None:
    """R8: without order, a held message keeps no other of its key back."""
    name = f"{console.topic_name}-s"
    console.create(name)

    async def receive() -> None:
        async with console.client() as both:
            receiver = await both.subscribe(name)
            await both.send_messages(keyed(3))
            held = [(await gather(receiver, 1))[0] for _ in range(3)]
            assert sorted(data(held)) == [b"0", b"1", b"2"]
            await receiver.acknowledge_messages(held)

    asyncio.run(receive())


# Exactly once


def test_exactly_once_tells_what_became_of_each_message(console: Console) -> None:
    """S1, S4: acknowledging an ended delivery is EXPIRED, and the others of the batch succeed."""
    name = f"{console.topic_name}-s"
    console.create(name, enable_exactly_once_delivery=True)

    async def receive() -> None:
        async with console.client() as both:
            receiver = await both.subscribe(name)
            assert receiver.capabilities.exactly_once
            await both.send_messages([EventMessage(b"%d" % number) for number in range(3)])
            held = await gather_run(receiver, 3)
            console.subscriber.acknowledge(subscription=console.path(name), ack_ids=[ack_id(held[1])])
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge_messages(held)
            assert {each: error.code for each, error in caught.value.failed.items()} == {  # type: ignore[attr-defined]
                held[1].message_id: ErrorCode.EXPIRED
            }
            assert await receiver.receive_message(0.5) is None

    asyncio.run(receive())


def test_exactly_once_acknowledges_a_key_in_order(console: Console) -> None:
    """S3: Pub/Sub refuses an early acknowledgement for a while; that one waits, and no other does."""
    name = f"{console.topic_name}-s"

    async def receive() -> None:
        async with console.client(exactly_once="true") as both:
            receiver = await both.subscribe(name)
            await both.send_messages(keyed(2))
            first, second = await gather_run(receiver, 2)
            early = asyncio.create_task(receiver.acknowledge(second))
            done, _ = await asyncio.wait([early], timeout=0.5)
            assert not done
            await receiver.acknowledge(first)
            await early

    asyncio.run(receive())


# Outages


def test_an_idle_receiver_is_connected_again(console: Console) -> None:
    """F1: the receiver reconnects when the server is back, although no message comes."""
    proxy = TcpProxy(console.emulator)

    async def receive() -> None:
        async with console.client(emulator_host=proxy.address) as client:
            receiver = await client.subscribe(f"{console.topic_name}-s")
            waiting = asyncio.create_task(receiver.receive_message(60))
            with proxy.cut():
                await until(lambda: not client.is_connected)
            await until(lambda: receiver.stats.reconnects == 1)
            assert client.is_connected
            waiting.cancel()

    asyncio.run(receive())
    proxy.close()


def test_a_stream_that_ended_leaves_no_handler_idle() -> None:
    """R5: the next stream is opened while a message is held, and is widened when that message is acknowledged."""

    async def receive() -> None:
        async with serving(Broker()) as broker:
            broker.keeps_bounds = True
            broker.subscription("billing", "orders", grace=PATIENCE)
            options = {"create": "never", "max_outstanding_messages": "2"}
            async with client(emulator_host=broker.address, **options) as both:
                receiver = await both.subscribe("billing")
                await both.send_messages([EventMessage(b"%d" % number) for number in range(4)])
                first, second = await gather(receiver, 2)
                broker.end_streams()
                await until(lambda: not broker.streaming)
                await receiver.acknowledge(first)
                (third,) = await gather(receiver, 1)
                await receiver.acknowledge(second)
                (fourth,) = await gather(receiver, 1)
                assert data([third, fourth]) == [b"2", b"3"]
                await receiver.acknowledge_messages([third, fourth])
                assert not [each for each in broker.modified if each[1] == 0]

    asyncio.run(receive())


# By request, and by several streams


@pytest.mark.parametrize("streams", ["1", "4"])
@pytest.mark.parametrize("mode", ["pull", "stream"])
def test_every_way_of_receiving_brings_everything_once(console: Console, mode: str, streams: str) -> None:
    """R4: each of 1,000 messages comes once, and a second receiver gets the next ones."""
    name = f"{console.topic_name}-s"

    async def receive() -> None:
        async with console.client(receive_mode=mode, streams=streams) as both:
            receiver = await both.subscribe(name)
            sent = await both.send_messages([EventMessage(b"%d" % number) for number in range(1000)])
            received: list[ReceivedMessage] = []
            while len(received) < 1000:
                some = await receiver.receive_messages(100, PATIENCE)
                assert some, f"{len(received)} came"
                received += some
                await receiver.acknowledge_messages(some)
            assert sorted(message.message_id for message in received) == sorted(sent)
            await receiver.close()
            await both.send_message(EventMessage(b"last"))
            async with await both.subscribe(name) as second:
                (last,) = await gather(second, 1)
                assert last.data == b"last"
                await second.acknowledge(last)

    asyncio.run(receive())


# Slow lines

NO_LETTER = {"receive_mode": "pull", "ack_deadline": "10", "max_delivery_attempts": "5", "ordering": "false"}


def test_a_slow_line_brings_everything_at_the_first_attempt(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """R5: of 200 messages of 50 kB, a pull at 8 Mbit/s asks for few.  A cut-off pull would count attempts."""
    # A busy machine may time some answers wrongly, and the next pulls then ask for more.  They must not be cut off.
    monkeypatch.setattr(pull_pace, "_MIN_TIMEOUT", PATIENCE)
    asked: list[int] = []
    limit = pull_pace.PullPace.limit

    def note(pace: pull_pace.PullPace, room: int) -> int:
        asked.append(limit(pace, room))
        return asked[-1]

    monkeypatch.setattr(pull_pace.PullPace, "limit", note)
    dead = f"{console.topic_name}-dead"

    async def receive() -> None:
        with TcpProxy(console.emulator) as proxy, proxy.limit(1_000_000):
            async with (
                console.client(emulator_host=proxy.address, dead_letter_topic=dead, **NO_LETTER) as slow,
                console.client() as fast,
                await slow.subscribe(f"{console.topic_name}-s") as receiver,
            ):
                sent = await fast.send_messages([EventMessage(bytes(50_000)) for _ in range(200)])
                attempts = []
                while len(attempts) < len(sent):
                    some = await receiver.receive_messages(100, 60)
                    assert some, f"{len(attempts)} came"
                    attempts += [message.delivery_attempt for message in some]
                    await receiver.acknowledge_messages(some)
                assert attempts == [1] * len(sent)

    asyncio.run(asyncio.wait_for(receive(), 600))
    assert median(asked) < 10  # the first pull asks for 10, and the line transfers two in the time of an answer


def test_a_message_too_large_for_the_line_is_given_time(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """R5: 9 MB at 32 Mbit/s outlast the first pull; a warning says so, and the next pull has more time."""
    dead = f"{console.topic_name}-dead"

    async def receive() -> None:
        with TcpProxy(console.emulator) as proxy, proxy.limit(4_000_000):
            async with (
                console.client(emulator_host=proxy.address, dead_letter_topic=dead, **NO_LETTER) as slow,
                console.client() as fast,
                await slow.subscribe(f"{console.topic_name}-s") as receiver,
            ):
                await fast.send_message(EventMessage(bytes(9_000_000)))
                (message,) = await gather(receiver, 1, 120)
                # If the answer of a pull begins after its deadline, the next one does not have more time yet.
                assert message.delivery_attempt >= 2
                await receiver.acknowledge(message)

    with caplog.at_level(logging.WARNING, "events_gcp"):
        asyncio.run(asyncio.wait_for(receive(), 600))
    assert [record.getMessage() for record in caplog.records if "did not arrive" in record.getMessage()]


# Size


def test_the_largest_message_arrives_and_a_larger_one_is_refused(console: Console) -> None:
    """P2: 9,998,000 bytes arrive; one byte more is INVALID, and nothing of that call is sent."""
    limit = 9_998_000

    async def receive() -> None:
        async with console.client() as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            with pytest.raises(PublishError, match="max_message_bytes is 9998000") as caught:
                await both.send_messages([EventMessage(b"x"), EventMessage(bytes(limit + 1))])
            assert caught.value.code is ErrorCode.INVALID
            await both.send_message(EventMessage(b"y" * limit))
            (message,) = await gather(receiver, 1)
            assert message.data == b"y" * limit
            await receiver.acknowledge(message)

    asyncio.run(receive())
