"""A topic or a queue is deleted, or a queue is purged, under a client."""

from __future__ import annotations

import asyncio
import logging

import pytest

from events_core import ErrorCode, EventMessage, PublishError, ReceiveError

from ..receiving import PATIENCE, acknowledge_what_is_left, numbered, numbers, settle_all, take, take_after
from .console import Console, add_redrive
from .disturbed import disturbed, outcome, sends
from .server import Server


def test_a_deleted_queue_is_created_again(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1, Q2: with create=all a receiver creates its queue again and goes on; a log record says so."""

    async def scenario() -> None:
        async with console, console.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            await console.delete_queue()
            while not await console.has_queue():
                await asyncio.sleep(0.05)
            # The queue is there a moment before it is subscribed again.
            while not await console.subscriptions():
                await asyncio.sleep(0.05)
            await both.send_message(EventMessage(b"after"))
            assert (await take(receiver)).data == b"after"

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(scenario(), 120))
    assert f"{console.subscription!r} was deleted and has been created again" in caplog.text


@pytest.mark.parametrize(("code", "status"), [("Throttling", 400), ("AuthorizationError", 403)])
def test_a_queue_that_was_created_again_is_subscribed_in_the_end(console: Console, code: str, status: int) -> None:
    """F1: also if that failed at first; nothing says NOT_FOUND then, because the queue exists."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            (link,) = await console.subscriptions()
            await console.sns.unsubscribe(SubscriptionArn=link["SubscriptionArn"])
            proxy.refuse("Subscribe", code, status=status)
            await console.delete_queue()
            taking = asyncio.create_task(take_after(receiver, ErrorCode.NOT_FOUND))
            while not await console.subscriptions():
                await asyncio.sleep(0.05)
            await both.send_message(EventMessage(b"x"))
            assert (await taking).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_deleted_queue_is_told_where_nothing_may_be_created(console: Console) -> None:
    """F1: with create=never the receive raises NOT_FOUND and names the queue."""

    async def scenario() -> None:
        async with console, console.client() as owner:
            await (await owner.subscribe()).close()
            async with console.client(create="never") as both, both.subscribe() as receiver:
                await both.send_message(EventMessage(b"before"))
                await receiver.acknowledge(await take(receiver))
                await console.delete_queue()
                with pytest.raises(ReceiveError, match=console.subscription) as caught:
                    await receiver.receive_message(PATIENCE)
                assert caught.value.code is ErrorCode.NOT_FOUND

    asyncio.run(scenario())


def test_a_queue_that_redrives_is_not_created_again(console: Console) -> None:
    """F1, R12: a new one would have no redrive policy, and the receiver leaves letters to that."""
    letters = f"{console.topic}-dead"
    options = {"dead_letter_topic": letters, "max_delivery_attempts": "2", "dead_letter_subscription": "kept"}

    async def scenario() -> None:
        async with console:
            async with console.client(**options) as owner:
                await (await owner.subscribe()).close()
            await add_redrive(console, f"{letters}-kept", 2)
            async with console.client(**options) as both, both.subscribe() as receiver:
                await console.delete_queue()
                with pytest.raises(ReceiveError, match=console.subscription) as caught:
                    await receiver.receive_message(PATIENCE)
                assert caught.value.code is ErrorCode.NOT_FOUND
                assert not await console.has_queue()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_bare_queue_is_a_topic(server: Server) -> None:
    """F1, Q2: with topology=queue and create=subscription, a receiver does not create its queue again either."""

    async def scenario() -> None:
        console = Console(server, topology="queue")
        async with console, console.client() as owner:
            await owner.ping(PATIENCE)
            async with console.client(create="subscription") as both, both.subscribe() as receiver:
                await console.delete_queue()
                with pytest.raises(ReceiveError) as caught:
                    await receiver.receive_message(PATIENCE)
                assert caught.value.code is ErrorCode.NOT_FOUND
                assert not await console.has_queue()

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.usefixtures("patient_release")
def test_a_topic_that_is_created_again_has_its_queues(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1: nothing that is sent at the same time is lost to the receivers of the client; a log record says so."""

    async def scenario() -> None:
        async with console, console.client(subscription="") as both, both.subscribe("named") as named:
            async with both.subscribe() as ephemeral:
                await console.sns.delete_topic(TopicArn=console.topic_arn)
                await asyncio.gather(*map(both.send_message, numbered(50)))
                for receiver in (named, ephemeral):
                    assert sorted(await settle_all(receiver, 50)) == list(range(50))
                assert len(await console.subscriptions()) == 2
                await ephemeral.close(timeout=2 * PATIENCE)
            assert len(await console.subscriptions()) == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(scenario(), 120))
    # Several sends may create the topic at the same time, so there may be several records.
    assert "was deleted and has been created again" in caplog.text


def test_a_topic_is_created_again_when_nothing_is_on_its_way_there(console: Console) -> None:
    """F1: otherwise a message might come to the new topic before its queues are subscribed, and get lost."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await console.sns.delete_topic(TopicArn=console.topic_arn)
            proxy.overtake("PublishBatch", by="CreateTopic")
            late = asyncio.create_task(both.send_message(EventMessage(b"0")))
            while not sends(proxy):
                await asyncio.sleep(0.01)
            await asyncio.gather(late, both.send_message(EventMessage(b"1")))
            assert sorted(await settle_all(receiver, 2)) == [0, 1]

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_topic_that_is_created_again_has_the_configured_subscription(console: Console) -> None:
    """F1: also while it has no receiver."""

    async def scenario() -> None:
        async with console, console.client() as both:
            await both.ping(PATIENCE)
            await console.sns.delete_topic(TopicArn=console.topic_arn)
            await both.send_message(EventMessage(b"x"))
            async with both.subscribe() as receiver:
                assert (await take(receiver)).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_nothing_is_sent_to_a_topic_whose_queues_are_missing(console: Console) -> None:
    """F1: if the queues cannot be subscribed again, the send fails, and the next one subscribes them first."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await console.sns.delete_topic(TopicArn=console.topic_arn)
            proxy.refuse("Subscribe", "AuthorizationError", status=403)
            with pytest.raises(PublishError) as caught:
                await both.send_message(EventMessage(b"x"))
            assert outcome(caught.value) == (ErrorCode.PERMISSION_DENIED, False)
            await both.send_message(EventMessage(b"y"))
            assert (await take(receiver)).data == b"y"

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_deleted_topic_is_created_again_for_a_receiver(console: Console) -> None:
    """F1, Q2: with create=all, a receiver whose queue was deleted with its topic creates both again."""

    async def scenario() -> None:
        async with console, console.client() as both, both.subscribe() as receiver:
            await console.sns.delete_topic(TopicArn=console.topic_arn)
            await console.delete_queue()
            while not await console.has_queue():  # it is created after its topic
                await asyncio.sleep(0.05)
            while not await console.subscriptions():
                await asyncio.sleep(0.05)
            await both.send_message(EventMessage(b"x"))
            assert (await take(receiver)).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("had_queue", [True, False])
def test_a_letter_is_kept_when_its_topic_was_deleted(console: Console, had_queue: bool) -> None:
    """R12: the dead-letter topic is created again with the queue of the letters, also if that was there before."""
    letters = f"{console.topic}-dead"
    options = {"dead_letter_topic": letters, "max_delivery_attempts": "2", "dead_letter_subscription": "kept"}

    async def scenario() -> None:
        async with console, console.client(**options) as first, console.client(**options) as both:
            if had_queue:
                await (await first.subscribe()).close()
            receiver = await both.subscribe()
            await both.send_message(EventMessage(b"x"))
            message = await take(receiver)
            await console.sns.delete_topic(TopicArn=f"{console.topic_arn}-dead")
            await receiver.reject(message, reason="the test wants a letter")
            assert await console.messages(f"{letters}-kept") == 1

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_letter_waits_for_the_queue_of_a_topic_that_is_created_again(console: Console) -> None:
    """R12: another receiver that joins meanwhile has created the topic, and not yet subscribed the queue."""
    letters = f"{console.topic}-dead"
    options = {"dead_letter_topic": letters, "max_delivery_attempts": "2", "dead_letter_subscription": "kept"}

    async def scenario() -> None:
        async with disturbed(console, **options) as (proxy, both, receiver):
            await both.send_message(EventMessage(b"x"))
            message = await take(receiver)
            await console.sns.delete_topic(TopicArn=f"{console.topic_arn}-dead")
            proxy.overtake("Subscribe", by="PublishBatch")
            before = proxy.count("Subscribe")
            other = asyncio.ensure_future(both.subscribe())
            while proxy.count("Subscribe") == before:
                await asyncio.sleep(0.01)
            await receiver.reject(message, reason="the test wants a letter")
            await (await other).close()
            assert await console.messages(f"{letters}-kept") == 1

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_held_message_of_a_deleted_queue(console: Console) -> None:
    """F2: settling a delivery of a queue that was deleted says EXPIRED or does nothing, and the receiver goes on."""

    async def scenario() -> None:
        async with console, console.client(ack_timeout="10") as both, both.subscribe() as receiver:
            await both.send_messages(numbered(2))
            held = [await take(receiver) for _ in range(2)]
            await console.delete_queue()
            while not (await console.has_queue() and await console.subscriptions()):
                await asyncio.sleep(0.05)
            await both.send_message(EventMessage(b"7"))
            fresh = await take(receiver)
            assert numbers([fresh]) == [7]
            await receiver.nack(held[0])
            (error,) = await asyncio.gather(receiver.acknowledge(held[1]), return_exceptions=True)
            assert error is None or outcome(error)[0] is ErrorCode.EXPIRED
            await receiver.acknowledge(fresh)
            assert await console.messages() == 0

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("ordering", ["false", "true"])
def test_a_purged_queue(server: Server, ordering: str) -> None:
    """R9, S3: after a purge, settling a held message says EXPIRED or does nothing, and later messages come."""

    async def scenario() -> None:
        console = Console(server, ordering=ordering)
        async with console, console.client() as both, both.subscribe() as receiver:
            await both.send_messages(numbered(20))
            held = [await take(receiver) for _ in range(2)]
            await console.purge()
            (error,) = await asyncio.gather(receiver.acknowledge(held[0]), return_exceptions=True)
            assert error is None or outcome(error)[0] is ErrorCode.EXPIRED
            await receiver.nack(held[1])
            await both.send_message(EventMessage(b"99"))
            last = None
            while last != 99:
                message = await take(receiver)  # those that were fetched before the purge come too
                await acknowledge_what_is_left(receiver, [message])
                (last,) = numbers([message])
            assert await console.messages() == 0

    asyncio.run(asyncio.wait_for(scenario(), 120))
