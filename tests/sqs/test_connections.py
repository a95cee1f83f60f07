"""Connections break, answers are lost, and servers are silent, stop and come back."""

from __future__ import annotations

import asyncio

import pytest

from events_core import ErrorCode, EventConnectionError, EventMessage, PublishError

from ..receiving import PATIENCE, acknowledge_what_is_left, numbered, numbers, settle_data, take
from ..waiting import until
from .console import Console
from .disturbed import SENDS, disturbed, outcome
from .faults import FOREVER, faulty
from .server import Server


@pytest.mark.parametrize("ordering", ["false", "true"])
@pytest.mark.parametrize("topology", ["sns", "queue"])
def test_a_send_whose_answer_is_lost(server: Server, topology: str, ordering: str) -> None:
    """P7: it is sent again.  A FIFO topic or queue stores it once, by its deduplication id."""

    async def scenario() -> None:
        async with disturbed(Console(server, topology=topology, ordering=ordering)) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.lose_answer(operation)
            sent = await both.send_message(EventMessage(b"0", ordering_key="k" if ordering == "true" else None))
            first = await take(receiver)
            await receiver.acknowledge(first)
            if ordering == "true":
                assert first.message_id == sent
                assert await receiver.receive_message(1) is None
            elif first.message_id != sent:
                assert (await take(receiver)).message_id == sent

    asyncio.run(scenario())


def test_connections_are_cut_all_the_time(console: Console) -> None:
    """F1, P7, R9: every third request is cut before or after it has reached the server; every message comes."""

    async def scenario() -> None:
        async with disturbed(console, visibility_timeout="5") as (proxy, both, receiver):
            proxy.disturb(every=3)
            sending = asyncio.create_task(both.send_messages(numbered(200)))
            came: set[int] = set()
            async with asyncio.timeout(4 * PATIENCE):
                while len(came) < 200:
                    some = await receiver.receive_messages(50, 5)
                    came |= set(numbers(await acknowledge_what_is_left(receiver, some)))
            await sending

    asyncio.run(scenario())


def test_many_idle_receivers_leave_connections_to_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """C3, F1: a request does not wait until one of the long polls of many receivers has ended."""
    # Otherwise a poll would give up its connection within the patience of the ping.
    for bound in ("calls._ANSWER_TIME", "session._ANSWER_TIMEOUT"):
        monkeypatch.setattr(f"events_sqs.{bound}", 10 * PATIENCE)

    async def scenario() -> None:
        console = Console(server, topology="queue", subscription="", connect_timeout="60")
        async with console, faulty(server.url) as proxy, console.client(endpoint_url=proxy.url) as both:
            proxy.hold("ReceiveMessage", times=FOREVER)
            for _ in range(101):
                await both.subscribe(console.topic)
            await until(lambda: proxy.count("ReceiveMessage") >= 101)
            await both.ping(PATIENCE)
            await both.close(timeout=0)

    asyncio.run(scenario())


def test_a_send_to_a_silent_server_ends(console: Console) -> None:
    """P7: a send that gets no answer raises TIMEOUT after its ``send_timeout``."""

    async def scenario() -> None:
        async with disturbed(console, send_timeout="1") as (proxy, both, _):
            await both.ping(PATIENCE)
            for operation in SENDS:
                proxy.hold(operation, times=FOREVER)
            with pytest.raises(PublishError) as caught:
                await both.send_message(EventMessage(b"x"))
            assert outcome(caught.value) == (ErrorCode.TIMEOUT, True)

    asyncio.run(scenario())


def test_a_receiver_leaves_a_silent_connection(console: Console) -> None:
    """F1: when the answer to a long poll does not come in time, the receiver asks again."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            proxy.hold("ReceiveMessage")
            await both.send_message(EventMessage(b"x"))
            assert (await take(receiver, 2 * PATIENCE)).data == b"x"

    asyncio.run(scenario())


def test_closing_while_the_server_is_silent_ends(console: Console) -> None:
    """C2: ``close`` returns within its time although nobody answers."""

    async def scenario() -> None:
        async with faulty(console.server.url) as proxy:
            both = console.client(endpoint_url=proxy.url)
            receiver = await both.subscribe()
            await both.send_message(EventMessage(b"held"))
            await take(receiver)
            proxy.hold("", times=FOREVER)
            async with asyncio.timeout(PATIENCE):
                await both.close(timeout=2)

    asyncio.run(scenario())


def test_a_message_that_a_lost_answer_brought_comes_again(console: Console) -> None:
    """R9: the answer to a receive is lost; the message comes when its visibility timeout is over."""

    async def scenario() -> None:
        async with disturbed(console, visibility_timeout="2") as (proxy, both, receiver):
            proxy.lose_answer("ReceiveMessage", times=3)
            await both.send_message(EventMessage(b"x"))
            await settle_data(receiver, {b"x"})
            assert await console.messages() == 0

    asyncio.run(scenario())


def test_client_and_receiver_outlive_a_restart(own_server: Server) -> None:
    """F1: a server that stores its queues is stopped and started; what was sent meanwhile is stored, and comes."""
    if not own_server.keeps_messages:
        pytest.skip("this server keeps no messages")

    async def scenario() -> None:
        async with Console(own_server).client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            waiting = asyncio.create_task(take(receiver))
            await asyncio.to_thread(own_server.stop)
            sending = asyncio.create_task(both.send_message(EventMessage(b"during")))
            await until(lambda: not both.is_connected)
            await asyncio.to_thread(own_server.start)
            await sending
            assert (await waiting).data == b"during"
            await receiver.acknowledge(await waiting)
            await until(lambda: both.is_connected)

    asyncio.run(scenario())


def test_a_short_pause_of_the_server_is_no_outage(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """P7: a send waits for the server, and nothing is said."""
    console = Console(own_server)

    async def scenario() -> None:
        async with console.client() as sender:
            await sender.ping(PATIENCE)
            own_server.pause()
            sending = asyncio.create_task(sender.send_message(EventMessage(b"during")))
            await asyncio.wait([sending], timeout=1)
            assert not sending.done()
            own_server.resume()
            await sending

    asyncio.run(scenario())
    assert not [record for record in caplog.records if console.topic in record.getMessage()]


def test_an_unreachable_server_is_named(console: Console) -> None:
    """F1: connecting fails with the address and the reason."""

    async def scenario() -> None:
        async with console.client(endpoint_url="http://127.0.0.1:9", connect_timeout="10") as sender:
            with pytest.raises(EventConnectionError, match=r"127\.0\.0\.1:9"):
                await sender.ping(PATIENCE)

    asyncio.run(scenario())
