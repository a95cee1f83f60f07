"""Faults that the emulator cannot show: a server that falls silent, refuses, or fails for a while."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.pubsub_v1 import types

from events_core import (
    AcknowledgeError,
    ErrorCode,
    EventConnectionError,
    EventMessage,
    EventReceiver,
    ReceivedMessage,
    ReceiveError,
)
from events_core.engine import Delivery, feed
from events_core.engine.backoff import Backoff
from events_gcp import channels, stream

from ..servers.ports import reserved_address
from .broker import Broker, Subscription
from .calls import works
from .console import PROJECT, client
from .faults import FaultyServer, never, serving
from .waiting import PATIENCE, until


def play(server: FaultyServer, test: Callable[[EventReceiver], Awaitable[None]], **options: str) -> None:
    """Run *test* with a receiver of *server*."""

    async def scenario() -> None:
        async with (
            serving(server),
            client(emulator_host=server.address, create="never", **options) as receiving,
            await receiving.subscribe("billing") as receiver,
        ):
            await test(receiver)

    asyncio.run(asyncio.wait_for(scenario(), 300))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_INTERVAL", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: if a server answers pings and then stops, the receiver opens another stream."""
    monkeypatch.setattr(stream, "PONG_TIMEOUT", 1.0)
    server = FaultyServer()
    server.responses = [[b"0"], [b"1"]]

    async def test(receiver: EventReceiver) -> None:
        first = await receiver.receive_message(PATIENCE)
        await until(lambda: any(len(requests) > 2 for requests in server.streams))
        # A busy machine may have been silent for too long as well, so this need not be the first stream.
        before = len(server.streams)
        server.on_ping = never
        await until(lambda: len(server.streams) > before)
        second = await receiver.receive_message(PATIENCE)
        assert [message and message.data for message in (first, second)] == [b"0", b"1"]
        assert receiver.stats.reconnects >= 1

    play(server, test)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_never_answers_pings_is_kept() -> None:
    """F1: a server that answers no pings, like the emulator, keeps its stream."""
    server = FaultyServer()
    server.on_ping = never

    async def test(receiver: EventReceiver) -> None:
        await until(lambda: len(server.streams) == 1 and len(server.streams[0]) > 8)
        assert len(server.streams) == 1
        assert receiver.stats.reconnects == 0

    play(server, test)


@pytest.mark.usefixtures("impatient")
def test_answered_pings_are_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """V1: the age of the last sign of life stays small although no message comes."""
    monkeypatch.setattr(stream, "PONG_TIMEOUT", 1.0)
    server = FaultyServer()

    async def test(receiver: EventReceiver) -> None:
        assert await receiver.receive_message(PATIENCE)
        before = receiver.stats
        await until(lambda: any(len(requests) > 2 for requests in server.streams))
        await until(lambda: (receiver.stats.last_message_age or 0) > (receiver.stats.last_alive_age or 0))
        assert before.last_message_age is not None

    play(server, test)


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_a_stream_that_ends_is_opened_again(status: grpc.StatusCode) -> None:
    """F1: after a failure that may pass, another stream is opened, and a held message can be acknowledged."""
    server = FaultyServer()
    server.responses = [[b"0"], [b"1"]]
    server.ends = {0: status}

    async def test(receiver: EventReceiver) -> None:
        first = await receiver.receive_message(PATIENCE)
        second = await receiver.receive_message(PATIENCE)
        assert first is not None
        assert second is not None
        await receiver.acknowledge_messages([first, second])
        assert server.acknowledged == ["ack-0-0", "ack-1-0"]

    play(server, test)


def test_a_permission_that_was_withdrawn_surfaces() -> None:
    """F1: an error that a retry cannot cure is raised once, and the next receive tries again."""
    server = FaultyServer()
    server.responses = [[], [b"1"]]
    server.ends = {0: grpc.StatusCode.PERMISSION_DENIED}

    async def test(receiver: EventReceiver) -> None:
        with pytest.raises(ReceiveError, match=r"roles/pubsub\.subscriber") as caught:
            await receiver.receive_message(PATIENCE)
        assert caught.value.code is ErrorCode.PERMISSION_DENIED
        message = await receiver.receive_message(PATIENCE)
        assert message is not None
        assert message.data == b"1"

    play(server, test)


def test_who_may_not_look_may_receive() -> None:
    """Q2: roles/pubsub.subscriber is enough to receive; the receiver then believes the options."""
    server = FaultyServer()
    server.refusal = grpc.StatusCode.PERMISSION_DENIED

    async def test(receiver: EventReceiver) -> None:
        assert await receiver.receive_message(PATIENCE)
        assert receiver.capabilities.ordering == "receiver"

    play(server, test)


def test_who_may_not_look_learns_from_the_stream() -> None:
    """Q2: capabilities say what the stream has told about the subscription."""
    server = FaultyServer()
    server.refusal = grpc.StatusCode.PERMISSION_DENIED
    server.subscription.enable_message_ordering = False
    server.subscription.enable_exactly_once_delivery = True

    async def test(receiver: EventReceiver) -> None:
        assert await receiver.receive_message(PATIENCE)
        assert receiver.capabilities.ordering == "none"
        assert receiver.capabilities.exactly_once

    play(server, test)


@pytest.mark.parametrize(("option", "told"), [("ordering", "without message ordering"), ("exactly_once", "has no")])
def test_who_may_not_look_is_told_by_the_stream_what_is_missing(option: str, told: str) -> None:
    """Q2: if the subscription lacks what was asked for, the receive raises before it hands out a message."""
    server = FaultyServer()
    server.refusal = grpc.StatusCode.PERMISSION_DENIED
    server.subscription.enable_message_ordering = option != "ordering"

    async def test(receiver: EventReceiver) -> None:
        with pytest.raises(ReceiveError, match=told) as caught:
            await receiver.receive_message(PATIENCE)
        assert caught.value.code is ErrorCode.INVALID
        assert server.returned == ["ack-0-0"]

    play(server, test, **{option: "true"})


def test_an_acknowledgement_refused_for_a_while_is_repeated() -> None:
    """S5: with exactly-once delivery one message of a batch may fail for a while; only that one is repeated."""
    server = FaultyServer()
    server.responses = [[b"0", b"1", b"2"]]
    server.transient = {"ack-0-1": 2}

    async def test(receiver: EventReceiver) -> None:
        held = await receiver.receive_messages(3, PATIENCE)
        await receiver.acknowledge_messages(held)
        assert server.acknowledged == ["ack-0-0", "ack-0-2", "ack-0-1"]

    play(server, test)


def test_what_comes_again_takes_its_successors_with_it() -> None:
    """R10: if an acknowledgement says that the first of a key comes again, the later ones are given back."""
    server = FaultyServer()
    server.responses = [[b"0", b"1", b"2"]]
    server.key = "k"
    server.ended = {"ack-0-0"}

    async def test(receiver: EventReceiver) -> None:
        first = await receiver.receive_message(PATIENCE)
        assert first is not None
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge(first)
        assert caught.value.code is ErrorCode.EXPIRED
        assert await receiver.receive_message(0.2) is None
        await until(lambda: server.returned == ["ack-0-1", "ack-0-2"])

    play(server, test)


def test_a_missing_subscription_is_told_to_who_may_not_look() -> None:
    """F1: the error is NOT_FOUND, and does not say that the subscription was created again."""
    server = FaultyServer()
    server.refusal = grpc.StatusCode.PERMISSION_DENIED
    server.responses = []
    server.ends = {0: grpc.StatusCode.NOT_FOUND}

    async def test(receiver: EventReceiver) -> None:
        with pytest.raises(ReceiveError) as caught:
            await receiver.receive_message(PATIENCE)
        assert caught.value.code is ErrorCode.NOT_FOUND
        assert isinstance(caught.value.__cause__, grpc.RpcError)

    play(server, test)


@pytest.mark.usefixtures("impatient")
def test_a_stream_is_told_what_there_is_room_for() -> None:
    """R5: a stream that is opened while messages are held gets a smaller bound, and later a larger one."""
    server = FaultyServer()
    server.responses = [[b"0", b"1", b"2"]]
    server.ends = {0: grpc.StatusCode.UNAVAILABLE}

    async def test(receiver: EventReceiver) -> None:
        held = await receiver.receive_messages(3, PATIENCE)
        await until(lambda: len(server.streams) == 2)
        await receiver.acknowledge_messages(held)
        await until(lambda: len(server.streams) == 3)
        assert [requests[0].max_outstanding_messages for requests in server.streams] == [4, 1, 4]

    play(server, test, max_outstanding_messages="4")


@pytest.mark.parametrize(("refusals", "is_acknowledged"), [(1, True), (2, False)])
def test_a_token_that_is_refused_is_renewed_once(refusals: int, is_acknowledged: bool) -> None:
    """F1: UNAUTHENTICATED is raised when the new token is refused too."""
    server = FaultyServer()
    server.unauthenticated = refusals

    async def test(receiver: EventReceiver) -> None:
        (pool,) = (pool for pool in channels._pools.values() if pool.endpoint.target == server.address)
        pool._credentials = credentials = SimpleNamespace(token="old")
        message = await receiver.receive_message(PATIENCE)
        assert message is not None
        if is_acknowledged:
            await receiver.acknowledge(message)
        else:
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(message)
            assert caught.value.code is ErrorCode.UNAUTHENTICATED
            await receiver.acknowledge(message)
        assert credentials.token is None

    play(server, test)


def test_a_stream_whose_token_is_refused_is_opened_with_a_new_one() -> None:
    """F1: it is opened again once; then UNAUTHENTICATED is raised."""
    server = FaultyServer()
    server.ends = dict.fromkeys((0, 1), grpc.StatusCode.UNAUTHENTICATED)

    async def test(receiver: EventReceiver) -> None:
        (pool,) = (pool for pool in channels._pools.values() if pool.endpoint.target == server.address)
        pool._credentials = credentials = SimpleNamespace(token="old")
        message = await receiver.receive_message(PATIENCE)
        assert message is not None
        await receiver.acknowledge(message)
        with pytest.raises(ReceiveError) as caught:
            await receiver.receive_message(PATIENCE)
        assert caught.value.code is ErrorCode.UNAUTHENTICATED
        assert (len(server.streams), credentials.token) == (2, None)

    play(server, test)


def test_requests_say_where_they_belong_and_who_asks() -> None:
    """The service routes requests by one header, and another one names the client."""
    server = FaultyServer()

    async def test(receiver: EventReceiver) -> None:
        message = await receiver.receive_message(PATIENCE)
        assert message is not None
        await receiver.acknowledge(message)
        subscription = "projects/events-test/subscriptions/billing"
        assert server.metadata["x-goog-request-params"] == f"subscription={subscription}"
        assert server.metadata["x-goog-api-client"].startswith("gl-python/")

    play(server, test)


def test_an_endpoint_that_refuses_is_named_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """V1: without its emulator a receiver warns once, long before it gives up; both texts say where and why."""

    async def subscribe(address: str) -> None:
        async with client(emulator_host=address, connect_timeout="10") as receiving:
            subscribing = asyncio.ensure_future(receiving.subscribe("billing"))
            await until(lambda: bool(caplog.records))
            assert not subscribing.done()
            with pytest.raises(EventConnectionError, match=rf"{address}.*refused"):
                await subscribing

    with caplog.at_level(logging.WARNING), reserved_address() as address:
        asyncio.run(subscribe(address))
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"cannot connect, trying again: connect to '{address}'" in told
    assert "refused" in told


def test_a_server_that_comes_late_is_found() -> None:
    """F1: a program may start before its server."""
    server = FaultyServer()

    async def receive() -> None:
        async with client(emulator_host=server.address, create="never") as receiving:
            subscribing = asyncio.ensure_future(receiving.subscribe("billing"))
            await asyncio.wait([subscribing], timeout=1)
            assert not subscribing.done()
            async with serving(server):
                receiver = await subscribing
                assert await receiver.receive_message(PATIENCE)
                await receiver.close(timeout=0)

    with reserved_address() as server.address:
        asyncio.run(asyncio.wait_for(receive(), 300))


def test_a_receiver_sees_its_server_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: the restored connection ends the receiver's pause, even if its client sends nothing else."""
    monkeypatch.setattr(feed, "Backoff", lambda: Backoff(3600, 3600, uniform=lambda low, high: high))
    server = FaultyServer()
    server.responses = [[b"0"], [b"1"]]

    async def receive() -> None:
        async with client(emulator_host=server.address, create="never") as receiving:
            async with serving(server):
                receiver = await receiving.subscribe("billing")
                assert await receiver.receive_message(PATIENCE)
            await until(lambda: not receiving.is_connected)
            async with serving(server):
                assert await receiver.receive_message(PATIENCE)
                await receiver.close(timeout=0)

    with reserved_address() as server.address:
        asyncio.run(asyncio.wait_for(receive(), 300))


class Hasty(Broker):
    """Answers every pull at once, with nothing."""

    async def pull(self, request: Any, context: Any) -> Any:
        self.requests["Pull", "billing"] += 1
        return types.PullResponse.pb()()


def test_a_server_that_does_not_wait_for_messages_is_not_asked_in_a_hot_loop() -> None:
    """R5: the emulator answers a pull of less than a second at once; the receiver pauses between pulls."""

    async def receive() -> float:
        async with serving(Hasty()) as broker:
            broker.subscription("billing", "orders")
            async with (
                client(emulator_host=broker.address, create="never", receive_mode="pull") as receiving,
                await receiving.subscribe("billing") as receiver,
            ):
                await until(lambda: broker.requests["Pull", "billing"] > 2)
                before, began = broker.requests["Pull", "billing"], time.monotonic()
                assert await receiver.receive_message(1) is None
                return (broker.requests["Pull", "billing"] - before) / (time.monotonic() - began)

    assert asyncio.run(asyncio.wait_for(receive(), 300)) < 40


LETTERS = {"ordering": "true", "dead_letter_topic": "dead", "max_delivery_attempts": "5"}


class Graveless(Broker):
    """A broker that never answers a request to publish to the dead-letter topic."""

    unanswered = 0

    async def publish(self, request: Any, context: Any) -> Any:
        if not request.topic.endswith("/dead"):
            return await super().publish(request, context)
        self.unanswered += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.unanswered -= 1


def test_a_silent_dead_letter_topic_holds_up_no_acknowledgement() -> None:
    """R12: while a letter waits for its topic, other messages of the receiver are acknowledged."""

    async def scenario() -> None:
        async with serving(Graveless()) as broker:
            broker.subscription("billing", "orders", enable_message_ordering=True)
            async with (
                client(emulator_host=broker.address, create="never", **LETTERS) as both,
                await both.subscribe("billing") as receiver,
            ):
                await both.send_message(EventMessage(b"poison", ordering_key="k"))
                for _ in range(4):
                    poison = await receiver.receive_message(PATIENCE)
                    assert poison is not None
                    await receiver.nack(poison, delay=0)
                last = await receiver.receive_message(PATIENCE)
                assert last is not None
                nacking = asyncio.ensure_future(receiver.nack(last))
                await until(lambda: broker.unanswered == 1)
                for number in range(3):
                    await both.send_message(EventMessage(b"%d" % number))
                    message = await receiver.receive_message(PATIENCE)
                    assert message is not None
                    await receiver.acknowledge(message)
                assert broker.unanswered == 1
                assert not nacking.done()
                nacking.cancel()
                await receiver.close(timeout=0)

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_letters_of_a_key_keep_their_order_over_a_failure() -> None:
    """S6: of three messages rejected at once, the first letter is stored at the second attempt, and is still first."""

    async def scenario() -> None:
        async with serving(Broker()) as broker:
            broker.subscription("billing", "orders", enable_message_ordering=True)
            broker.fail("Publish", "dead", grpc.StatusCode.UNAVAILABLE)
            async with (
                client(emulator_host=broker.address, create="never", **LETTERS) as both,
                await both.subscribe("billing") as receiver,
            ):
                await both.send_messages([EventMessage(b"%d" % number, ordering_key="k") for number in range(3)])
                run: list[ReceivedMessage] = []
                while len(run) < 3:
                    run += await receiver.receive_messages(3, PATIENCE)
                await asyncio.gather(*(receiver.reject(message) for message in run))
            letters = broker.topics[f"projects/{PROJECT}/topics/dead"]
            assert [letter.data for letter in letters] == [b"0", b"1", b"2"]

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_a_letter_that_is_given_up_does_not_block_its_key() -> None:
    """S6: a message whose letter could not be stored is acknowledged instead; the next letter of its key is stored."""

    async def scenario() -> None:
        async with serving(Broker()) as broker:
            broker.subscription("billing", "orders", enable_message_ordering=True)
            broker.fail("Publish", "dead", grpc.StatusCode.UNAVAILABLE, left=math.inf)
            async with (
                client(emulator_host=broker.address, create="never", ack_timeout="5", **LETTERS) as both,
                await both.subscribe("billing") as receiver,
            ):
                await both.send_messages([EventMessage(b"%d" % number, ordering_key="k") for number in range(2)])
                run: list[ReceivedMessage] = []
                while len(run) < 2:
                    run += await receiver.receive_messages(2, PATIENCE)
                with pytest.raises(AcknowledgeError) as caught:
                    await receiver.reject(run[0])
                assert caught.value.code is ErrorCode.TIMEOUT
                broker.mend("Publish", "dead")
                await works(lambda: receiver.acknowledge(run[0]))
                await works(lambda: receiver.reject(run[1]))
            letters = broker.topics[f"projects/{PROJECT}/topics/dead"]
            assert [letter.data for letter in letters][-1] == b"1"

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_a_rejection_without_the_permission_leaves_the_message_held() -> None:
    """S6: the account needs to publish to the dead-letter topic; if it may not, the error says so."""

    async def scenario() -> None:
        async with serving(Broker()) as broker:
            broker.subscription("billing", "orders", enable_message_ordering=True)
            broker.fail("Publish", "dead", grpc.StatusCode.PERMISSION_DENIED, left=math.inf)
            async with (
                client(emulator_host=broker.address, create="never", **LETTERS) as both,
                await both.subscribe("billing") as receiver,
            ):
                await both.send_message(EventMessage(b"x"))
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                with pytest.raises(
                    AcknowledgeError, match=r"projects/.*/topics/dead.*roles/pubsub\.publisher"
                ) as caught:
                    await receiver.reject(message)
                assert caught.value.code is ErrorCode.PERMISSION_DENIED
                assert receiver.stats.held == 1
                broker.mend("Publish", "dead")
                await receiver.reject(message)
            assert [letter.data for letter in broker.topics[f"projects/{PROJECT}/topics/dead"]] == [b"x"]

    asyncio.run(asyncio.wait_for(scenario(), 300))


class Forgetful(Broker):
    """A broker that keeps expired messages until it is told to deliver them again."""

    def __init__(self) -> None:
        super().__init__()
        self.lapsed: list[tuple[Subscription, Any]] = []

    def _expire(self, found: Subscription, ack_id: str) -> None:
        del found.timers[ack_id]
        self.lapsed.append((found, found.out.pop(ack_id)))

    def redeliver(self) -> None:
        for found, message in self.lapsed:
            found.add(message)


class Sluggish(Forgetful):
    """A forgetful broker that applies an acknowledgement only when a message has expired."""

    async def acknowledge(self, request: Any, context: Any) -> Any:
        await until(lambda: bool(self.lapsed))
        return await super().acknowledge(request, context)


def acknowledge_late(broker: Forgetful, moment: Callable[[Subscription, Delivery], Awaitable[None]], mode: str) -> None:
    """Acknowledge a message whose lease is not renewed.  It comes again and is acknowledged again, not handed out.

    :param moment: waits until the message is acknowledged for the first time.
    """

    async def scenario() -> None:
        async with serving(broker):
            subscription = broker.subscription("billing", "orders")
            broker.fail("ModifyAckDeadline", "billing", grpc.StatusCode.UNAVAILABLE, left=math.inf)
            async with (
                client(emulator_host=broker.address, create="never", receive_mode=mode, ack_deadline="10") as both,
                await both.subscribe("billing") as receiver,
            ):
                sent = await both.send_message(EventMessage(b"x"))
                message = await receiver.receive_message(PATIENCE)
                assert message is not None
                delivery = message.delivery
                assert isinstance(delivery, Delivery)
                await moment(subscription, delivery)
                await receiver.acknowledge(message)
                assert not broker.acknowledged
                broker.redeliver()
                await until(lambda: broker.acknowledged == [sent])
                assert await receiver.receive_message(0.2) is None

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_an_acknowledgement_that_arrives_too_late_is_repeated() -> None:
    """S1: the request is sent before the lease ends and arrives after it; the message is not handed out again."""

    async def soon_over(subscription: Subscription, _: Delivery) -> None:
        (timer,) = subscription.timers.values()
        await asyncio.sleep(timer.when() - asyncio.get_running_loop().time() - 5)  # a request has 10 s

    acknowledge_late(Sluggish(), soon_over, "stream")


@pytest.mark.parametrize("mode", ["pull", "stream"])
def test_what_was_acknowledged_too_late_is_acknowledged_again(mode: str) -> None:
    """S1: Pub/Sub confirms a late acknowledgement and delivers again; the receiver does not hand it out."""
    broker = Forgetful()

    async def over(_: Subscription, delivery: Delivery) -> None:
        await until(lambda: bool(broker.lapsed) and delivery.lease_until < time.monotonic())

    acknowledge_late(broker, over, mode)
