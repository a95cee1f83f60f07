"""Topics, queues and subscriptions: what is found, created, refused and deleted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from events_core import ErrorCode, EventError, EventMessage, PublishError, ReceiveError
from events_sqs import SQSClient
from events_sqs.policy import policy

from ..receiving import PATIENCE, take
from .console import Console, add_redrive
from .faults import FOREVER, FaultyProxy, faulty
from .server import REGION, Server


@pytest.fixture(params=[None, "true"], ids=["standard", "fifo"])
def either(request: pytest.FixtureRequest, server: Server) -> Console:
    """Return a new SNS topic of each kind."""
    return Console(server, **({"ordering": request.param} if request.param else {}))


@pytest.fixture(params=[None, "true"], ids=["standard", "fifo"])
def bare(request: pytest.FixtureRequest, server: Server) -> Console:
    """Return a new queue of each kind."""
    return Console(server, topology="queue", **({"ordering": request.param} if request.param else {}))


async def refused(client: SQSClient, subscription: str | None, words: str) -> ErrorCode:
    """Subscribe in vain; check that the error has *words*, and return its code."""
    with pytest.raises(EventError, match=words) as caught:
        await client.subscribe(subscription)
    return ErrorCode(caught.value.code)


def test_everything_is_created_as_aws_wants_it(either: Console) -> None:
    """Q2: a queue with a policy for its topic only, and raw delivery; on FIFO, each group has a rate of its own."""

    async def scenario() -> None:
        async with either, either.client(retention="7200", max_message_bytes="100000") as both:
            await both.ping(PATIENCE)
            topic = (await either.sns.get_topic_attributes(TopicArn=either.topic_arn))["Attributes"]
            queue = await either.attributes()
            (link,) = await either.subscriptions()
            told = (await either.sns.get_subscription_attributes(SubscriptionArn=link["SubscriptionArn"]))["Attributes"]
        (statement,) = json.loads(queue["Policy"])["Statement"]
        assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": either.topic_arn}}
        assert (statement["Action"], statement["Resource"]) == ("sqs:SendMessage", queue["QueueArn"])
        assert (link["Endpoint"], told["RawMessageDelivery"]) == (queue["QueueArn"], "true")
        assert (queue["MessageRetentionPeriod"], queue["MaximumMessageSize"]) == ("7200", "100000")
        if either.is_fifo:
            assert (topic["FifoTopic"], queue["FifoQueue"]) == ("true", "true")
            assert (queue["DeduplicationScope"], queue["FifoThroughputLimit"]) == ("messageGroup", "perMessageGroupId")

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_configured_subscription_is_there_before_the_first_send(either: Console) -> None:
    """Q2: so a program that sends before it subscribes receives its own message."""

    async def scenario() -> None:
        async with either, either.client() as both:
            await both.send_message(EventMessage(b"x"))
            async with both.subscribe() as receiver:
                assert (await take(receiver)).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_many_clients_create_one_subscription(either: Console) -> None:
    """Q2: creating is safe to repeat, also at the same time."""

    async def scenario() -> None:
        async with either:
            clients = [either.client() for _ in range(5)]
            await asyncio.gather(*(client.ping(PATIENCE) for client in clients))
            assert len(await either.subscriptions()) == 1
            for client in clients:
                await client.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_missing_topic_is_not_found(either: Console) -> None:
    """Q2: with create=subscription too, and the error says what to do."""

    async def scenario() -> None:
        async with either, either.client(create="subscription") as careful:
            assert await refused(careful, "s", "set the option create") is ErrorCode.NOT_FOUND

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_missing_subscription_is_not_found(either: Console) -> None:
    """Q2: a queue that does not exist, and one that is not subscribed; create=subscription makes both."""

    async def scenario() -> None:
        async with either, either.client(subscription="") as owner:
            await owner.ping(PATIENCE)
            async with either.client(create="never") as careful:
                assert await refused(careful, None, either.queue) is ErrorCode.NOT_FOUND
                attributes = {"FifoQueue": "true"} if either.is_fifo else {}
                attributes["Policy"] = policy(f"arn:aws:sqs:{REGION}:000000000000:{either.queue}", either.topic_arn)
                await either.sqs.create_queue(QueueName=either.queue, Attributes=attributes)
                assert await refused(careful, None, "is not subscribed") is ErrorCode.NOT_FOUND
                async with either.client(create="subscription") as both:
                    await (await both.subscribe()).close()
                await (await careful.subscribe()).close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_subscription_that_wraps_messages_is_refused(console: Console) -> None:
    """Q2: without raw delivery, a message would not arrive as it was sent."""

    async def scenario() -> None:
        async with console, console.client() as both:
            await both.ping(PATIENCE)
            (link,) = await console.subscriptions()
            await console.sns.set_subscription_attributes(
                SubscriptionArn=link["SubscriptionArn"],
                AttributeName="RawMessageDelivery",
                AttributeValue="false",
            )
            assert await refused(both, "s", "RawMessageDelivery") is ErrorCode.INVALID

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_queue_into_which_sns_may_not_write_is_refused(strict_server: Server) -> None:
    """Q2: its receivers would wait in vain; with the statement that the error shows, messages arrive."""

    async def scenario() -> None:
        console = Console(strict_server)
        async with console, console.client(subscription="") as both:
            await both.ping(PATIENCE)
            url = (await console.sqs.create_queue(QueueName=console.queue))["QueueUrl"]
            with pytest.raises(EventError, match="add this statement") as caught:
                await both.subscribe("s")
            assert caught.value.code is ErrorCode.INVALID
            assert await console.subscriptions() == []
            text = str(caught.value)
            statement, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
            document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
            await console.sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": document})
            async with both.subscribe("s") as receiver:
                await both.send_message(EventMessage(b"x"))
                assert (await take(receiver)).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_policy_that_cannot_be_judged_is_warned_of(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """Q2: a condition that only AWS can check may hold, so the subscription is not refused."""

    async def scenario() -> None:
        async with console, console.client(subscription="") as both:
            await both.ping(PATIENCE)
            document = policy("*", console.topic_arn).replace("aws:SourceArn", "aws:SourceOrgID")
            await console.sqs.create_queue(QueueName=console.queue, Attributes={"Policy": document})
            await (await both.subscribe("s")).close()

    with caplog.at_level(logging.WARNING, "events_sqs"):
        asyncio.run(asyncio.wait_for(scenario(), 120))
    assert f"cannot be told whether queue {console.queue!r} lets" in caplog.text


def test_a_failed_creation_leaves_the_queue_of_another_client(console: Console) -> None:
    """Q2: if two clients create one subscription and one of them fails, the other keeps its queue and its messages."""

    async def scenario() -> None:
        async with console, console.client(subscription="") as owner, faulty(console.server.url) as proxy:
            await (await owner.subscribe("s")).close()
            await owner.send_message(EventMessage(b"x"))
            async with console.client(subscription="", endpoint_url=proxy.url) as other:
                await other.ping(PATIENCE)
                proxy.refuse("GetQueueUrl", "QueueDoesNotExist")  # as if the owner were a moment later
                proxy.refuse("Subscribe", "AuthorizationError", status=403)
                assert await refused(other, "s", "subscribe queue") is ErrorCode.PERMISSION_DENIED
            assert len(await console.subscriptions()) == 1
            async with owner.subscribe("s") as receiver:
                assert (await take(receiver)).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))


@asynccontextmanager
async def unsubscribable(console: Console) -> AsyncIterator[tuple[FaultyProxy, SQSClient]]:
    """Yield a client whose first queue cannot be subscribed, and the proxy that refuses it."""
    async with (
        faulty(console.server.url) as proxy,
        console.client(subscription="", endpoint_url=proxy.url) as both,
    ):
        await both.ping(PATIENCE)
        proxy.refuse("Subscribe", "AuthorizationError", status=403)
        yield proxy, both


@pytest.mark.parametrize("sees_links", [True, False])
def test_a_failed_creation_leaves_no_ephemeral_queue(console: Console, sees_links: bool) -> None:
    """Q1: nobody else can have its name; also if SNS refuses to tell whether the queue was subscribed."""

    async def scenario() -> None:
        async with console, unsubscribable(console) as (proxy, both):
            if not sees_links:
                proxy.refuse("ListSubscriptionsByTopic", "AuthorizationError", status=403, times=FOREVER)
            assert await refused(both, None, "subscribe queue") is ErrorCode.PERMISSION_DENIED
            assert proxy.count("CreateQueue") == 1
            found = await console.sqs.list_queues(QueueNamePrefix=console.topic)
            assert found.get("QueueUrls", []) == []

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_deleting_a_subscription_leaves_nothing(either: Console) -> None:
    """Q1: the queue is gone, and so is its subscription to the topic; the second time there is none."""

    async def scenario() -> None:
        async with either, either.client() as both:
            await both.ping(PATIENCE)
            await both.delete_subscription("s")
            assert not await either.has_queue()
            assert await either.subscriptions() == []
            with pytest.raises(ReceiveError) as caught:
                await both.delete_subscription("s")
            assert caught.value.code is ErrorCode.NOT_FOUND

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_subscription_of_another_topic_is_not_deleted(console: Console) -> None:
    """Q1: both topics may have the same name for the queue; there is none here, and the other topic keeps its own."""
    same = {"queue_name": "{subscription}", "subscription": console.topic}

    async def scenario() -> None:
        async with (
            console,
            console.client(**same) as owner,
            console.client(f"{console.topic}-other", **{**same, "subscription": ""}) as other,
            owner.subscribe() as receiver,
        ):
            with pytest.raises(ReceiveError, match="is not subscribed") as caught:
                await other.delete_subscription(console.topic)
            assert caught.value.code is ErrorCode.NOT_FOUND
            await owner.send_message(EventMessage(b"x"))
            assert (await take(receiver)).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_queue_that_was_never_subscribed_is_deleted(console: Console) -> None:
    """Q1: creating the subscription failed halfway; the policy of the queue says whose it is."""

    async def scenario() -> None:
        async with console, unsubscribable(console) as (_, both):
            assert await refused(both, "s", "subscribe queue") is ErrorCode.PERMISSION_DENIED
            assert await console.has_queue()
            await both.delete_subscription("s")
            assert not await console.has_queue()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_bare_queue_keeps_what_was_sent_before(bare: Console) -> None:
    """Q3: its topic and its only subscription are one."""

    async def scenario() -> None:
        async with bare, bare.client(subscription="") as sender:
            await sender.send_message(EventMessage(b"x"))
            async with bare.client(create="never") as both, both.subscribe() as receiver:
                assert (await take(receiver)).data == b"x"
            assert await bare.messages(bare.queue) == 1

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_bare_queue_has_one_subscription(bare: Console) -> None:
    """Q1: another name, and none, are UNSUPPORTED, and the error says which one there is."""

    async def scenario() -> None:
        async with bare, bare.client(subscription="") as both:
            for name in ("another", None):
                assert await refused(both, name, repr(bare.topic)) is ErrorCode.UNSUPPORTED

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_missing_bare_queue_is_not_found(bare: Console) -> None:
    """Q2: for sends and receivers."""

    async def scenario() -> None:
        async with bare, bare.client(create="never") as both:
            assert await refused(both, None, bare.queue) is ErrorCode.NOT_FOUND
            with pytest.raises(PublishError) as caught:
                await both.send_message(EventMessage(b"x"))
            assert caught.value.code is ErrorCode.NOT_FOUND

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_name_that_no_queue_has_is_refused(console: Console) -> None:
    """Q2: INVALID says what a name may have."""

    async def scenario() -> None:
        async with console, console.client() as both:
            for name in ("two words", "s" * 80):
                assert await refused(both, name, "1 to 80 letters") is ErrorCode.INVALID

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("topology", ["sns", "queue"])
def test_nothing_is_created_in_the_wrong_account(server: Server, topology: str) -> None:
    """Q2: AWS creates only in the account of the credentials, so another account_id is refused before that."""

    async def scenario() -> None:
        console = Console(server, topology=topology)
        async with console, console.client(account_id="111111111111") as both:
            with pytest.raises(EventError, match=r"'111111111111'.*'000000000000'") as caught:
                await both.ping(PATIENCE)
            assert caught.value.code is ErrorCode.INVALID
            topics = [each["TopicArn"] for each in (await console.sns.list_topics())["Topics"]]
            assert console.topic_arn not in topics
            assert not await console.has_queue()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_an_account_that_cannot_be_checked_is_believed(server: Server) -> None:
    """Q2: STS may be out of reach, and is then no reason to fail."""

    async def scenario() -> None:
        console = Console(server)
        async with (
            console,
            faulty(server.url) as proxy,
            console.client(account_id="000000000000", endpoint_url=proxy.url) as both,
        ):
            proxy.break_down("GetCallerIdentity", status=503, times=FOREVER)
            await both.ping(PATIENCE)
            assert await console.has_queue()
            assert proxy.count("GetCallerIdentity") == 1

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_what_exists_is_never_changed(console: Console) -> None:
    """Q2: a queue keeps its attributes, whatever the options of a client are."""

    async def scenario() -> None:
        async with console, console.client(retention="7200") as both:
            await both.ping(PATIENCE)
            before = await console.attributes()
            async with console.client(retention="3600", max_message_bytes="2000") as other:
                await (await other.subscribe()).close()
            after = await console.attributes()
            for name in ("MessageRetentionPeriod", "MaximumMessageSize", "Policy", "VisibilityTimeout"):
                assert before[name] == after[name]

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("matches", [True, False])
def test_a_redrive_policy_that_is_that_of_the_options_moves_letters(
    console: Console, matches: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """R12: then SQS moves them, and otherwise the library does, which logs each."""
    letters = f"{console.topic}-dead"
    options = {"dead_letter_topic": letters, "max_delivery_attempts": "2", "dead_letter_subscription": "kept"}

    async def scenario() -> None:
        async with console:
            async with console.client(**options) as owner:
                await (await owner.subscribe()).close()
            if matches:
                await add_redrive(console, f"{letters}-kept", 2)
            async with console.client(**options) as both, both.subscribe() as receiver:
                await both.send_message(EventMessage(b"x"))
                for _ in range(2):
                    await receiver.nack(await take(receiver), delay=0)
                async with console.client(letters, subscription="kept") as undertaker, undertaker.subscribe() as dead:
                    assert (await take(dead)).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert ("was moved to dead-letter topic" in caplog.text) is not matches


def test_run_native_gives_the_clients_of_aws(console: Console) -> None:
    """N1: those of SQS and SNS, and the message as SQS delivered it."""

    async def ask(services: Any) -> list[str]:
        answer = await services.sns.list_subscriptions_by_topic(TopicArn=console.topic_arn)
        return [link["Endpoint"] for link in answer["Subscriptions"]]

    async def scenario() -> None:
        async with console, console.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"x"))
            message = await take(receiver)
            assert both.native_message(message)["Body"] == "x"
            assert [arn.rpartition(":")[2] for arn in await both.run_native(ask)] == [console.queue]

    asyncio.run(asyncio.wait_for(scenario(), 120))
