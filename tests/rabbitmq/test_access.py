"""Wrong passwords, missing virtual hosts and missing permissions are told clearly, and no secret is shown."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator

import pytest

from events_core import (
    ErrorCode,
    EventClient,
    EventConnectionError,
    EventError,
    EventMessage,
    PublishError,
    ReceiveError,
)

from ..receiving import take, take_after
from ..waiting import until
from .console import Console, client
from .server import Server

PASSWORD = "s3cret:p@ss/wd"


class Place:
    """A virtual host of one test, and a user without permissions there."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.vhost = f"v-{uuid.uuid4().hex[:8]}"
        self.user = f"u-{uuid.uuid4().hex[:8]}"
        self.url = server.url_for(user=self.user, password=PASSWORD, vhost=self.vhost)

    def allow(self, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        self.server.allow(self.user, self.vhost, configure, write, read)


@pytest.fixture
def place(own_server: Server) -> Iterator[Place]:
    """Yield a new virtual host and a new user."""
    place = Place(own_server)
    own_server.add_vhost(place.vhost)
    own_server.add_user(place.user, PASSWORD)
    yield place
    own_server.delete_user(place.user)
    own_server.delete_vhost(place.vhost)


def test_a_user_with_all_permissions_sends_and_receives(place: Place) -> None:
    """The password has characters that a URL must quote."""
    place.allow()

    async def scenario() -> None:
        async with client("orders", url=place.url, subscription="billing") as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            await receiver.acknowledge(await take(receiver))

    asyncio.run(scenario())


def test_a_wrong_password_is_unauthenticated(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The error names the user's option and the server, and shows no password.  It is not tried again."""
    wrong = place.server.url_for(user=place.user, password="wr0ng-s3cret", vhost=place.vhost)

    async def scenario() -> EventError:
        async with client("orders", url=wrong) as sender:
            with pytest.raises(EventConnectionError) as caught:
                await sender.ping(timeout=60)
            with pytest.raises(PublishError) as refused:
                await sender.send_message(EventMessage(b"1"))
            assert refused.value.code is ErrorCode.UNAUTHENTICATED
            return caught.value

    with caplog.at_level(logging.DEBUG, logger="events_rabbitmq"), caplog.at_level(logging.DEBUG, logger="events_core"):
        error = asyncio.run(scenario())
    assert error.code is ErrorCode.UNAUTHENTICATED
    assert place.server.address in str(error)
    assert "password" in str(error)
    assert "s3cret" not in str(error) + repr(error.__cause__) + caplog.text


@pytest.fixture
def server_without_plain(own_server: Server) -> Iterator[Server]:
    """Let the server take passwords only by the mechanism AMQPLAIN, which pika does not have."""
    before = own_server.evaluate("{ok, Found} = application:get_env(rabbit, auth_mechanisms), Found.")
    own_server.evaluate("application:set_env(rabbit, auth_mechanisms, ['AMQPLAIN']).")
    yield own_server
    own_server.evaluate(f"application:set_env(rabbit, auth_mechanisms, {before}).")


def test_a_server_that_takes_no_plain_passwords_is_not_tried_again(
    server_without_plain: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the mechanism, and asyncio logs no traceback of an exception in pika."""

    async def scenario() -> EventError:
        async with client("orders", url=server_without_plain.url) as sender:
            with pytest.raises(PublishError) as refused:
                await sender.send_message(EventMessage(b"1"))
            return refused.value

    error = asyncio.run(scenario())
    assert error.code is ErrorCode.UNAUTHENTICATED
    assert not error.retryable
    assert "PLAIN" in str(error)
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_missing_virtual_host_is_named(place: Place) -> None:
    """The error says which virtual host there is not."""

    async def scenario() -> EventError:
        async with client("orders", url=place.server.url_for(vhost="nowhere")) as sender:
            with pytest.raises(EventConnectionError, match="nowhere") as caught:
                await sender.ping(timeout=60)
            return caught.value

    assert asyncio.run(scenario()).code is ErrorCode.NOT_FOUND


def test_a_virtual_host_without_access_is_named(place: Place) -> None:
    """A user without any permission in the virtual host may not connect to it."""

    async def scenario() -> EventError:
        async with client("orders", url=place.url) as sender:
            with pytest.raises(EventConnectionError, match=place.vhost) as caught:
                await sender.ping(timeout=60)
            return caught.value

    error = asyncio.run(scenario())
    assert error.code is ErrorCode.PERMISSION_DENIED
    assert "s3cret" not in str(error)


async def receive(client: EventClient) -> None:
    async with client.subscribe("billing") as receiver:
        await receiver.receive_message(60)


@pytest.mark.parametrize(
    ("missing", "permissions"),
    [
        ("configure", {"configure": "^$"}),
        ("write", {"write": "^orders:billing$"}),
        ("read", {"read": "^orders$"}),
    ],
)
def test_a_missing_permission_is_named(place: Place, missing: str, permissions: dict[str, str]) -> None:
    """Q2, P3: the error is PERMISSION_DENIED and names the permission and the object."""
    place.allow(**permissions)

    async def scenario() -> EventError:
        async with client("orders", url=place.url) as both:
            with pytest.raises((PublishError, ReceiveError)) as caught:
                await (both.send_message(EventMessage(b"1")) if missing == "write" else receive(both))
            return caught.value

    error = asyncio.run(scenario())
    assert error.code is ErrorCode.PERMISSION_DENIED
    assert not error.retryable
    assert missing in str(error)
    assert "orders" in str(error)
    assert place.user in str(error)
    assert "s3cret" not in str(error)


def test_a_sender_needs_write_alone(place: Place) -> None:
    """With create=never, the permission to write to the exchange is enough to send."""
    console = Console(place.server, place.server.url_for(vhost=place.vhost))
    console.declare_exchange()
    console.declare_queue()
    place.allow(configure="^$", write=f"^{console.topic}$", read="^$")

    async def scenario() -> None:
        async with client(console.topic, url=place.url, create="never") as sender:
            await sender.ping(timeout=60)
            await sender.send_message(EventMessage(b"1"))

    asyncio.run(scenario())
    assert console.ready() == 1


def test_a_receiver_needs_read_alone(place: Place) -> None:
    """With create=never, the permission to read the queue is enough to receive."""
    console = Console(place.server, place.server.url_for(vhost=place.vhost))
    console.declare_exchange()
    console.declare_queue()
    console.publish(b"1")
    place.allow(configure="^$", write="^$", read=f"^{console.queue}$")

    async def scenario() -> None:
        async with (
            client(console.topic, url=place.url, create="never") as receiving,
            receiving.subscribe(console.subscription) as receiver,
        ):
            await receiver.acknowledge(await take(receiver))

    asyncio.run(scenario())


def test_a_permission_that_was_withdrawn_surfaces(place: Place) -> None:
    """F1: after a reconnect the server refuses the consumer; the next receive says so, and works when it may again."""
    place.allow()

    async def scenario() -> None:
        async with client("orders", url=place.url) as both, both.subscribe("billing") as receiver:
            await both.send_message(EventMessage(b"1"))
            await receiver.acknowledge(await take(receiver))
            place.allow(read="^$")
            place.server.command("close_all_connections", "--vhost", place.vhost, "withdrawn")
            with pytest.raises(ReceiveError) as caught:
                await receiver.receive_message(60)
            assert caught.value.code is ErrorCode.PERMISSION_DENIED
            place.allow()
            sent = asyncio.create_task(both.send_message(EventMessage(b"2")))
            message = await take_after(receiver, ErrorCode.PERMISSION_DENIED)
            await sent
            assert message.data == b"2"

    asyncio.run(scenario())


def test_a_deleted_virtual_host_surfaces(place: Place) -> None:
    """F1: when its virtual host is deleted, a receiver says so, and does not wait in silence."""
    place.allow()

    async def scenario() -> None:
        async with client("orders", url=place.url) as both, both.subscribe("billing") as receiver:
            waiting = asyncio.create_task(receiver.receive_message(60))
            place.server.delete_vhost(place.vhost)
            with pytest.raises(ReceiveError) as caught:
                await waiting
            assert caught.value.code is ErrorCode.NOT_FOUND
            await until(lambda: not both.is_connected)
            place.server.add_vhost(place.vhost)

    asyncio.run(scenario())


@pytest.mark.parametrize("of", ["user", "vhost"])
def test_a_limit_of_connections_is_waited_for(place: Place, of: str) -> None:
    """F1, P7: the server has too many connections of the user or the virtual host, and later has room again."""
    place.allow()
    name = place.user if of == "user" else place.vhost

    async def scenario() -> None:
        async with client("orders", url=place.url) as both, both.subscribe("billing") as receiver:
            await both.ping(timeout=60)
            receiving = asyncio.create_task(take(receiver))
            place.server.limit_connections(of, name, 0)
            place.server.command("close_all_connections", "--vhost", place.vhost, "limited")
            await until(lambda: not both.is_connected)
            sending = asyncio.create_task(both.send_message(EventMessage(b"1")))
            with pytest.raises(EventConnectionError, match="limit") as caught:
                await both.ping(timeout=60)
            assert caught.value.code is ErrorCode.EXHAUSTED
            assert caught.value.retryable
            await asyncio.wait([sending, receiving], timeout=1, return_when=asyncio.FIRST_COMPLETED)
            assert not sending.done()
            assert not receiving.done()
            place.server.limit_connections(of, name, 10)
            await sending
            await receiver.acknowledge(await receiving)

    asyncio.run(scenario())
