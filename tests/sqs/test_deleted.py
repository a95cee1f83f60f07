"""A queue is deleted or purged under a receiver."""

from __future__ import annotations

import asyncio
import logging

import pytest

from events_core import ErrorCode, EventMessage, ReceiveError

from .console import Console
from .disturbed import outcome
from .receiving import PATIENCE, acknowledge_what_is_left, numbered, numbers, take
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
