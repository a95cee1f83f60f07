"""The server stops, dies or falls silent, and connections break."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import pika
import pytest

from events_core import ErrorCode, EventConnectionError, EventMessage, PublishError
from events_core.testing import TcpProxy

from ..receiving import PATIENCE, acknowledge_what_is_left, gather, numbered, numbers, settle_all, settle_data, take
from ..waiting import until
from ..warning import warnings
from .console import Console, client
from .server import Server


def test_client_and_receiver_outlive_a_stop(own: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1, V1: after an orderly stop and a start, both go on.  One WARNING tells of the outage."""
    asyncio.run(outlive(own, own.server.stop))
    assert len(warnings(caplog)) == 1, caplog.text


def test_client_and_receiver_outlive_a_kill(own: Console) -> None:
    """F1: after SIGKILL and a start, both go on."""
    asyncio.run(outlive(own, own.server.kill))


async def outlive(own: Console, end: Callable[[], None]) -> None:
    async with own.client() as both, both.subscribe() as receiver:
        await both.send_message(EventMessage(b"before"))
        await receiver.acknowledge(await take(receiver))
        waiting = asyncio.create_task(receiver.receive_message())  # no bound: the end and the start may take minutes
        await asyncio.to_thread(end)
        sending = asyncio.create_task(both.send_message(EventMessage(b"during")))
        await until(lambda: not both.is_connected)
        await asyncio.to_thread(own.server.start)
        await sending
        message = await asyncio.wait_for(waiting, PATIENCE)
        assert message is not None
        assert message.data == b"during"
        await receiver.acknowledge(message)
        assert both.is_connected
        assert receiver.stats.reconnects >= 1


def test_a_held_message_comes_again_after_a_kill(own: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F2, F3, R7: an acknowledgement during the outage ends when the message is there again; one WARNING is logged."""

    async def scenario() -> None:
        async with own.client() as both, both.subscribe() as receiver:
            identity = await both.send_message(EventMessage(b"held"))
            held = await take(receiver)
            await asyncio.to_thread(own.server.kill)
            await until(lambda: not both.is_connected)
            acknowledging = asyncio.create_task(acknowledge_what_is_left(receiver, [held]))
            await asyncio.wait([acknowledging], timeout=1)
            await asyncio.to_thread(own.server.start)
            if not await acknowledging:  # EXPIRED, so the message comes again as a new delivery
                again = await take(receiver)
                assert again.message_id == identity
                await receiver.acknowledge(again)
            assert await receiver.receive_message(0.5) is None
        assert own.ready() == 0

    asyncio.run(scenario())
    assert len(warnings(caplog)) == 1, caplog.text


def test_a_short_pause_of_the_server_is_no_outage(own: Console) -> None:
    """P7: a send waits for the server, and no connection is made anew."""

    async def scenario() -> None:
        async with own.client(heartbeat="60") as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            own.server.pause()
            sending = asyncio.create_task(both.send_message(EventMessage(b"during")))
            await asyncio.wait([sending], timeout=1)
            assert not sending.done()
            own.server.resume()
            await sending
            assert [message.data for message in await gather(receiver, 2)] == [b"before", b"during"]
            assert receiver.stats.reconnects == 0

    asyncio.run(scenario())


def test_a_server_that_falls_silent_is_left(own: Console) -> None:
    """F1: without a sign of life the connection is given up, and a new one is made when the server answers."""

    async def scenario() -> None:
        async with own.client(heartbeat="1") as both, both.subscribe() as receiver:
            # A busy machine may be silent for too long as well.  Then what was received expires, and comes again.
            await both.send_message(EventMessage(b"before"))
            await settle_data(receiver, {b"before"})
            own.server.pause()
            await until(lambda: not both.is_connected)
            own.server.resume()
            await both.send_message(EventMessage(b"after"))
            await settle_data(receiver, {b"after"})

    asyncio.run(scenario())


def test_a_receiver_whose_loop_stood_still_asks_the_server_first(console: Console) -> None:
    """F2: what is buffered may be with another receiver, because the server has heard nothing."""

    async def scenario() -> None:
        async with console.client(heartbeat="1") as both, both.subscribe() as receiver:
            await both.send_messages(numbered(3))
            await until(lambda: receiver.stats.buffered == 3)
            stands_still, may_go_on = threading.Event(), threading.Event()

            def stand_still() -> None:
                stands_still.set()
                may_go_on.wait(PATIENCE)

            both._home.wake(stand_still)
            try:
                await until(stands_still.is_set)
                await asyncio.sleep(1.5)  # longer than the heartbeat
                assert await receiver.receive_message(0) is None
            finally:
                may_go_on.set()
            await settle_data(receiver, {each.data for each in numbered(3)})

    asyncio.run(scenario())


def test_a_send_ends_while_the_server_is_silent(own: Console) -> None:
    """P7: the send raises TIMEOUT after its send_timeout, and may be tried again."""

    async def scenario() -> None:
        async with own.client(send_timeout="2") as sender:
            await sender.ping(timeout=PATIENCE)  # so that the time goes by in silence, and not while it connects
            own.server.pause()
            with pytest.raises(PublishError) as caught:
                await sender.send_message(EventMessage(b"during"))
            assert caught.value.code is ErrorCode.TIMEOUT
            assert caught.value.retryable

    asyncio.run(scenario())


def test_closing_while_the_server_is_silent_ends(own: Console) -> None:
    """C2: ``close`` returns within its time although nobody answers."""

    async def scenario() -> None:
        both = own.client()
        receiver = await both.subscribe()
        await both.send_message(EventMessage(b"held"))
        await take(receiver)
        own.server.pause()
        async with asyncio.timeout(PATIENCE):
            await both.close(timeout=2)

    asyncio.run(scenario())


def test_a_server_that_comes_late_is_found(own: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1, V1: a program may start before its server.  One WARNING names the address, and no password."""

    async def scenario() -> None:
        await asyncio.to_thread(own.server.stop)
        async with own.client(url=own.server.url_for(password="s3cret")) as both:
            subscribing = asyncio.create_task(both.subscribe())
            await until(lambda: bool(caplog.records))
            assert not subscribing.done()
            subscribing.cancel()
        async with own.client() as both:
            subscribing = asyncio.create_task(both.subscribe())
            await asyncio.wait([subscribing], timeout=0.5)
            await asyncio.to_thread(own.server.start)
            receiver = await subscribing
            await both.send_message(EventMessage(b"late"))
            assert (await take(receiver)).data == b"late"

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert own.server.address in caplog.text
    assert "s3cret" not in caplog.text


def test_an_unreachable_server_is_named() -> None:
    """F1: connecting fails with the address and the reason."""

    async def scenario() -> None:
        async with client("orders", url="amqp://guest:s3cret@127.0.0.1:9/") as sender:
            with pytest.raises(EventConnectionError, match=r"127\.0\.0\.1:9.*refused") as caught:
                await sender.ping(timeout=PATIENCE)
            assert "s3cret" not in str(caught.value)

    asyncio.run(scenario())


def test_a_batch_is_cut_in_the_middle(console: Console) -> None:
    """P1, P7: the connection breaks while a batch is on its way; the rest is sent again, and nothing is lost."""
    messages = numbered(1000, size=1000)

    async def scenario() -> None:
        with TcpProxy(console.server.address) as proxy:
            through = console.server.url_for(address=proxy.address)
            async with console.client() as receiving, receiving.subscribe() as receiver:
                async with console.client(url=through) as sender:
                    await sender.ping(timeout=PATIENCE)
                    with proxy.limit(300_000):
                        sending = asyncio.create_task(sender.send_messages(messages))
                        await until(lambda: proxy.sent > 200_000)
                        proxy.drop()
                    ids = await sending
                assert len(set(ids)) == len(messages)
                await settle_all(receiver, len(messages))

    asyncio.run(scenario())


def test_a_keyed_batch_that_is_cut_keeps_its_order(console: Console) -> None:
    """P4: what is sent again keeps the order of its key, apart from repetitions."""

    async def scenario() -> None:
        with TcpProxy(console.server.address) as proxy:
            through = console.server.url_for(address=proxy.address)
            async with console.client(ordering="true") as receiving, receiving.subscribe() as receiver:
                async with console.client(url=through, ordering="true") as sender:
                    await sender.ping(timeout=PATIENCE)
                    with proxy.limit(300_000):
                        sending = asyncio.create_task(sender.send_messages(numbered(1000, key="k", size=1000)))
                        await until(lambda: proxy.sent > 200_000)
                        proxy.drop()
                    await sending
                came = await settle_all(receiver, 1000)
                assert list(dict.fromkeys(came)) == list(range(1000))

    asyncio.run(scenario())


def test_confirms_that_are_lost_double_and_lose_nothing(console: Console) -> None:
    """P7: if the connection breaks before the confirm comes, the message is sent again, and is stored twice."""

    async def scenario() -> None:
        with TcpProxy(console.server.address) as proxy:
            through = console.server.url_for(address=proxy.address)
            async with console.client() as receiving, receiving.subscribe() as receiver:
                async with console.client(url=through) as sender:
                    await sender.send_message(EventMessage(b"before"))
                    await receiver.acknowledge(await take(receiver))
                    with proxy.lose_answers():
                        sending = asyncio.create_task(sender.send_message(EventMessage(b"twice")))
                        first = await take(receiver)
                        proxy.drop()  # here, so that the confirm cannot come after all
                    identity = await sending
                second = await take(receiver)
                assert first.data == second.data == b"twice"
                assert identity in (first.message_id, second.message_id)
                await receiver.acknowledge_messages([first, second])

    asyncio.run(scenario())


def test_a_receiver_that_is_cut_gets_the_rest(console: Console) -> None:
    """R9: the connection of a receiver breaks again and again while it works; every message comes."""

    async def scenario() -> None:
        with TcpProxy(console.server.address) as proxy:
            through = console.server.url_for(address=proxy.address)
            async with (
                console.client() as sender,
                console.client(url=through) as receiving,
                receiving.subscribe() as receiver,
            ):
                await sender.send_messages(numbered(2000, size=200))
                left = set(range(2000))
                while left:
                    some = await receiver.receive_messages(50, 60)
                    assert some, f"{len(left)} never came"
                    before = len(left) // 500
                    left -= set(numbers(await acknowledge_what_is_left(receiver, some)))
                    if len(left) // 500 < before:
                        proxy.drop()
                assert receiver.stats.reconnects >= 2

    asyncio.run(scenario())


def test_one_connection_that_an_administrator_closes_is_opened_again(own: Console) -> None:
    """F1: an administrator closes all connections; client and receiver go on."""

    async def scenario(server: Server) -> None:
        async with own.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            await asyncio.to_thread(server.command, "close_all_connections", "maintenance")
            await both.send_message(EventMessage(b"after"))
            assert (await take(receiver)).data == b"after"

    asyncio.run(scenario(own.server))


def test_a_receiver_whose_binding_was_lost_in_an_outage_is_bound_again(console: Console) -> None:
    """F1: a server that was killed may have lost a binding that it confirmed just before."""

    def is_bound() -> bool:
        try:
            console.publish(b"after")
        except pika.exceptions.UnroutableError:
            return False
        return True

    async def scenario() -> None:
        with TcpProxy(console.server.address) as proxy:
            through = console.server.url_for(address=proxy.address)
            async with console.client(url=through) as both, both.subscribe() as receiver:
                console.unbind_queue()
                assert not is_bound()
                proxy.drop()
                await until(is_bound)
                assert (await take(receiver)).data == b"after"

    asyncio.run(scenario())
