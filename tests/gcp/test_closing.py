"""Closing a receiver: while the connection is silent, while it is full, and while messages are on their way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from google.pubsub_v1 import types

from events_core import EventMessage, EventRuntimeError
from events_core.engine import client as engine_client
from events_core.engine import closing, receiver
from events_core.testing import TcpProxy
from events_gcp import stream
from events_gcp.api import Pulled
from events_gcp.pull_pace import PullPace
from events_gcp.pulls import Pulls

from .broker import Broker
from .console import client
from .faults import FaultyServer, serving
from .waiting import PATIENCE, until


def test_what_grpc_learns_after_a_close_disturbs_no_other_loop(caplog: pytest.LogCaptureFixture) -> None:
    """C2: requests on a silent connection end when it answers again, after their loop has been closed."""
    server = FaultyServer()

    async def scenario() -> None:
        async with serving(server):
            with TcpProxy(server.address) as proxy:
                await close_while_silent(proxy)
                async with client(emulator_host=proxy.address, create="never") as later:
                    receiver = await later.subscribe("billing")
                    await until(lambda: len(server.streams) >= 2)
                    await receiver.close()

    async def close_while_silent(proxy: TcpProxy) -> None:
        closing = client(emulator_host=proxy.address, create="never")
        receiver = await closing.subscribe("billing")
        assert await receiver.receive_message(PATIENCE)
        publish = closing._driver.publish
        asked: list[Sequence[EventMessage]] = []

        async def note_and_publish(messages: Sequence[EventMessage]) -> Any:
            asked.append(messages)
            return await publish(messages)

        closing._driver.publish = note_and_publish  # type: ignore[method-assign]
        with proxy.silence():
            large = EventMessage(bytes(5_000_000))  # more than the buffers between here and there hold
            sends = [asyncio.create_task(closing.send_message(large)) for _ in range(4)]
            await until(lambda: bool(asked))
            await closing._home.run(asyncio.sleep(0.1))  # gRPC begins to write
            await closing.close(timeout=0)
            for send in sends:
                with pytest.raises(EventRuntimeError):
                    await send

    asyncio.run(asyncio.wait_for(scenario(), 300))
    assert "Event loop is closed" not in caplog.text


def test_a_full_receiver_that_closes_takes_no_more() -> None:
    """C1: the receiver holds all that it may and closes; what it acknowledges makes no room for others."""

    async def scenario() -> None:
        async with serving(Broker()) as broker:
            subscription = broker.subscription("billing", "orders", grace=PATIENCE)
            options = {"create": "never", "max_outstanding_messages": "1"}
            async with client(emulator_host=broker.address, **options) as both:
                receiver = await both.subscribe("billing")
                await both.send_message(EventMessage(b"0"))
                held = await receiver.receive_message(PATIENCE)
                assert held is not None
                closing = asyncio.create_task(receiver.close(timeout=600))
                await until(lambda: not broker.streaming)
                later = await both.send_message(EventMessage(b"1"))
                await receiver.acknowledge(held)
                await closing
                assert [message.message_id for message in subscription.waiting] == [later]
                assert (later, 0) not in broker.modified

    asyncio.run(asyncio.wait_for(scenario(), 300))


class Lingering(FaultyServer):
    """A server that sends one message when the client has closed its half of a stream, and does not end the stream."""

    async def stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.streams.append([await anext(requests)])
        async for request in requests:
            self.streams[-1].append(request)
        response = types.StreamingPullResponse.pb()()
        response.received_messages.add(ack_id="late", message={"message_id": "0", "data": b"0"})
        yield response
        await asyncio.Event().wait()


def test_a_stream_that_ends_late_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """C1: the receiver waits for the end of a stream, in vain, and gives back what came meanwhile."""
    for module in (engine_client, closing, receiver):
        monkeypatch.setattr(module, "SHORTEST_CLOSE", 2 * PATIENCE)
    monkeypatch.setattr(stream, "DRAIN_TIMEOUT", 3.0)  # more than the engine lets a cancelled fetch go on
    server = Lingering()

    async def scenario() -> None:
        async with serving(server), client(emulator_host=server.address, create="never") as both:
            receiver = await both.subscribe("billing")
            await until(lambda: bool(server.streams))
            await receiver.close(timeout=0)
            assert server.returned == ["late"]

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_a_pull_does_not_outlive_a_close_without_time() -> None:
    """C3: if the wait for the answer of a pull is cancelled, so is the pull."""

    async def scenario() -> None:
        pulling: asyncio.Future[Pulled] = asyncio.get_running_loop().create_future()

        async def pull(limit: int, timeout: float) -> Pulled:
            return await pulling

        pulls = Pulls(pull, PullPace(), "billing")
        pulls.reading(1)
        finishing = asyncio.ensure_future(pulls.finish([]))
        await asyncio.sleep(0.1)
        finishing.cancel()
        await asyncio.wait([finishing])
        assert pulling.cancelled()

    asyncio.run(scenario())
