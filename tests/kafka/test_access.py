"""Wrong credentials, missing permissions and brokers that cannot be reached are told clearly, without a secret."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from events_core import ErrorCode, EventConnectionError, EventError, EventMessage, PublishError, ReceiveError

from ..receiving import take, take_after
from ..waiting import until
from .console import Console, client
from .server import PASSWORD, USER

LOGIN = {"sasl_mechanism": "PLAIN", "username": USER, "password": PASSWORD}
MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


def sasl(console: Console, **options: str) -> dict[str, str]:
    """Return options that log in at the listener for that, or skip the test if there is none."""
    if not console.server.sasl:
        pytest.skip("the server has no listener with a login")
    return {"bootstrap_servers": console.server.sasl, **LOGIN, **options}


def unsigned_token(config: str) -> tuple[str, float]:
    """Return a token that the brokers of the tests accept, and the time at which it expires."""
    from base64 import urlsafe_b64encode

    expires = time.time() + 600
    parts = ['{"alg":"none"}', f'{{"sub":"{USER}","iat":{time.time() - 1:.0f},"exp":{expires:.0f}}}', ""]
    return ".".join(urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts), expires


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_user_who_logs_in_sends_and_receives(console: Console, mechanism: str) -> None:
    """The user and the password are those of the options."""
    options = sasl(console, sasl_mechanism=mechanism)

    async def scenario() -> None:
        async with console.client(**options) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            await receiver.acknowledge(await take(receiver))

    asyncio.run(scenario())


def test_a_callback_gives_the_token(console: Console) -> None:
    """With OAUTHBEARER, a function of the application returns the token."""
    options = sasl(console, sasl_mechanism="OAUTHBEARER", oauth_callback=f"{__name__}:unsigned_token")
    del options["username"], options["password"]

    async def scenario() -> None:
        async with console.client(**options) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"1"))
            await receiver.acknowledge(await take(receiver))

    asyncio.run(scenario())


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_unauthenticated(
    console: Console, caplog: pytest.LogCaptureFixture, mechanism: str
) -> None:
    """The error names the user's options, and shows no password.  It comes long before connect_timeout is over."""
    options = sasl(console, sasl_mechanism=mechanism, password="wr0ng-s3cret")

    async def scenario() -> EventError:
        async with console.client(**options) as sender:
            with pytest.raises(EventConnectionError) as caught:
                await sender.ping(timeout=60)
            with pytest.raises(PublishError) as refused:
                await sender.send_message(EventMessage(b"1"))
            assert refused.value.code is ErrorCode.UNAUTHENTICATED
            with pytest.raises((ReceiveError, EventConnectionError)) as unread:
                await sender.subscribe()
            assert unread.value.code is ErrorCode.UNAUTHENTICATED
            return caught.value

    with caplog.at_level(logging.DEBUG):
        error = asyncio.run(scenario())
    assert error.code is ErrorCode.UNAUTHENTICATED
    assert "password" in str(error)
    assert "wr0ng" not in str(error) + repr(error.__cause__) + caplog.text


def test_a_callback_that_fails_is_unauthenticated(console: Console) -> None:
    """The exception of the function is told as the reason."""
    options = sasl(console, sasl_mechanism="OAUTHBEARER", oauth_callback=f"{__name__}:no_token")
    del options["username"], options["password"]

    async def scenario() -> EventError:
        async with console.client(**options) as sender:
            with pytest.raises(EventConnectionError) as caught:
                await sender.ping(timeout=60)
            return caught.value

    assert asyncio.run(scenario()).code is ErrorCode.UNAUTHENTICATED


IS_OPEN = threading.Event()
"""Set while :func:`token_while_open` returns tokens."""
refusals: list[str] = []
"""An entry for each token that :func:`token_while_open` has refused."""


def token_while_open(config: str) -> tuple[str, float]:
    if not IS_OPEN.is_set():
        refusals.append(config)
        return no_token(config)
    return unsigned_token(config)


def test_a_receiver_outlives_an_outage_without_tokens(own: Console) -> None:
    """F1: the broker and the identity provider are away for longer than a session.  The receiver goes on afterwards."""
    options = sasl(own, sasl_mechanism="OAUTHBEARER", oauth_callback=f"{__name__}:token_while_open")
    del options["username"], options["password"]

    async def scenario() -> None:
        async with own.client(**options, session_timeout="6") as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            await until(lambda: own.committed() == 1)
            receiving = asyncio.create_task(take(receiver, 300))
            IS_OPEN.clear()
            refusals.clear()
            await asyncio.to_thread(own.server.stop)
            await until(lambda: receiving.done() or len(refusals) > 1)
            IS_OPEN.set()
            await asyncio.to_thread(own.server.start)
            if not receiving.done():
                await both.send_message(EventMessage(b"after"))
            message = await receiving
            assert message.data == b"after"
            await receiver.acknowledge(message)

    IS_OPEN.set()
    asyncio.run(scenario())


def no_token(config: str) -> tuple[str, float]:
    raise LookupError("the identity provider is closed today")


def test_a_callback_that_does_not_exist_is_told(console: Console) -> None:
    """The error names the option, before anything connects."""

    async def scenario() -> EventError:
        options = {"sasl_mechanism": "OAUTHBEARER", "oauth_callback": f"{__name__}:nothing"}
        async with console.client(**options) as sender:
            with pytest.raises(EventConnectionError, match="oauth_callback") as caught:
                await sender.ping(timeout=60)
            return caught.value

    assert asyncio.run(scenario()).code is ErrorCode.INVALID


def test_a_plain_client_of_a_listener_with_a_login_cannot_connect(console: Console) -> None:
    """Without a login the broker hangs up: the send ends with the reason in its error."""
    address = sasl(console)["bootstrap_servers"]

    async def scenario() -> EventError:
        async with client(console.topic, bootstrap_servers=address, connect_timeout="10") as sender:
            with pytest.raises(EventConnectionError, match="bootstrap_servers") as caught:
                await sender.ping(timeout=60)
            return caught.value

    assert asyncio.run(scenario()).code in (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.UNAUTHENTICATED)


@contextmanager
def only(
    console: Console, *operations: AclOperation, kind: ResourceType = ResourceType.TOPIC, name: str = ""
) -> Iterator[None]:
    """Let the user do nothing but *operations* with the topic, or with another resource, while the block runs."""
    # A rule for one operation takes away all others.
    pattern, user, allow = ResourcePatternType.LITERAL, f"User:{USER}", AclPermissionType.ALLOW
    rules = [(kind, name or console.topic, pattern, user, "*", operation, allow) for operation in operations]
    for made in console.admin.create_acls([AclBinding(*rule) for rule in rules]).values():
        made.result(60)
    try:
        yield
    finally:
        for gone in console.admin.delete_acls([AclBindingFilter(*rule) for rule in rules]).values():
            gone.result(60)


def test_a_user_who_may_not_write_is_denied(console: Console) -> None:
    """P7: the send fails at once with PERMISSION_DENIED, and the error names the topic."""
    options = sasl(console)
    console.create_topic()

    async def scenario() -> EventError:
        async with client(console.topic, **{**options, "create": "never"}) as sender:
            with pytest.raises(PublishError, match=console.topic) as caught:
                await sender.send_message(EventMessage(b"1"))
            return caught.value

    with only(console, AclOperation.DESCRIBE, AclOperation.READ, AclOperation.DESCRIBE_CONFIGS):
        assert asyncio.run(scenario()).code is ErrorCode.PERMISSION_DENIED


def test_a_user_who_may_only_write_sends(console: Console) -> None:
    """The settings of the topic, which the user may not read, are not needed."""
    options = sasl(console)
    console.create_topic()

    async def scenario() -> None:
        async with client(console.topic, **{**options, "create": "never"}) as sender:
            await sender.send_message(EventMessage(b"1"))

    with only(console, AclOperation.WRITE):
        asyncio.run(scenario())
    assert console.end() == 1


def test_a_user_who_may_not_read_is_denied(console: Console) -> None:
    """Q2: subscribing, or the first receive, fails with PERMISSION_DENIED."""
    options = sasl(console)
    console.create_topic()

    async def scenario() -> EventError:
        async with console.client(**{**options, "create": "subscription"}) as both:
            with pytest.raises(ReceiveError) as caught:
                async with both.subscribe() as receiver:
                    await receiver.receive_message(60)
            return caught.value

    with only(console, AclOperation.WRITE):
        assert asyncio.run(scenario()).code is ErrorCode.PERMISSION_DENIED


@pytest.mark.parametrize("kind", ["topic", "group"])
def test_a_receiver_that_loses_a_permission_is_told_and_goes_on_with_it(console: Console, kind: str) -> None:
    """Q2, F1: a receive fails with PERMISSION_DENIED.  When the user has the permission again, messages come."""
    options = sasl(console)
    resource, name = (ResourceType.TOPIC, console.topic) if kind == "topic" else (ResourceType.GROUP, console.group)

    async def scenario() -> None:
        async with console.client(**options) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            with only(console, AclOperation.DESCRIBE, AclOperation.WRITE, kind=resource, name=name):
                # A fetch that is out already goes on, and so does a group until its next sign of life.
                with pytest.raises(ReceiveError, match=console.topic) as caught:
                    await receiver.receive_message(60)
                assert caught.value.code is ErrorCode.PERMISSION_DENIED
            await both.send_message(EventMessage(b"after"))
            message = await take_after(receiver, ErrorCode.PERMISSION_DENIED)
            assert message.data == b"after"
            await receiver.acknowledge(message)
            await until(lambda: console.committed() == 2)

    asyncio.run(scenario())


def test_tls_checks_the_brokers_certificate(console: Console) -> None:
    """A certificate of an unknown authority is UNAUTHENTICATED; with the authority in tls_ca_file the send succeeds."""
    folder = console.server.certificates
    if folder is None or not console.server.tls:
        pytest.skip("the server has no listener with TLS")
    options = {"bootstrap_servers": console.server.tls, "tls": "true"}

    async def scenario() -> None:
        async with console.client(**options) as stranger:
            with pytest.raises(EventConnectionError, match="tls_") as caught:
                await stranger.ping(timeout=60)
            assert caught.value.code is ErrorCode.UNAUTHENTICATED
        async with console.client(**options, tls_ca_file=f"{folder}/ca.pem") as sender:
            await sender.send_message(EventMessage(b"1"))

    asyncio.run(scenario())


def test_a_client_shows_its_certificate(console: Console) -> None:
    """The certificate and its key come from two files, and SASL may come on top of TLS."""
    folder = console.server.certificates
    if folder is None or not console.server.sasl_tls:
        pytest.skip("the server has no listener with TLS")
    files = {
        "tls": "true",
        "tls_ca_file": f"{folder}/ca.pem",
        "tls_cert_file": f"{folder}/client.pem",
        "tls_key_file": f"{folder}/client.key",
    }

    async def scenario() -> None:
        async with console.client(bootstrap_servers=console.server.tls, **files) as sender:
            await sender.send_message(EventMessage(b"1"))
        async with console.client(bootstrap_servers=console.server.sasl_tls, **files, **LOGIN) as sender:
            await sender.send_message(EventMessage(b"2"))

    asyncio.run(scenario())
    assert console.end() == 2


def test_a_missing_certificate_file_is_named(console: Console) -> None:
    """The error has the path, and no secret."""

    async def scenario() -> EventError:
        options = {"tls": "true", "tls_ca_file": "/nowhere/ca.pem", "sasl_mechanism": "PLAIN"}
        async with console.client(**options, username=USER, password="s3cret") as sender:
            with pytest.raises(EventConnectionError, match="tls_") as caught:
                await sender.ping(timeout=60)
            return caught.value

    error = asyncio.run(scenario())
    assert error.code is ErrorCode.INVALID
    assert "s3cret" not in str(error)


@pytest.mark.parametrize("subscription", ["s", ""], ids=["named", "ephemeral"])
@pytest.mark.parametrize(
    ("setting", "value"), [("partition.assignment.strategy", "range,s3cret"), ("queued.min.messages", "99999999")]
)
def test_a_setting_that_a_consumer_refuses_is_invalid(
    console: Console, caplog: pytest.LogCaptureFixture, setting: str, value: str, subscription: str
) -> None:
    """O2: the error names the setting and not its value, because the option librdkafka is secret."""
    options = {"bootstrap_servers": console.address, "librdkafka": f"{setting}={value}"}
    if subscription:
        options["subscription"] = subscription

    async def scenario() -> EventError:
        async with client(console.topic, **options) as receiving:
            with pytest.raises(EventError, match=setting) as caught:
                await receiving.subscribe()
            return caught.value

    with caplog.at_level(logging.DEBUG):
        error = asyncio.run(scenario())
    assert error.code is ErrorCode.INVALID
    shown = caplog.text + "".join(traceback.format_exception(error))
    assert "s3cret" not in shown
    assert "99999999" not in shown


def test_brokers_that_cannot_be_reached_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """F1: a connect fails when connect_timeout is over, and says why; meanwhile one WARNING tells of the outage."""
    with socket.socket() as keeper:
        keeper.bind(("127.0.0.1", 0))  # nobody listens here
        address = f"127.0.0.1:{keeper.getsockname()[1]}"

        async def scenario() -> EventError:
            async with client("orders", bootstrap_servers=address, connect_timeout="8") as sender:
                with pytest.raises(EventConnectionError) as caught:
                    await sender.subscribe("billing")
                return caught.value

        error = asyncio.run(scenario())
    assert error.retryable
    assert address in str(error)
    assert "refused" in str(error)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1, caplog.text


def test_a_host_that_does_not_exist_is_told() -> None:
    """The error names the host."""

    async def scenario() -> EventError:
        async with client("orders", bootstrap_servers="nowhere.invalid:9092", connect_timeout="8") as sender:
            with pytest.raises(EventConnectionError, match=r"nowhere\.invalid") as caught:
                await sender.subscribe("billing")
            return caught.value

    assert asyncio.run(scenario()).retryable


def test_a_broker_that_never_answers_ends_every_call() -> None:
    """P7: connections are accepted, and nobody answers; each call ends when its time is over, and close too."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"

        async def scenario() -> None:
            options = {"bootstrap_servers": address, "connect_timeout": "3", "send_timeout": "3"}
            async with asyncio.timeout(60):
                async with client("orders", **options) as sender:
                    with pytest.raises(EventConnectionError) as caught:
                        await sender.ping(timeout=3)
                    assert caught.value.retryable
                    with pytest.raises(PublishError) as unsent:
                        await sender.send_message(EventMessage(b"1"))
                    assert unsent.value.retryable
                    with pytest.raises((ReceiveError, EventConnectionError)):
                        await sender.subscribe("billing")

        asyncio.run(scenario())


def test_a_host_that_is_silent_does_not_hide_the_others(console: Console) -> None:
    """A broker in the list that accepts connections and never answers only delays the first connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]},{console.address}"

        async def scenario() -> None:
            async with client(console.topic, bootstrap_servers=address) as sender:
                await sender.send_message(EventMessage(b"1"))

        asyncio.run(scenario())
