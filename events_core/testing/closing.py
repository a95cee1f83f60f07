"""C1 to C3: closing receivers and clients."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from events_core import ErrorCode, EventClient, EventMessage, EventReceiver, EventRuntimeError, ReceivedMessage
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Closing"]


async def _assert_closed(*calls: Callable[[], Awaitable[object]]) -> None:
    for call in calls:
        with pytest.raises(EventRuntimeError) as caught:
            await call()
        assert caught.value.code is ErrorCode.CLOSED


def _client_calls(client: EventClient) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: client.send_message(EventMessage(b"x")),
        lambda: client.send_messages([EventMessage(b"x")]),
        lambda: client.subscribe(),
        lambda: client.delete_subscription("any"),
        lambda: client.ping(),
    ]


def _receiver_calls(receiver: EventReceiver, message: ReceivedMessage) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: receiver.receive_message(0),
        lambda: receiver.receive_messages(1),
        lambda: receiver.acknowledge(message),
        lambda: receiver.acknowledge_messages([message.message_id]),
        lambda: receiver.nack(message),
        lambda: receiver.nack_messages([message]),
    ]


def _threads() -> Counter[str]:
    return Counter(thread.name for thread in threading.enumerate())


def _open_files() -> int:
    # Only Linux has this directory.  Elsewhere the test looks at threads alone.
    files = Path("/proc/self/fd")
    return len(os.listdir(files)) if files.exists() else 0


class Closing:
    """Messages and calls when a receiver or a client closes."""

    @rule("C1")
    async def test_waiting_receives_are_told(self, stage: Stage) -> None:
        """A waiting receive raises CLOSED, and iteration ends."""
        _, receiver = await stage.open()

        async def iterate() -> list[ReceivedMessage]:
            return [message async for message in receiver]

        receiving = asyncio.create_task(receiver.receive_message())
        iterating = asyncio.create_task(iterate())
        # Both must wait in the receiver when it closes.
        await asyncio.wait([receiving, iterating], timeout=0.05)
        await receiver.close()
        await _assert_closed(lambda: receiving)
        assert await iterating == []

    @rule("C1")
    async def test_iteration_receives_until_closed(self, stage: Stage) -> None:
        """Iteration yields each message, and ends when its own body closes the receiver."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(5))
        received = []
        async for message in receiver:
            received.append(message)
            await receiver.acknowledge(message)
            if len(received) == 5:
                await receiver.close()
        assert sorted(texts(received)) == texts(numbered(5))

    @rule("C1")
    async def test_what_is_held_can_be_settled_while_closing(self, stage: Stage) -> None:
        """Settling works while a close waits for held messages, and the close ends when the last one is settled."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(2))
        first, second = await stage.receive_all(receiver, 2)
        # So long that only the last settlement can end the close within the bound of the test.
        closing = asyncio.create_task(receiver.close(timeout=3600))
        await asyncio.wait([closing], timeout=0.05)
        await _assert_closed(lambda: receiver.receive_message(0))
        await receiver.acknowledge(first)
        done, _ = await asyncio.wait([closing], timeout=0.05)
        assert not done
        await receiver.acknowledge(second)
        await closing
        _, other = await stage.open()
        await stage.silence(other)

    @rule("C1")
    async def test_what_was_never_handed_out_goes_back_at_once(self, stage: Stage) -> None:
        """Buffered messages go to another receiver while the first one still closes; their attempts are not counted."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(5))
        held = await stage.receive(receiver)
        await stage.prefetched(receiver, 4)
        _, other = await stage.open()
        closing = asyncio.create_task(receiver.close(timeout=3600))
        received = await stage.drain(other, 4)
        assert sorted(texts([held, *received])) == texts(numbered(5))
        if other.capabilities.delivery_attempts and not other.capabilities.handback_counts:
            assert {message.delivery_attempt for message in received} == {1}
        await receiver.acknowledge(held)
        await closing
        await stage.silence(other)

    @rule("C1")
    async def test_what_is_held_at_the_end_goes_back(self, stage: Stage) -> None:
        """Leaving ``async with`` does not wait: the held messages go to another receiver at once."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(3))
        async with asyncio.timeout(stage.harness.patience), receiver:
            await stage.receive_all(receiver, 2)
        _, other = await stage.open()
        assert sorted(texts(await stage.drain(other, 3))) == texts(numbered(3))

    @rule("C1", "R8")
    async def test_a_key_goes_back_in_order(self, stage: Stage) -> None:
        """Buffered messages follow the held message of their key to the next receiver."""
        client, receiver = await stage.open_ordered()
        await client.send_messages(numbered(6, key="k"))
        await stage.prefetched(receiver, 6)
        assert texts(await receiver.receive_messages(2, stage.harness.patience))[0] == "0000"
        await receiver.close(timeout=0.1)
        _, other = await stage.open_ordered()
        assert texts(await stage.drain(other, 6)) == texts(numbered(6))

    @rule("C2")
    async def test_closing_flushes_what_was_accepted(self, stage: Stage) -> None:
        """Sends that began before the close are stored, and return their ids."""
        _, receiver = await stage.open()
        sender = stage.client()
        # Connected first, so that the close meets requests and not a connection that is still being opened.
        await sender.ping(stage.harness.patience)
        sends = [asyncio.create_task(sender.send_message(message)) for message in numbered(20)]
        await asyncio.sleep(0)
        await sender.close(timeout=stage.harness.bound)
        ids = await asyncio.gather(*sends)
        received = await stage.drain(receiver, 20)
        assert sorted(message.message_id for message in received) == sorted(ids)

    @rule("C2")
    async def test_closing_a_client_closes_its_receivers(self, stage: Stage) -> None:
        """Its receivers end as by their own close: held messages can still be settled."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        receiving = asyncio.create_task(receiver.receive_message())
        closing = asyncio.create_task(client.close(timeout=3600))
        await _assert_closed(lambda: receiving)  # the close has begun
        await asyncio.wait([closing], timeout=0.05)
        await receiver.acknowledge(message)
        await closing
        await _assert_closed(*_receiver_calls(receiver, message))
        _, other = await stage.open()
        await stage.silence(other)

    @rule("C2")
    async def test_closing_is_bounded(self, stage: Stage) -> None:
        """A client closes within its timeout although a held message is never settled."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        await stage.receive(receiver)
        async with asyncio.timeout(stage.harness.patience):
            await client.close(timeout=0.2)
        _, other = await stage.open()
        assert texts(await stage.drain(other, 1)) == ["x"]

    @rule("C2")
    async def test_closing_is_idempotent(self, stage: Stage) -> None:
        """Ten closes at once, and one more, all succeed, for receivers and for clients."""
        client, receiver = await stage.open()
        for closes in (receiver.close, client.close):
            await asyncio.gather(*(closes() for _ in range(10)))
            await closes()
        await stage.client().close()

    @rule("C2")
    async def test_a_cancelled_close_closes_all_the_same(self, stage: Stage) -> None:
        """A cancelled close finishes in the background, and closing again waits for it."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        # The held message keeps the close waiting, so that there is something to cancel.
        await stage.receive(receiver)
        closing = asyncio.create_task(client.close(timeout=0.5))
        await asyncio.wait([closing], timeout=0.05)
        closing.cancel()
        await asyncio.wait([closing])
        await client.close()
        await _assert_closed(*_client_calls(client))
        assert not client.is_connected

    @rule("C3")
    async def test_afterwards_every_call_says_closed(self, stage: Stage) -> None:
        """Every call of the client and of its receivers raises CLOSED."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        await receiver.close(timeout=0)
        await _assert_closed(*_receiver_calls(receiver, message))
        await client.close()
        await _assert_closed(*_client_calls(client), *_receiver_calls(receiver, message))
        assert not client.is_connected

    @rule("C3")
    async def test_a_client_never_used_closes_too(self, stage: Stage) -> None:
        """A client that closes before it connects raises CLOSED as any other, and never connects."""
        async with stage.client() as client:
            pass
        await _assert_closed(*_client_calls(client))

    @rule("C3")
    async def test_nothing_is_left(self, stage: Stage) -> None:
        """A second client leaves no thread and no open file; the first one of a process may keep some."""
        # The first client of a process may start what all of them share, such as a thread, and keep it.
        await self._use(stage)
        # Cycles keep files open until they are collected.
        gc.collect()
        threads, files = _threads(), _open_files()
        for _ in range(3):
            await self._use(stage)
        assert not _threads() - threads
        # An SDK may close its sockets a moment after it said so.
        await stage.until(lambda: _open_files() <= files, stage.harness.patience)
        assert _open_files() <= files

    async def _use(self, stage: Stage) -> None:
        """Send, receive, acknowledge, and close while one message is held and a receive waits."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(2))
        await stage.drain(receiver, 1)
        await stage.receive(receiver)
        receiving = asyncio.create_task(receiver.receive_message())
        await asyncio.wait([receiving], timeout=0.01)
        await client.close(timeout=0)
        await _assert_closed(lambda: receiving)
        client, receiver = await stage.open()
        await stage.drain(receiver, 1)
        await client.close()
