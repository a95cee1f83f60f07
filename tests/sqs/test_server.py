"""The servers that the other tests start keep their data, their ports and their distance from other programs.

The tests use bare aiobotocore, so that they hold without the backend.
"""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError, ConnectionClosedError

from ..waiting import until
from .faults import FaultyProxy, faulty
from .server import KEY, REGION, SECRET, Server

PATIENCE = 60.0
"""Seconds that an answer may take on a busy machine."""


@asynccontextmanager
async def clients(url: str, *, key: str = KEY, secret: str = SECRET) -> AsyncIterator[tuple[Any, Any]]:
    """Enter with clients of SQS and SNS that try everything once."""
    config = AioConfig(retries={"total_max_attempts": 1}, read_timeout=PATIENCE)
    login = {"region_name": REGION, "aws_access_key_id": key, "aws_secret_access_key": secret}
    session = get_session()
    async with (
        session.create_client("sqs", endpoint_url=url, config=config, **login) as sqs,
        session.create_client("sns", endpoint_url=url, config=config, **login) as sns,
    ):
        yield sqs, sns


async def new_user(url: str, allows: str) -> tuple[str, str]:
    """Create a user who may do what *allows* says, and return an access key and its secret."""
    name = uuid.uuid4().hex
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": allows, "Resource": "*"}]}
    login = {"region_name": REGION, "aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
    async with get_session().create_client("iam", endpoint_url=url, **login) as iam:
        await iam.create_user(UserName=name)
        await iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=json.dumps(policy))
        made = (await iam.create_access_key(UserName=name))["AccessKey"]
    return made["AccessKeyId"], made["SecretAccessKey"]


async def new_queue(sqs: Any, **attributes: str) -> str:
    """Create a queue and return its URL."""
    name = uuid.uuid4().hex
    return str((await sqs.create_queue(QueueName=name, Attributes=attributes))["QueueUrl"])


async def new_subscription(sqs: Any, sns: Any, *, allowed: bool = True) -> tuple[str, str]:
    """Create a topic, and a queue that is subscribed to it.  Return the topic's ARN and the queue's URL."""
    name = uuid.uuid4().hex
    topic = (await sns.create_topic(Name=name))["TopicArn"]
    arn = f"arn:aws:sqs:{REGION}:000000000000:{name}"
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
    }
    policy = {"Policy": json.dumps({"Version": "2012-10-17", "Statement": [statement]})} if allowed else {}
    url = (await sqs.create_queue(QueueName=name, Attributes=policy))["QueueUrl"]
    await sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=arn,
        Attributes={"RawMessageDelivery": "true"},
        ReturnSubscriptionArn=True,
    )
    return topic, url


async def bodies(sqs: Any, url: str, wait: int = 5) -> list[str]:
    """Return the bodies of the messages that one request receives."""
    answer = await sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=wait)
    return [message["Body"] for message in answer.get("Messages", ())]


def test_a_stopped_server_comes_back_with_its_messages(own_server: Server) -> None:
    """After an orderly stop nobody listens.  After the start, the queue has its message, and the topic its queue."""
    if not own_server.keeps_messages:
        pytest.skip("this server keeps no messages")

    async def scenario() -> None:
        async with clients(own_server.url) as (sqs, sns):
            topic, url = await new_subscription(sqs, sns)
            await sns.publish(TopicArn=topic, Message="before")
            await asyncio.to_thread(own_server.stop)
            host, _, port = own_server.address.rpartition(":")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), timeout=10)
            await asyncio.to_thread(own_server.start)
            await sns.publish(TopicArn=topic, Message="after")
            assert sorted(await bodies(sqs, url) + await bodies(sqs, url, 0)) == ["after", "before"]

    asyncio.run(scenario())


def test_a_killed_server_is_empty(own_server: Server) -> None:
    """After a kill, the same URL leads to a server that knows no queue of before."""

    async def scenario() -> None:
        async with clients(own_server.url) as (sqs, _):
            url = await new_queue(sqs)
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.restore)
            with pytest.raises(ClientError, match="does not exist"):
                await sqs.receive_message(QueueUrl=url)

    asyncio.run(scenario())


def test_a_paused_server_answers_when_it_is_resumed(own_server: Server) -> None:
    """A paused server accepts a connection, because the system does it, and says nothing on it."""
    own_server.pause()
    with pytest.raises(TimeoutError):
        own_server.answers(1)
    own_server.resume()
    assert own_server.answers(PATIENCE)


def test_a_bare_server_serves_queues(bare_server: Server) -> None:
    """The server without SNS takes a message and gives it back."""

    async def scenario() -> None:
        async with clients(bare_server.url) as (sqs, _):
            url = await new_queue(sqs)
            await sqs.send_message(QueueUrl=url, MessageBody="x")
            assert await bodies(sqs, url) == ["x"]

    asyncio.run(scenario())


def test_a_strict_server_refuses_a_wrong_secret(strict_server: Server) -> None:
    """A user's request with a right signature is taken, and one with a wrong signature is refused."""

    async def scenario() -> None:
        key, secret = await new_user(strict_server.url, "sqs:CreateQueue")
        async with clients(strict_server.url, key=key, secret=secret) as (sqs, _):
            await new_queue(sqs)
        async with clients(strict_server.url, key=key, secret="wrong") as (sqs, _):
            with pytest.raises(ClientError, match="signature"):
                await new_queue(sqs)

    asyncio.run(scenario())


def test_a_strict_server_refuses_what_no_policy_allows(strict_server: Server) -> None:
    """A user without a permission is told so."""

    async def scenario() -> None:
        key, secret = await new_user(strict_server.url, "sqs:ListQueues")
        async with clients(strict_server.url, key=key, secret=secret) as (sqs, _):
            await sqs.list_queues()
            with pytest.raises(ClientError, match="AccessDenied"):
                await new_queue(sqs)

    asyncio.run(scenario())


def test_a_strict_server_needs_the_policy_of_a_queue(strict_server: Server) -> None:
    """SNS brings messages only to a queue whose policy lets it."""

    async def scenario() -> None:
        async with clients(strict_server.url) as (sqs, sns):
            for allowed, expected in ((True, ["x"]), (False, [])):
                topic, url = await new_subscription(sqs, sns, allowed=allowed)
                await sns.publish(TopicArn=topic, Message="x")
                assert await bodies(sqs, url, 1) == expected

    asyncio.run(scenario())


# The proxy


def behind(proxy: FaultyProxy, **settings: Any) -> Any:
    return clients(proxy.url, **settings)


def test_a_proxy_passes_on_what_is_signed(strict_server: Server) -> None:
    """The signature of a request holds behind the proxy, which counts the requests."""

    async def scenario() -> None:
        key, secret = await new_user(strict_server.url, "*")
        async with faulty(strict_server.url) as proxy, behind(proxy, key=key, secret=secret) as (sqs, sns):
            topic, url = await new_subscription(sqs, sns)
            await sns.publish(TopicArn=topic, Message="x")
            assert await bodies(sqs, url) == ["x"]
            operations = [call.operation for call in proxy.calls]
            assert operations == ["CreateTopic", "CreateQueue", "Subscribe", "Publish", "ReceiveMessage"]

    asyncio.run(scenario())


def test_a_proxy_refuses_requests_of_both_services(server: Server) -> None:
    """The errors are those that the client library reads: with a code and a status.  Then requests pass again."""

    async def scenario() -> None:
        async with faulty(server.url) as proxy, behind(proxy) as (sqs, sns):
            topic, url = await new_subscription(sqs, sns)
            proxy.refuse("SendMessage", "RequestThrottled", status=403)
            proxy.refuse("Publish", "Throttling")
            proxy.break_down("ReceiveMessage", status=503)
            for code, status, call in (
                ("RequestThrottled", 403, lambda: sqs.send_message(QueueUrl=url, MessageBody="x")),
                ("Throttling", 400, lambda: sns.publish(TopicArn=topic, Message="x")),
                ("503", 503, lambda: sqs.receive_message(QueueUrl=url)),
            ):
                with pytest.raises(ClientError) as caught:
                    await call()
                assert caught.value.response["Error"]["Code"] == code
                assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
            await sns.publish(TopicArn=topic, Message="y")
            assert await bodies(sqs, url) == ["y"]

    asyncio.run(scenario())


def test_a_proxy_loses_an_answer(server: Server) -> None:
    """The request has reached the server although its connection broke; a request that is cut has not."""

    async def scenario() -> None:
        async with faulty(server.url) as proxy, behind(proxy) as (sqs, _):
            url = await new_queue(sqs)
            proxy.cut("SendMessage")
            with pytest.raises(ConnectionClosedError):
                await sqs.send_message(QueueUrl=url, MessageBody="cut")
            proxy.lose_answer("SendMessage")
            with pytest.raises(ConnectionClosedError):
                await sqs.send_message(QueueUrl=url, MessageBody="lost")
            assert await bodies(sqs, url) == ["lost"]

    asyncio.run(scenario())


def test_a_proxy_holds_a_request(server: Server) -> None:
    """A request that is held gets no answer, while others do."""

    async def scenario() -> None:
        async with faulty(server.url) as proxy, behind(proxy) as (sqs, _):
            url = await new_queue(sqs)
            proxy.hold("SendMessage")
            held = asyncio.create_task(sqs.send_message(QueueUrl=url, MessageBody="held"))
            await until(lambda: proxy.count("SendMessage") == 1)
            await sqs.send_message(QueueUrl=url, MessageBody="x")
            assert await bodies(sqs, url, 0) == ["x"]
            assert not held.done()
            proxy.heal()
            with pytest.raises(ConnectionClosedError):
                await held

    asyncio.run(scenario())


def test_a_proxy_fails_one_entry_of_sqs(server: Server) -> None:
    """Of a request with two entries, one is stored."""

    async def scenario() -> None:
        async with faulty(server.url) as proxy, behind(proxy) as (sqs, _):
            url = await new_queue(sqs)
            proxy.fail_entry("SendMessageBatch", lambda text: text == "bad", "InternalError")
            entries = [{"Id": text, "MessageBody": text} for text in ("good", "bad")]
            answer = await sqs.send_message_batch(QueueUrl=url, Entries=entries)
            assert [entry["Id"] for entry in answer["Successful"]] == ["good"]
            assert [(entry["Id"], entry["Code"], entry["SenderFault"]) for entry in answer["Failed"]] == [
                ("bad", "InternalError", False)
            ]
            assert await bodies(sqs, url) == ["good"]

    asyncio.run(scenario())


def test_a_proxy_fails_one_entry_of_sns(server: Server) -> None:
    """Of a request with two entries, one is stored."""

    async def scenario() -> None:
        async with faulty(server.url) as proxy, behind(proxy) as (sqs, sns):
            topic, url = await new_subscription(sqs, sns)
            proxy.fail_entry("PublishBatch", lambda text: text == "bad", "InternalError")
            entries = [{"Id": text, "Message": text} for text in ("bad", "good")]
            answer = await sns.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries)
            assert [entry["Id"] for entry in answer["Successful"]] == ["good"]
            assert [(entry["Id"], entry["Code"]) for entry in answer["Failed"]] == [("bad", "InternalError")]
            assert await bodies(sqs, url) == ["good"]

    asyncio.run(scenario())


def test_a_proxy_has_another_clock(server: Server) -> None:
    """Signatures of a machine whose clock is wrong are refused as AWS refuses them."""

    async def scenario() -> None:
        async with faulty(server.url) as proxy, behind(proxy) as (sqs, sns):
            proxy.skew = timedelta(hours=1)
            with pytest.raises(ClientError, match=r"InvalidSignatureException.*Signature expired"):
                await new_queue(sqs)
            proxy.skew = timedelta(hours=-1)
            with pytest.raises(ClientError, match=r"SignatureDoesNotMatch.*not yet current"):
                await sns.list_topics()
            proxy.heal()
            await new_queue(sqs)

    asyncio.run(scenario())
