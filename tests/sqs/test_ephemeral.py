"""Ephemeral subscriptions end with their receiver, or some time after their process was killed."""

from __future__ import annotations

import asyncio
import time

from events_core import EventMessage
from events_sqs.ephemeral import EXPIRES

from .console import Console
from .receiving import take
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
    url = (await console.sqs.create_queue(QueueName=queue, tags=tags))["QueueUrl"]
    told = await console.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    await console.sns.subscribe(
        TopicArn=console.topic_arn,
        Protocol="sqs",
        Endpoint=told["Attributes"]["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )


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
                assert (await take(receiver)).data == b"x"
            assert await queues(console) == []
            assert await console.subscriptions() == []

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_expired_queues_are_removed_by_other_clients(server: Server) -> None:
    """Q1: with their subscriptions; one that has not expired stays, and so does any other with a similar name."""

    async def scenario() -> None:
        console = Console(server)
        async with console, console.client(ephemeral_idle="3", create="all") as other:
            await other.ping()
            await leave_behind(console, "ephemeral-1", {EXPIRES: "1000"})
            await leave_behind(console, "ephemeral-2", {EXPIRES: str(int(time.time()) + 1000)})
            await leave_behind(console, "ephemeral-3", {})
            await leave_behind(console, "ephemeral-4", {EXPIRES: "soon"})
            await leave_behind(console, "plain", {EXPIRES: "1000"})
            while f"{console.topic}-ephemeral-1" in await queues(console):
                await asyncio.sleep(0.1)
            left = {console.topic + name for name in ("-s", "-ephemeral-2", "-ephemeral-3", "-ephemeral-4", "-plain")}
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


def test_an_ephemeral_queue_that_was_removed_is_created_again(server: Server) -> None:
    """Q1: its process was stopped for too long; from then on it receives again, and it leaves nothing behind."""

    async def scenario() -> None:
        console = Console(server)
        async with console, console.client(subscription="", create="subscription") as both:
            await console.sns.create_topic(Name=console.topic)
            async with both.subscribe():
                (queue,) = await queues(console)
                await console.delete_queue(queue)
                while await queues(console) != [queue]:
                    await asyncio.sleep(0.1)
                assert await expiry(console, queue) > time.time()
            assert await queues(console) == []
            assert await console.subscriptions() == []

    asyncio.run(asyncio.wait_for(scenario(), 120))
