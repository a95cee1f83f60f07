"""Ephemeral subscriptions end with their receiver, or some time after their process was killed."""

from __future__ import annotations

import asyncio
import secrets
import time

import pytest

from events_core import EventMessage
from events_sqs import SQSOptions
from events_sqs.driver import SQSDriver
from events_sqs.ephemeral import EXPIRES, TOPIC, EphemeralQueues

from ..receiving import PATIENCE, take
from ..waiting import until
from .console import Console
from .faults import FOREVER, FaultyProxy, faulty
from .server import Server


async def queues(console: Console) -> list[str]:
    """Return the names of the queues of the topic."""
    answer = await console.sqs.list_queues(QueueNamePrefix=f"{console.topic}-")
    return [url.rpartition("/")[2] for url in answer.get("QueueUrls", [])]


async def expiry(console: Console, queue: str) -> int:
    tags = (await console.sqs.list_queue_tags(QueueUrl=await console.url(queue)))["Tags"]
    return int(tags[EXPIRES])


async def leave_behind(console: Console, name: str, tags: dict[str, str]) -> None:
    """Create a queue that is subscribed to the topic, as a killed process leaves it."""
    queue = f"{console.topic}-{name}"
    url = (await console.sqs.create_queue(QueueName=queue))["QueueUrl"]
    told = await console.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    await console.sns.subscribe(
        TopicArn=console.topic_arn,
        Protocol="sqs",
        Endpoint=told["Attributes"]["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )
    # Last: from now on another client may remove it.
    await console.sqs.tag_queue(QueueUrl=url, Tags=tags)


async def another_round(proxy: FaultyProxy) -> None:
    """Return when the client behind *proxy* has looked at all queues once more."""
    rounds = proxy.count("ListQueues")
    await until(lambda: proxy.count("ListQueues") >= rounds + 2)  # the second one begins when the first one has ended


@pytest.mark.usefixtures("patient_release")
def test_an_ephemeral_subscription_ends_with_its_receiver(server: Server) -> None:
    """Q1: its queue has a tag with the time at which it expires; both the queue and its subscription are deleted."""

    async def scenario() -> None:
        console = Console(server)
        async with console, console.client(subscription="", ephemeral_idle="1000") as both:
            began = time.time()
            async with both.subscribe() as receiver:
                (queue,) = await queues(console)
                assert queue == f"{console.topic}-{receiver.subscription}"
                assert began + 999 <= await expiry(console, queue) <= time.time() + 1000
                assert len(await console.subscriptions()) == 1
                await both.send_message(EventMessage(b"x"))
                message = await take(receiver)
                assert message.data == b"x"
                await receiver.acknowledge(message)
                await receiver.close(timeout=2 * PATIENCE)
            assert await queues(console) == []
            assert await console.subscriptions() == []

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize("is_closed", [True, False])
def test_an_ephemeral_queue_that_could_not_be_deleted_is_deleted_later(
    server: Server, is_cut: bool, is_closed: bool
) -> None:
    """Q1: leaving the block of a receiver has little time; the next maintenance deletes it, and so does the close."""

    async def scenario() -> None:
        console = Console(server, subscription="")
        async with console, faulty(server.url) as proxy:
            # Without the engine, which gives each close a bounded time.
            driver = console.client(endpoint_url=proxy.url)._driver
            await driver.open()
            source = await driver.subscribe(None, lambda: None)
            if is_cut:
                proxy.hold("Unsubscribe")
            else:
                proxy.refuse("Unsubscribe", "Throttling")
            closing = asyncio.create_task(source.close())
            if is_cut:
                await until(lambda: proxy.count("Unsubscribe") > 0)
                closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            assert len(await queues(console)) == 1
            if not is_closed:
                await driver.maintain()
                assert await queues(console) == []
            await driver.close()
            assert await queues(console) == []
            assert await console.subscriptions() == []

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_expired_queues_are_removed_by_other_clients(server: Server) -> None:
    """Q1: with their subscriptions; one that has not expired stays, and so does any other with a similar name."""

    async def scenario() -> None:
        console = Console(server)
        async with console, console.client(ephemeral_idle="3", create="all") as other:
            await other.ping(PATIENCE)
            mine = {TOPIC: console.topic}
            await leave_behind(console, f"ephemeral-{1:016}", mine | {EXPIRES: "1000"})
            await leave_behind(console, f"ephemeral-{2:016}", mine | {EXPIRES: str(int(time.time()) + 1000)})
            await leave_behind(console, f"ephemeral-{3:016}", mine)
            await leave_behind(console, f"ephemeral-{4:016}", mine | {EXPIRES: "soon"})
            await leave_behind(console, "plain", mine | {EXPIRES: "1000"})
            while f"{console.topic}-ephemeral-{1:016}" in await queues(console):
                await asyncio.sleep(0.1)
            others = [f"-ephemeral-{number:016}" for number in (2, 3, 4)]
            left = {console.topic + name for name in ("-s", *others, "-plain")}
            assert {*await queues(console)} == left
            endpoints = {link["Endpoint"].rpartition(":")[2] for link in await console.subscriptions()}
            assert endpoints == left

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_live_subscription_is_renewed(server: Server) -> None:
    """Q1: its client moves the time at which it expires, however long it lives."""

    async def scenario() -> None:
        console = Console(server)
        async with console, console.client(subscription="", ephemeral_idle="3") as both, both.subscribe():
            (queue,) = await queues(console)
            first = await expiry(console, queue)
            while await expiry(console, queue) < first + 4:
                await asyncio.sleep(0.1)
            assert await queues(console) == [queue]

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_one_queue_that_is_gone_lets_the_others_live(server: Server) -> None:
    """Q1: the others are renewed, although the receiver of the first one does not ask for its queue now."""

    async def scenario() -> None:
        console = Console(server)
        options = {"subscription": "", "ephemeral_idle": "3", "max_outstanding_messages": "1"}
        async with console, console.client(**options) as both, both.subscribe() as full:
            (gone,) = await queues(console)
            await both.send_message(EventMessage(b"x"))
            await take(full)  # there is no room for another one, so nothing is asked of the queue
            async with both.subscribe():
                (queue,) = {*await queues(console)} - {gone}
                first = await expiry(console, queue)
                await asyncio.sleep(1.5)  # the last request of the first receiver has ended
                await console.delete_queue(gone)
                while await expiry(console, queue) < first + 4:
                    await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_queue_of_a_topic_with_a_longer_name_is_left_alone(server: Server) -> None:
    """Q1: it would leave its subscription behind, which belongs to the other topic."""

    async def scenario() -> None:
        console = Console(server)
        template = "{subscription}-{topic}"
        async with (
            console,
            faulty(server.url) as proxy,
            console.client(ephemeral_idle="3", queue_name=template, endpoint_url=proxy.url) as other,
        ):
            await other.ping(PATIENCE)
            names = [f"ephemeral-{'1' * 16}-{console.topic}", f"ephemeral-{'2' * 16}-big-{console.topic}"]
            for name in names:
                await console.sqs.create_queue(QueueName=name, tags={EXPIRES: "1000", TOPIC: console.topic})
            while names[0] in await named(console, "ephemeral-1111"):
                await asyncio.sleep(0.1)
            await another_round(proxy)
            assert names[1] in await named(console, "ephemeral-2222")

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_queue_of_another_topic_with_the_same_pattern_is_left_alone(server: Server) -> None:
    """Q1: with queue_name={subscription}, only the tag tells whose it is; without it, the subscription would stay."""

    async def scenario() -> None:
        console = Console(server)
        options = {"ephemeral_idle": "3", "subscription": "", "queue_name": "{subscription}"}
        async with console, faulty(server.url) as proxy, console.client(**options, endpoint_url=proxy.url) as other:
            await other.ping(PATIENCE)
            async with other.subscribe() as receiver:
                made = (await console.sqs.list_queue_tags(QueueUrl=await console.url(receiver.subscription)))["Tags"]
                assert made[TOPIC] == console.topic
            mine, foreign, untagged = (f"ephemeral-{secrets.token_hex(8)}" for _ in range(3))
            await console.sqs.create_queue(QueueName=foreign, tags={EXPIRES: "1000", TOPIC: "another"})
            await console.sqs.create_queue(QueueName=untagged, tags={EXPIRES: "1000"})
            await console.sqs.create_queue(QueueName=mine, tags={EXPIRES: "1000", TOPIC: console.topic})
            while await console.has_queue(mine):
                await asyncio.sleep(0.1)
            await another_round(proxy)
            for queue in (foreign, untagged):
                assert await console.has_queue(queue)
                await console.delete_queue(queue)

    asyncio.run(asyncio.wait_for(scenario(), 120))


async def named(console: Console, start: str) -> list[str]:
    answer = await console.sqs.list_queues(QueueNamePrefix=start)
    return [url.rpartition("/")[2] for url in answer.get("QueueUrls", [])]


@pytest.mark.usefixtures("patient_release")
def test_an_ephemeral_queue_that_was_removed_is_created_again(server: Server) -> None:
    """Q1: its process was stopped for too long; from then on it receives again, and it leaves nothing behind."""

    async def scenario() -> None:
        console = Console(server)
        async with console, console.client(subscription="", create="subscription") as both:
            await console.sns.create_topic(Name=console.topic)
            async with both.subscribe() as receiver:
                (queue,) = await queues(console)
                await console.delete_queue(queue)
                while await queues(console) != [queue]:
                    await asyncio.sleep(0.1)
                assert await expiry(console, queue) > time.time()
                await receiver.close(timeout=2 * PATIENCE)
            assert await queues(console) == []
            assert await console.subscriptions() == []

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_round_asks_for_the_tags_of_few_queues(server: Server) -> None:
    """Q1: 50 of them, by chance.  So 1,000 clients do not ask for 1,000 tags each, and an expired queue is found."""

    async def scenario() -> None:
        console = Console(server)
        async with (
            console,
            faulty(server.url) as proxy,
            console.client(ephemeral_idle="4", endpoint_url=proxy.url) as other,
        ):
            await other.ping(PATIENCE)
            for number in range(1, 70):
                tags = {EXPIRES: str(int(time.time()) + 1000)}
                await console.sqs.create_queue(QueueName=f"{console.topic}-ephemeral-{number:016}", tags=tags)
            expired = f"{console.topic}-ephemeral-{0:016}"
            await console.sqs.create_queue(QueueName=expired, tags={EXPIRES: "1000", TOPIC: console.topic})
            while await console.has_queue(expired):
                await asyncio.sleep(0.1)
            rounds = proxy.count("ListQueues")
            await until(lambda: proxy.count("ListQueues") > rounds)
            asked = "".join({"ListQueues": " ", "ListQueueTags": "."}.get(call.operation, "") for call in proxy.calls)
            assert max(map(len, asked.split())) == 50

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_queue_is_renewed_twice_before_it_expires() -> None:
    """Q1: so one renewal may fail; the engine waits for up to one and a half times the interval."""
    driver = SQSDriver("orders", "", SQSOptions(region="us-east-1", ephemeral_idle=1000.0))
    assert driver.maintenance_interval is not None
    assert 2 * 1.5 * driver.maintenance_interval < 1000


def test_a_named_queue_of_a_topic_that_is_called_ephemeral_lasts() -> None:
    """R12: so letters that it gets are kept."""
    assert EphemeralQueues.is_ephemeral("ephemeral-orders-ephemeral-0123456789abcdef")
    assert not EphemeralQueues.is_ephemeral("ephemeral-orders-billing")
    assert not EphemeralQueues.is_ephemeral("ephemeral-orders-ephemeral-billing")


def test_a_round_that_is_forbidden_is_not_repeated(console: Console) -> None:
    """Q1: a client that may not list queues asks once, and renews its own queue as before."""

    async def scenario() -> None:
        async with console, faulty(console.server.url) as proxy:
            # Already here: the first round may begin while the client subscribes.
            proxy.refuse("ListQueues", "AccessDenied", status=403, times=FOREVER)
            options = {"subscription": "", "ephemeral_idle": "3", "endpoint_url": proxy.url}
            async with console.client(**options) as both, both.subscribe():
                await until(lambda: proxy.count("ListQueues") > 0)
                renewed = proxy.count("TagQueue")
                await until(lambda: proxy.count("TagQueue") > renewed + 2)
                assert proxy.count("ListQueues") == 1

    asyncio.run(asyncio.wait_for(scenario(), 120))
