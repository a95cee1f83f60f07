"""What is Pub/Sub's own: its configuration, its subscriptions, its errors."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import Subscription

from events_core import (
    ConfigurationError,
    ErrorCode,
    EventConfig,
    EventConnectionError,
    EventMessage,
    EventRuntimeError,
    PublishError,
    ReceiveError,
)
from events_core.engine import BrokerError
from events_gcp import GcpPubSubClient
from events_gcp.errors import translated

PROJECT = "events-test"


def client(topic: str = "orders", project: str = PROJECT, **options: str) -> GcpPubSubClient:
    return GcpPubSubClient(EventConfig(topic, project, options, "gcp"))


class Console:
    """The emulator as an administrator sees it, and a topic of one test."""

    def __init__(self, emulator: str) -> None:
        self.emulator = emulator
        self.topic_name = f"t-{uuid.uuid4().hex}"
        self.topic = f"projects/{PROJECT}/topics/{self.topic_name}"
        self._channel = grpc.insecure_channel(emulator)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))

    def client(self, **options: str) -> GcpPubSubClient:
        return client(self.topic_name, emulator_host=self.emulator, **options)

    def path(self, subscription: str) -> str:
        return f"projects/{PROJECT}/subscriptions/{subscription}"

    def find(self, subscription: str) -> Subscription:
        return self.subscriber.get_subscription(subscription=self.path(subscription))

    def create(self, name: str, **settings: object) -> None:
        self.subscriber.create_subscription({"name": self.path(name), "topic": self.topic, **settings})

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def console(emulator: str) -> Iterator[Console]:
    console = Console(emulator)
    console.publisher.create_topic(name=console.topic)
    yield console
    console.close()


# Configuration


@pytest.mark.parametrize(
    ("topic", "project", "options", "text"),
    [
        ("orders", "", {}, "project_id '' is no project"),
        ("orders", "projects/acme", {}, "project_id 'projects/acme' is no project"),
        ("or", PROJECT, {}, "topic 'or' is no valid"),
        ("google-orders", PROJECT, {}, "topic 'google-orders' is no valid"),
        ("orders", PROJECT, {"subscription": "a b c"}, "subscription 'a b c' is no valid"),
        ("orders", PROJECT, {"ack_deadline": "9"}, "'ack_deadline'.* 10 to 600 seconds"),
        ("orders", PROJECT, {"dead_letter_topic": "dead", "max_delivery_attempts": "4"}, "5 to 100"),
        ("orders", PROJECT, {"region": "europe-west2", "endpoint": "localhost"}, "'region' and 'endpoint'"),
        (
            "orders",
            PROJECT,
            {"dead_letter_topic": "dead", "max_delivery_attempts": "5", "ordering": "true"},
            "'ordering' and 'dead_letter_topic'",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    topic: str, project: str, options: dict[str, str], text: str
) -> None:
    """Before any I/O, with the value and what is wrong with it."""
    with pytest.raises(ConfigurationError, match=text):
        client(topic, project, **options)


def test_dead_letters_are_declared_where_they_are_configured() -> None:
    """With them attempts are counted, hand-backs too, and there is no order."""
    promised = client(dead_letter_topic="dead", max_delivery_attempts="5").capabilities
    assert (promised.dead_letter, promised.delivery_attempts, promised.handback_counts) == (True, True, True)
    assert promised.ordering == "none"
    assert not client().capabilities.delivery_attempts


@pytest.mark.parametrize("attributes", [{}, {"google": "y"}, {"": "y"}])
def test_what_pubsub_refuses_is_not_sent(attributes: dict[str, str]) -> None:
    """An empty message and reserved attributes are INVALID without asking the service."""
    with pytest.raises(PublishError) as caught:
        asyncio.run(client().send_message(EventMessage(b"", attributes)))
    assert caught.value.code is ErrorCode.INVALID


# Connecting


def test_missing_credentials_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credentials file that is not there is UNAUTHENTICATED, and the error says which."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    missing = tmp_path / "credentials.json"

    async def subscribe() -> None:
        async with client(credentials_file=str(missing)) as tried:
            await tried.subscribe("billing")

    with pytest.raises(ReceiveError, match=re.escape(str(missing))) as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.UNAUTHENTICATED


def test_nobody_listening_is_a_connection_error() -> None:
    """Subscribe ends within connect_timeout; the client then closes at once."""

    async def subscribe() -> None:
        async with client(emulator_host="127.0.0.1:9", connect_timeout="0.5") as tried:
            with pytest.raises(EventConnectionError):
                await tried.subscribe("billing")
            assert not tried.is_connected

    asyncio.run(asyncio.wait_for(subscribe(), 10))


def test_the_environment_names_the_emulator(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """PUBSUB_EMULATOR_HOST goes before a region, so that a program is tried without changing its configuration."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", console.emulator)

    async def send() -> str:
        async with client(console.topic_name, region="europe-west2") as sender:
            return await sender.send_message(EventMessage(b"x"))

    assert asyncio.run(send())


# Subscriptions


def test_subscriptions_are_made_as_documented(console: Console) -> None:
    """Named ones are ordered and never expire; ephemeral ones expire after a day and are labelled."""

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
    """INVALID, naming both topics."""
    console.create(f"{console.topic_name}-s")

    async def subscribe() -> None:
        async with client(f"{console.topic_name}-other", emulator_host=console.emulator) as other:
            await other.subscribe(f"{console.topic_name}-s")

    with pytest.raises(ReceiveError, match=f"belongs to '{console.topic}'") as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.INVALID


def test_what_a_subscription_lacks_is_not_promised(console: Console) -> None:
    """A receiver of a subscription that was made without order and dead letters declares neither."""
    console.create(f"{console.topic_name}-s")

    async def subscribe() -> None:
        async with console.client() as subscriber:
            promised = (await subscriber.subscribe(f"{console.topic_name}-s")).capabilities
            assert (promised.ordering, promised.dead_letter, promised.delivery_attempts) == ("none", False, False)

    asyncio.run(subscribe())


def test_exactly_once_delivery_is_refused(console: Console) -> None:
    """A subscription with it would need answers that this backend does not read."""
    console.create(f"{console.topic_name}-s", enable_exactly_once_delivery=True)

    async def subscribe() -> None:
        async with console.client() as subscriber:
            await subscriber.subscribe(f"{console.topic_name}-s")

    with pytest.raises(EventRuntimeError, match="exactly-once") as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.UNSUPPORTED


def test_what_an_emulator_forgot_is_made_again(console: Console) -> None:
    """Topic and subscription deleted under a receiver come back, where options allow, and so do messages."""
    name = f"{console.topic_name}-s"

    async def survive() -> None:
        async with console.client(subscription=name) as both:
            receiver = await both.subscribe()
            await both.send_message(EventMessage(b"before"))
            message = await receiver.receive_message(10)
            assert message is not None
            await receiver.acknowledge(message)
            console.publisher.delete_topic(topic=console.topic)
            console.subscriber.delete_subscription(subscription=console.path(name))
            await both.send_message(EventMessage(b"after"))
            message = await receiver.receive_message(10)
            assert message is not None
            assert message.data == b"after"
            await receiver.acknowledge(message)

    asyncio.run(survive())


def test_a_subscription_that_went_is_an_error_where_none_may_be_made(console: Console) -> None:
    """The waiting receive raises NOT_FOUND and does not wait for ever."""
    console.create(f"{console.topic_name}-s")

    async def receive() -> None:
        async with console.client(create="never") as subscriber:
            receiver = await subscriber.subscribe(f"{console.topic_name}-s")
            waiting = asyncio.create_task(receiver.receive_message(10))
            await asyncio.wait([waiting], timeout=0.2)
            console.subscriber.delete_subscription(subscription=console.path(f"{console.topic_name}-s"))
            await waiting

    with pytest.raises(ReceiveError) as caught:
        asyncio.run(receive())
    assert caught.value.code is ErrorCode.NOT_FOUND


# Receiving


def test_what_nobody_read_is_not_handed_out_with_a_stale_lease(console: Console) -> None:
    """What the emulator sent beyond the bound goes back and comes again, each once, while another is held long."""

    async def receive() -> list[bytes]:
        async with console.client(max_outstanding_messages="1", ack_deadline="10") as slow:
            receiver = await slow.subscribe(f"{console.topic_name}-s")
            await slow.send_messages([EventMessage(b"%d" % number, ordering_key="k") for number in range(4)])
            received = []
            while len(received) < 4:
                message = await receiver.receive_message(10)
                assert message is not None
                assert await receiver.receive_message(3 if not received else 0) is None
                await receiver.acknowledge(message)
                received.append(message.data)
            assert await receiver.receive_message(0.3) is None
            return received

    assert asyncio.run(receive()) == [b"0", b"1", b"2", b"3"]


def test_a_short_nack_does_not_outlive_its_receiver(console: Console) -> None:
    """A message whose backoff of less than a second is not over comes to the next receiver when the first closes."""

    async def receive() -> None:
        async with console.client() as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_message(EventMessage(b"x"))
            message = await receiver.receive_message(10)
            assert message is not None
            await receiver.nack(message, delay=0.9)
            await receiver.close()
            began = time.monotonic()
            async with await both.subscribe(f"{console.topic_name}-s") as other:
                assert await other.receive_message(10)
            assert time.monotonic() - began < 0.8

    asyncio.run(receive())


# Errors


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_every_status_has_a_meaning(status: grpc.StatusCode) -> None:
    """Whatever gRPC says arrives as a BrokerError that tells what was asked and found, with the cause."""
    native = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details="the details")
    with pytest.raises(BrokerError, match=rf"ask: the details \({status.name}\)") as caught, translated("ask"):
        raise native
    assert caught.value.__cause__ is native


def test_what_cannot_be_foreseen_is_internal() -> None:
    """Any other exception is a defect, and not retried."""
    with pytest.raises(BrokerError, match="ask: ZeroDivisionError") as caught, translated("ask"):
        raise ZeroDivisionError
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.INTERNAL, False)
