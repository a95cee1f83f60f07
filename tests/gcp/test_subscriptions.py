"""Subscriptions: how they are created, what they must be, and what happens when they are deleted."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.api_core.exceptions import NotFound
from google.pubsub_v1.types import Subscription

from events_core import (
    ErrorCode,
    EventMessage,
    PublishError,
    ReceiveError,
)
from events_core.engine import recipients
from events_gcp import admin

from ..receiving import take
from .console import Console, client
from .waiting import PATIENCE, send_until_done


def test_subscriptions_are_made_as_documented(console: Console) -> None:
    """Q1: named ones have order and never expire; ephemeral ones expire after a day and have a label."""

    async def subscribe() -> tuple[Subscription, Subscription]:
        async with console.client(ack_deadline="30") as subscriber:
            named, ephemeral = await subscriber.subscribe(f"{console.topic_name}-s"), await subscriber.subscribe()
            return console.find(named.subscription), console.find(ephemeral.subscription)

    named, ephemeral = asyncio.run(subscribe())
    assert named.enable_message_ordering
    assert named.ack_deadline_seconds == 30
    assert not named.expiration_policy.ttl
    assert ephemeral.expiration_policy.ttl.total_seconds() == 86_400
    assert ephemeral.labels == {"events-ephemeral": "true"}


def test_a_subscription_of_another_topic_is_refused(console: Console) -> None:
    """Q2: the error is INVALID and names both topics."""
    console.create(f"{console.topic_name}-s")

    async def subscribe() -> None:
        async with client(f"{console.topic_name}-other", emulator_host=console.emulator) as other:
            await other.subscribe(f"{console.topic_name}-s")

    with pytest.raises(ReceiveError, match=f"belongs to '{console.topic}'") as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.INVALID


def test_what_a_subscription_lacks_is_not_promised(console: Console) -> None:
    """Q2: without order and dead letters in the subscription, the receiver declares neither."""
    console.create(f"{console.topic_name}-s")

    async def subscribe() -> None:
        async with console.client() as subscriber:
            promised = (await subscriber.subscribe(f"{console.topic_name}-s")).capabilities
            assert (promised.ordering, promised.dead_letter, promised.delivery_attempts) == ("none", False, False)

    asyncio.run(subscribe())


def test_a_subscription_is_made_as_the_options_say(console: Console) -> None:
    """Q2: it has exactly-once delivery, filter, retry policy, retention and, without order, a dead-letter policy."""

    async def subscribe() -> Subscription:
        options = {
            "exactly_once": "true",
            "ordering": "false",
            "filter": 'attributes.kind = "invoice"',
            "retry_min_backoff": "0.5",
            "retry_max_backoff": "20",
            "message_retention": "3600",
            "dead_letter_topic": f"{console.topic_name}-dead",
            "max_delivery_attempts": "7",
        }
        async with console.client(**options) as subscriber:
            receiver = await subscriber.subscribe(f"{console.topic_name}-s")
            assert receiver.capabilities.exactly_once
            return console.find(receiver.subscription)

    made = asyncio.run(subscribe())
    assert made.enable_exactly_once_delivery
    assert not made.enable_message_ordering
    assert made.filter == 'attributes.kind = "invoice"'
    assert made.retry_policy.minimum_backoff.total_seconds() == 0.5
    assert made.retry_policy.maximum_backoff.total_seconds() == 20
    assert made.message_retention_duration.total_seconds() == 3600
    assert made.dead_letter_policy.dead_letter_topic == f"{console.topic}-dead"
    assert made.dead_letter_policy.max_delivery_attempts == 7


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"exactly_once": "true"}, "has no exactly-once delivery"),
        ({"filter": "attributes:kind"}, "has the filter ''"),
        ({"ordering": "true"}, "without message ordering"),
        ({"dead_letter_topic": "dead", "max_delivery_attempts": "5"}, "has no dead-letter policy"),
    ],
)
def test_a_subscription_that_contradicts_the_options_is_refused(
    console: Console, options: dict[str, str], text: str
) -> None:
    """Q2: subscribe raises INVALID, which names the subscription's setting and the option."""
    console.create(f"{console.topic_name}-s")

    async def subscribe() -> None:
        async with console.client(**options) as subscriber:
            await subscriber.subscribe(f"{console.topic_name}-s")

    with pytest.raises(ReceiveError, match=text) as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.INVALID


@pytest.mark.parametrize("ordering", ["true", "false"])
def test_a_subscription_whose_letters_go_elsewhere_is_refused(console: Console, ordering: str) -> None:
    """Q2, R12: if its policy names another topic than the options, letters would go where nobody looks."""
    dead = f"{console.topic_name}-dead"
    console.publisher.create_topic(name=f"{console.topic}-other")
    console.create(
        f"{console.topic_name}-s",
        enable_message_ordering=True,
        dead_letter_policy={"dead_letter_topic": f"{console.topic}-other"},
    )

    async def subscribe() -> None:
        options = {"dead_letter_topic": dead, "max_delivery_attempts": "5", "ordering": ordering}
        async with console.client(**options) as subscriber:
            await subscriber.subscribe(f"{console.topic_name}-s")

    with pytest.raises(ReceiveError, match=f"sends dead letters to '{console.topic}-other'") as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.INVALID


def test_what_an_emulator_forgot_is_made_again(console: Console) -> None:
    """F1: if topic and subscription are deleted under a receiver, they are created again, and messages come."""
    name = f"{console.topic_name}-s"

    async def survive() -> None:
        async with console.client(subscription=name) as both:
            receiver = await both.subscribe()
            await both.send_message(EventMessage(b"before"))
            message = await receiver.receive_message(PATIENCE)
            assert message is not None
            await receiver.acknowledge(message)
            console.publisher.delete_topic(topic=console.topic)
            console.subscriber.delete_subscription(subscription=console.path(name))
            receiving = asyncio.create_task(receiver.receive_message(PATIENCE))
            await send_until_done(both, EventMessage(b"after"), receiving)
            message = await receiving
            assert message is not None
            assert message.data == b"after"
            await receiver.acknowledge(message)

    asyncio.run(survive())


def test_what_is_sent_when_all_was_forgotten_comes_to_all_receivers(console: Console) -> None:
    """F1: the subscriptions of this client are back before the message leaves, whoever creates the topic first."""
    names = [f"{console.topic_name}-{each}" for each in ("s", "other")]

    async def survive() -> None:
        async with (
            console.client(subscription=names[0]) as both,
            both.subscribe(names[0]) as configured,
            both.subscribe(names[1]) as other,
            console.client() as ephemeral_client,
            ephemeral_client.subscribe() as ephemeral,
        ):
            for sender, receivers in ((both, [configured, other]), (ephemeral_client, [ephemeral])):
                console.publisher.delete_topic(topic=console.topic)
                for receiver in receivers:
                    console.subscriber.delete_subscription(subscription=console.path(receiver.subscription))
                await sender.send_message(EventMessage(b"after"))
                for receiver in receivers:
                    message = await take(receiver)
                    assert message.data == b"after"
                    await receiver.acknowledge(message)

    asyncio.run(survive())


def test_a_new_receiver_does_not_hide_that_the_topic_was_deleted(console: Console) -> None:
    """F1: it creates the topic again, and the subscriptions of the others too."""
    names = [f"{console.topic_name}-{each}" for each in ("s", "new")]

    async def survive() -> None:
        async with console.client(subscription=names[0]) as both:
            await both.ping(PATIENCE)
            console.publisher.delete_topic(topic=console.topic)
            console.subscriber.delete_subscription(subscription=console.path(names[0]))
            async with both.subscribe(names[1]):
                await both.send_message(EventMessage(b"after"))
            async with both.subscribe() as configured:
                assert (await take(configured)).data == b"after"

    asyncio.run(survive())


def test_nothing_is_sent_past_the_subscription_of_a_deleted_topic(console: Console) -> None:
    """F1: Pub/Sub cannot attach it to the new topic.  Sends fail until it is deleted, and then nothing is lost."""
    name = f"{console.topic_name}-s"

    async def survive() -> None:
        async with console.client(subscription=name) as both, both.subscribe() as receiver:
            console.publisher.delete_topic(topic=console.topic)
            for _ in range(2):
                with pytest.raises(PublishError, match="_deleted-topic_") as caught:
                    await both.send_message(EventMessage(b"before"))
                assert caught.value.code is ErrorCode.NOT_FOUND
            console.subscriber.delete_subscription(subscription=console.path(name))
            await both.send_message(EventMessage(b"after"))
            assert (await take(receiver)).data == b"after"

    asyncio.run(survive())


def test_a_subscription_that_went_is_an_error_where_none_may_be_made(console: Console) -> None:
    """F1: if the options do not allow creation, the waiting receive raises NOT_FOUND."""
    console.create(f"{console.topic_name}-s")

    async def receive() -> None:
        async with console.client(create="never") as subscriber:
            receiver = await subscriber.subscribe(f"{console.topic_name}-s")
            waiting = asyncio.create_task(receiver.receive_message(PATIENCE))
            await asyncio.wait([waiting], timeout=0.2)
            console.subscriber.delete_subscription(subscription=console.path(f"{console.topic_name}-s"))
            await waiting

    with pytest.raises(ReceiveError) as caught:
        asyncio.run(receive())
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_dead_letters_get_a_subscription_that_never_expires(console: Console) -> None:
    """R12: a receiver creates it if the dead-letter topic has none, and the next receiver leaves it as it is."""
    letters, other = f"{console.topic_name}-letters", f"{console.topic_name}-other"

    async def subscribe() -> None:
        options = {"dead_letter_topic": f"{console.topic_name}-dead", "max_delivery_attempts": "5"}
        async with console.client(**options, dead_letter_subscription=letters) as subscriber:
            await subscriber.subscribe(f"{console.topic_name}-s")
        async with console.client(**options, dead_letter_subscription=other) as subscriber:
            await subscriber.subscribe(f"{console.topic_name}-s")

    asyncio.run(subscribe())
    made = console.find(letters)
    assert made.topic == f"{console.topic}-dead"
    assert made.enable_message_ordering
    assert not made.expiration_policy.ttl
    with pytest.raises(NotFound):
        console.find(other)


def test_the_subscription_of_another_topic_keeps_no_letters(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """R12: a subscription with the right name on the wrong topic is an error."""
    letters = f"{console.topic_name}-letters"
    options = {"dead_letter_topic": f"{console.topic_name}-dead", "max_delivery_attempts": "5"}

    async def subscribe() -> None:
        async with console.client() as other:
            await other.subscribe(letters)
        async with console.client(**options, dead_letter_subscription=letters) as subscriber:
            await subscriber.subscribe(f"{console.topic_name}-s")

    asyncio.run(subscribe())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "dead letters may be lost" in warnings[0]
    assert f"belongs to {console.topic!r}" in warnings[0]


def test_a_passing_reader_keeps_no_letters(console: Console) -> None:
    """R12: an ephemeral subscription on the dead-letter topic does not replace the durable one."""
    dead, letters = f"{console.topic_name}-dead", f"{console.topic_name}-letters"
    options = {"dead_letter_topic": dead, "max_delivery_attempts": "5", "dead_letter_subscription": letters}

    async def subscribe() -> None:
        async with console.of(dead).client() as reader, console.client(**options) as subscriber:
            await reader.subscribe()
            await subscriber.subscribe(f"{console.topic_name}-s")

    asyncio.run(subscribe())
    assert console.find(letters).topic == f"{console.topic}-dead"


def test_a_send_that_reaches_nobody_is_told(
    console: Console, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: the first send to a topic without a subscription logs one warning."""
    monkeypatch.setattr(recipients, "LOOK_UP", PATIENCE)

    async def send() -> None:
        async with console.client() as client:
            await client.send_message(EventMessage(b"x"))
            await client.send_message(EventMessage(b"y"))

    asyncio.run(send())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"{console.topic_name!r} has no subscription" in warnings[0]


def test_a_missing_subscription_is_told_with_the_nearest(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q2: NOT_FOUND suggests the closest name among the topic's subscriptions, if the account may list them."""
    monkeypatch.setattr(admin, "_LOOK_TIMEOUT", PATIENCE)
    console.create(f"{console.topic_name}-billing")

    async def subscribe() -> None:
        async with console.client(create="never") as subscriber:
            await subscriber.subscribe(f"{console.topic_name}-biling")

    with pytest.raises(ReceiveError, match=f"; did you mean '{console.topic_name}-billing'\\?") as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.NOT_FOUND
