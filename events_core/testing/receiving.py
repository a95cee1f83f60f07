"""R1 to R5: receiving."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from events_core import EventMessage, EventReceiver, ReceivedMessage
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Receiving"]


class Receiving:
    """Receiving, in one task and in many."""

    @rule("R1")
    async def test_a_timeout_gives_none(self, stage: Stage) -> None:
        """A timeout gives ``None`` or ``[]``, not before its time, and is no error."""
        _, receiver = await stage.open()
        for _ in range(5):  # a busy machine hides now and then that a receive ends too early
            began = time.monotonic()
            assert await receiver.receive_message(0.2) is None
            assert time.monotonic() - began >= 0.2
            began = time.monotonic()
            assert await receiver.receive_messages(5, 0.1) == []
            assert time.monotonic() - began >= 0.1

    @rule("R1")
    async def test_a_timeout_of_zero_takes_what_is_at_hand(self, stage: Stage) -> None:
        """A timeout of 0 does not wait, and repeated calls get the message."""
        client, receiver = await stage.open()
        assert await receiver.receive_message(timeout=0) is None
        await client.send_message(EventMessage(b"x"))
        ends = time.monotonic() + stage.harness.patience
        while (message := await receiver.receive_message(timeout=0)) is None:
            assert time.monotonic() < ends, f"repeated calls got no message within {stage.harness.patience:g} s"
            await asyncio.sleep(0.01)
        assert message.data == b"x"

    @rule("R1")
    async def test_timeouts_are_kept(self, stage: Stage) -> None:
        """A timeout of 0 returns at once, and a short timeout ends before one that is a little longer."""
        _, receiver = await stage.open()
        async with asyncio.timeout(stage.harness.patience):
            for _ in range(100):
                assert await receiver.receive_message(timeout=0) is None
        kept = 0
        for _ in range(5):
            receiving = asyncio.create_task(receiver.receive_message(0.3))
            done, _ = await asyncio.wait([receiving], timeout=0.45)
            kept += len(done)
            assert await receiving is None
        # Once is enough: a busy machine delays some calls, and a loop never runs the timer of 0.45 s first.
        assert kept, "receive calls of 0.3 s ended later than waits of 0.45 s"

    @rule("R1")
    async def test_without_a_timeout_a_receive_waits(self, stage: Stage) -> None:
        """Without a timeout, a receive waits until a message comes."""
        client, receiver = await stage.open()
        waiting = asyncio.create_task(receiver.receive_message())
        done, _ = await asyncio.wait([waiting], timeout=stage.harness.settle_time)
        assert not done
        await client.send_message(EventMessage(b"x"))
        message = await waiting
        assert message is not None
        assert message.data == b"x"

    @rule("R2")
    async def test_a_batch_is_at_most_its_limit(self, stage: Stage) -> None:
        """A batch never has more messages than its limit, and a limit below 1 is refused."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(7))
        received: list[ReceivedMessage] = []
        while len(received) < 7:
            batch = await receiver.receive_messages(3, stage.harness.patience)
            assert 1 <= len(batch) <= 3
            received += batch
        assert sorted(texts(received)) == texts(numbered(7))
        for limit in (0, -1):
            with pytest.raises(ValueError, match="limit"):
                await receiver.receive_messages(limit, 0.1)

    @rule("R2")
    async def test_a_batch_does_not_wait_to_be_full(self, stage: Stage) -> None:
        """A batch returns as soon as one message is there, also without a timeout."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(3))
        received: list[ReceivedMessage] = []
        async with asyncio.timeout(stage.harness.patience):
            while len(received) < 3:
                received += await receiver.receive_messages(100)
        assert sorted(texts(received)) == texts(numbered(3))

    @rule("R3")
    async def test_cancelled_receives_lose_nothing(self, stage: Stage) -> None:
        """While 100 messages are sent, four tasks cancel their receives at random, and each message comes once."""
        client, receiver = await stage.open()
        # A fixed seed, so that a failure can be repeated.
        chance = random.Random(3)
        received: list[ReceivedMessage] = []

        async def publish() -> None:
            for message in numbered(100):
                await client.send_message(message)
                await asyncio.sleep(chance.uniform(0, 0.002))

        async def interrupt() -> None:
            while not publishing.done():
                receiving = asyncio.create_task(receiver.receive_messages(3))
                await asyncio.sleep(chance.uniform(0, 0.004))
                receiving.cancel()
                await asyncio.wait([receiving])
                # The receive may have returned before the cancellation reached it.  Then its messages are delivered.
                if not receiving.cancelled():
                    received.extend(receiving.result())
                    await receiver.acknowledge_messages(receiving.result())

        publishing = asyncio.create_task(publish())
        await asyncio.gather(publishing, *(interrupt() for _ in range(4)))
        received += await stage.drain(receiver, 100 - len(received))
        assert sorted(texts(received)) == texts(numbered(100))
        await stage.silence(receiver)

    @rule("R3")
    async def test_a_receive_that_times_out_loses_nothing(self, stage: Stage) -> None:
        """With timeouts as short as the time between messages, each message comes once."""
        client, receiver = await stage.open()

        async def publish() -> None:
            for message in numbered(50):
                await client.send_message(message)
                await asyncio.sleep(0.001)

        publishing = asyncio.create_task(publish())
        received: list[ReceivedMessage] = []
        while not publishing.done():
            received += await receiver.receive_messages(3, 0.001)
        await publishing
        received += await stage.receive_all(receiver, 50 - len(received))
        assert sorted(texts(received)) == texts(numbered(50))

    @rule("R4")
    async def test_no_delivery_goes_to_two_tasks(self, stage: Stage) -> None:
        """Twenty tasks that share a receiver get 100 messages, each message once."""
        client, receiver = await stage.open()
        receiving = asyncio.create_task(stage.drain_together([receiver] * 20, 100))
        await client.send_messages(numbered(100))
        received = [message for part in await receiving for message in part]
        assert sorted(texts(received)) == texts(numbered(100))
        await stage.silence(receiver)

    @rule("R5")
    async def test_messages_held_are_bounded(self, stage: Stage) -> None:
        """With ``max_outstanding_messages=3``, no message comes while three are held; each one settled lets one in."""
        client, receiver = await stage.open(max_outstanding_messages="3")
        await client.send_messages(numbered(3))
        held = await stage.receive_all(receiver, 3)
        await client.send_messages(numbered(3, prefix="later "))
        await self._settle_one_by_one(stage, receiver, held)

    @rule("R5")
    async def test_what_is_buffered_counts_as_held(self, stage: Stage) -> None:
        """With ``max_outstanding_messages=3``, a receiver buffers three messages and leaves the others to others."""
        client, receiver = await stage.open(max_outstanding_messages="3")
        for number, message in enumerate(numbered(3)):
            await client.send_message(message)
            await stage.prefetched(receiver, number + 1)
        await client.send_messages(numbered(10, prefix="later "))
        # A receiver that buffers too much gets the time to do so.
        await stage.until(lambda: receiver.stats.buffered > 3)
        _, other = await stage.open()
        await stage.receive_all(other, 10)

    @rule("R5")
    async def test_bytes_held_are_bounded_together(self, stage: Stage) -> None:
        """With ``max_outstanding_bytes=1000``, at most three messages of 400 bytes are held until one is settled."""
        client, receiver = await stage.open(max_outstanding_bytes="1000")
        held: list[ReceivedMessage] = []
        for _ in range(2):
            await client.send_message(EventMessage(bytes(400)))
            held.append(await stage.receive(receiver))
        await client.send_message(EventMessage(bytes(400)))
        held += await receiver.receive_messages(1, stage.harness.settle_time)  # this message may pass the bound
        await client.send_message(EventMessage(b"last"))
        while more := await receiver.receive_messages(1, stage.harness.settle_time):
            held += more  # only if the third message came late
        assert {message.data for message in held} == {bytes(400)}
        assert len(held) <= 3
        await receiver.acknowledge_messages(held)
        assert b"last" in {message.data for message in await stage.drain(receiver, 4 - len(held))}

    @rule("R5")
    async def test_bytes_held_are_bounded(self, stage: Stage) -> None:
        """With ``max_outstanding_bytes=100``, a larger message comes, alone."""
        client, receiver = await stage.open(max_outstanding_bytes="100")
        await client.send_message(EventMessage(bytes(1000)))
        held = [await stage.receive(receiver)]
        await client.send_messages(numbered(1))
        await self._settle_one_by_one(stage, receiver, held)

    async def _settle_one_by_one(self, stage: Stage, receiver: EventReceiver, held: list[ReceivedMessage]) -> None:
        await stage.silence(receiver)
        for message in held:
            await receiver.acknowledge(message)
            assert await stage.receive(receiver)
            # Once is enough, because each silence takes the settle time.
            if message is held[0]:
                await stage.silence(receiver)
