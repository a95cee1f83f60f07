"""The server is short of memory and blocks connections that publish."""

from __future__ import annotations

import asyncio
import logging

import pytest

from events_core import ErrorCode, EventMessage, EventRuntimeError, PublishError

from ..receiving import PATIENCE, take
from ..waiting import until
from ..warning import warnings
from .console import Console


def test_a_send_waits_while_the_server_is_short_of_memory(own: Console, caplog: pytest.LogCaptureFixture) -> None:
    """P6, V1: sends wait, one WARNING says why, and they go on when the alarm is over."""

    async def scenario() -> None:
        async with own.client() as sender:
            await sender.send_message(EventMessage(b"0"))
            await asyncio.to_thread(own.server.set_alarm)
            sending = [asyncio.create_task(sender.send_message(EventMessage(b"%d" % each))) for each in range(1, 10)]
            await until(lambda: bool(warnings(caplog)))
            sending += [asyncio.create_task(sender.send_message(EventMessage(b"late")))]
            await asyncio.wait(sending, timeout=1)
            assert not any(task.done() for task in sending)
            await asyncio.to_thread(own.server.clear_alarm)
            await asyncio.gather(*sending)

    own.declare_exchange()
    own.declare_queue()
    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    (told,) = warnings(caplog)
    assert own.server.address in told
    assert "memory" in told
    assert own.ready() == 11


def test_a_send_keeps_its_timeout_in_an_alarm(own: Console) -> None:
    """P7: a send that waits for the end of an alarm raises TIMEOUT when its time is up."""

    async def scenario() -> None:
        async with own.client(send_timeout="2") as sender:
            await sender.ping(timeout=PATIENCE)  # so that the time goes by in the alarm, and not while it connects
            await asyncio.to_thread(own.server.set_alarm)
            for _ in range(2):
                with pytest.raises(PublishError) as caught:
                    await sender.send_message(EventMessage(b"1"))
                assert caught.value.code is ErrorCode.TIMEOUT
                assert caught.value.retryable

    asyncio.run(scenario())


def test_an_alarm_does_not_stop_receivers(own: Console) -> None:
    """P6: while publishers wait, the receiver of the same client acknowledges: only that frees the memory."""

    async def scenario() -> None:
        async with own.client() as both, both.subscribe() as receiver:
            await both.send_messages([EventMessage(b"0"), EventMessage(b"1")])
            held = await take(receiver)
            await asyncio.to_thread(own.server.set_alarm)
            sending = asyncio.create_task(both.send_message(EventMessage(b"2")))
            await asyncio.wait([sending], timeout=1)
            assert not sending.done()
            await receiver.acknowledge(held)
            await receiver.acknowledge(await take(receiver))
            await until(lambda: unacknowledged(own) == 0)
            await asyncio.to_thread(own.server.clear_alarm)
            await sending

    asyncio.run(scenario())


def unacknowledged(own: Console) -> int:
    rows = own.server.listed("list_queues", "name", "messages_unacknowledged")
    return sum(row["messages_unacknowledged"] for row in rows if row["name"] == own.queue)


def test_a_client_closes_in_an_alarm(own: Console) -> None:
    """C2: ``close`` ends within its time, and the send that waits fails with CLOSED."""

    async def scenario() -> None:
        sender = own.client()
        await sender.send_message(EventMessage(b"0"))
        await asyncio.to_thread(own.server.set_alarm)
        sending = asyncio.create_task(sender.send_message(EventMessage(b"1")))
        await asyncio.wait([sending], timeout=1)
        async with asyncio.timeout(PATIENCE):
            await sender.close(timeout=2)
            with pytest.raises(EventRuntimeError) as caught:
                await sending
        assert caught.value.code is ErrorCode.CLOSED

    asyncio.run(scenario())


def test_a_client_that_has_sent_can_subscribe_in_an_alarm(own: Console) -> None:
    """P6: only a receiver can make room, so a client whose send waits can ping, subscribe and acknowledge."""

    async def scenario() -> None:
        async with own.client() as both:
            await both.send_message(EventMessage(b"0"))
            await asyncio.to_thread(own.server.set_alarm)
            sending = asyncio.create_task(both.send_message(EventMessage(b"1")))
            await asyncio.wait([sending], timeout=1)
            assert not sending.done()
            await both.ping(timeout=PATIENCE)
            async with both.subscribe() as receiver:
                await receiver.acknowledge(await take(receiver))
            await asyncio.to_thread(own.server.clear_alarm)
            await sending

    asyncio.run(scenario())
