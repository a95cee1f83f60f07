"""R8, R10: order per key."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict

import pytest

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, EventRuntimeError, ReceivedMessage
from events_core.testing.rules import rule
from events_core.testing.skipping import SHORT_RUN, not_shown
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Ordering"]


class Ordering:
    """Messages with an ordering key."""

    @rule("R8")
    async def test_without_order_a_key_is_refused(self, stage: Stage) -> None:
        """A configuration without order refuses an ordering key with UNSUPPORTED, and does not ignore it."""
        client = stage.client(ordering="false")
        if client.capabilities.ordering != "none":
            not_shown("a key without order; order cannot be switched off")
        with pytest.raises(EventRuntimeError) as caught:
            await client.send_messages([EventMessage(b"x"), EventMessage(b"y", ordering_key="k")])
        assert caught.value.code is ErrorCode.UNSUPPORTED

    @rule("R8", proves=["ordering=receiver", "ordering=subscription"])
    async def test_each_key_is_received_in_order(self, stage: Stage) -> None:
        """Two receivers take 20 messages of each of 10 keys: order holds over the declared scope."""
        client, first = await stage.open_ordered()
        second = await stage.client(ordering="true").subscribe(stage.subscription)
        keys = [f"k{number}" for number in range(10)]
        # The keys take turns, so that requests and batches carry several keys.
        rounds = zip(*(numbered(20, key=key) for key in keys), strict=True)
        await client.send_messages(itertools.chain.from_iterable(rounds))
        seen: dict[tuple[object, str | None], list[str]] = defaultdict(list)
        everywhere = first.capabilities.ordering == "subscription"
        ends = time.monotonic() + stage.harness.patience

        async def work(receiver: EventReceiver) -> None:
            nonlocal ends
            while sum(map(len, seen.values())) < 200 and time.monotonic() < ends:
                if batch := await receiver.receive_messages(3, 0.1):
                    ends = time.monotonic() + stage.harness.patience
                for message in batch:
                    # Over a whole subscription there is one order per key, whichever receiver gets a message.
                    seen[None if everywhere else receiver, message.ordering_key].append(message.data_as_string())
                # The other tasks get a turn while these messages are held.  Only then can one of them overtake.
                await asyncio.sleep(0)
                await receiver.acknowledge_messages(batch)

        # Two tasks on one receiver and one on another: order must hold between calls and between receivers.
        await asyncio.gather(*(work(receiver) for receiver in (first, first, second)))
        assert sorted(itertools.chain.from_iterable(seen.values())) == sorted(texts(numbered(20)) * 10)
        for order in seen.values():
            assert order == sorted(order)

    @rule("R8")
    async def test_a_key_is_with_one_caller_at_a_time(self, stage: Stage) -> None:
        """While a message of a key is held, no other call gets the next one, and messages of other keys come."""
        client, receiver = await stage.open_ordered()
        await client.send_messages(numbered(2, key="k"))
        first = await stage.receive(receiver)
        assert first.data == b"0000"
        others = [receiver]
        if receiver.capabilities.ordering == "subscription":
            others.append(await stage.client(ordering="true").subscribe(stage.subscription))
        await stage.silence(*others)
        await client.send_messages([EventMessage(b"other key", ordering_key="l"), EventMessage(b"no key")])
        received = [message for part in await stage.drain_together(others, 2) for message in part]
        assert sorted(texts(received)) == ["no key", "other key"]
        await stage.silence(*others)
        await receiver.acknowledge(first)
        ((second, *more),) = [part for part in await stage.drain_together(others, 1) if part]
        assert (second.data, more) == (b"0001", [])

    async def _run(
        self, stage: Stage, at_least: int = 1, **options: str
    ) -> tuple[EventReceiver, list[ReceivedMessage]]:
        """Return a receiver that holds k1, k2, k3 of one key, or as many of them as one call returned."""
        client, receiver = await stage.open_ordered(**options)
        await client.send_messages([EventMessage(data, ordering_key="k") for data in (b"k1", b"k2", b"k3")])
        # One call returns only messages that are buffered already, so all three should be.
        await stage.prefetched(receiver, 3)
        run = await receiver.receive_messages(3, stage.harness.patience)
        assert texts(run) == ["k1", "k2", "k3"][: len(run)]
        if len(run) < at_least:
            not_shown(SHORT_RUN)
        return receiver, run

    @rule("R10", "R9")
    async def test_a_keyed_message_comes_again_the_same(self, stage: Stage) -> None:
        """A nacked message with a key comes again with the same id, data, attributes and key."""
        client, receiver = await stage.open_ordered()
        sent = EventMessage(b"x", {"a": "b"}, ordering_key="k")
        message_id = await client.send_message(sent)
        for _ in range(2):
            message = await stage.receive(receiver)
            assert (message.message_id, message) == (message_id, sent)
            await receiver.nack(message)

    @rule("R10")
    async def test_a_nack_goes_on_with_that_message(self, stage: Stage) -> None:
        """After a nack of the first message of a run, that message comes, then its successors, in order."""
        receiver, run = await self._run(stage)
        await receiver.nack(run[0])
        again = await stage.drain(receiver, 3)
        assert texts(again) == ["k1", "k2", "k3"]
        if receiver.capabilities.delivery_attempts:
            assert [message.delivery_attempt for message in again] == [2, 1, 1]
        await stage.silence(receiver)

    @rule("R10")
    async def test_a_nack_returns_the_later_held_messages_with_it(self, stage: Stage) -> None:
        """Nacking the later messages is a no-op, acknowledging them is EXPIRED, and neither changes the order."""
        receiver, (first, *later) = await self._run(stage, at_least=2)
        # The delay leaves time to settle the later messages before the run comes again.
        await receiver.nack(first, delay=stage.short_delay)
        for message in later:
            await receiver.nack(message)
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(message)
            assert caught.value.code is ErrorCode.EXPIRED
        assert receiver.stats.held == 0
        assert texts(await stage.drain(receiver, 3)) == ["k1", "k2", "k3"]
        await stage.silence(receiver)

    @rule("R10")
    async def test_nacking_a_whole_run_keeps_its_order(self, stage: Stage) -> None:
        """One call that nacks every message of a run, last one first, keeps the order of the run."""
        receiver, run = await self._run(stage, at_least=2)
        await receiver.nack_messages(reversed(run))
        assert texts(await stage.drain(receiver, 3)) == ["k1", "k2", "k3"]
        await stage.silence(receiver)

    @rule("R10")
    async def test_a_nack_leaves_earlier_messages_held(self, stage: Stage) -> None:
        """After a nack of the last message of a run, it comes only when the earlier ones are settled."""
        receiver, run = await self._run(stage, at_least=2)
        await receiver.nack(run[-1])
        await stage.silence(receiver)
        await receiver.acknowledge_messages(run[:-1])
        assert texts(await stage.drain(receiver, 4 - len(run))) == ["k1", "k2", "k3"][len(run) - 1 :]
        await stage.silence(receiver)

    @rule("R10")
    async def test_acknowledged_successors_may_come_again(self, stage: Stage) -> None:
        """After k2 was acknowledged and k1 nacked, k1 comes, then k2 or not, then k3."""
        receiver, run = await self._run(stage, at_least=2)
        await receiver.acknowledge_messages(run[1:2])
        await receiver.nack(run[0])
        again = texts([*await stage.drain(receiver, 1), *await stage.rest(receiver)])
        assert again in (["k1", "k2", "k3"], ["k1", "k3"])

    @rule("R10")
    async def test_a_delayed_nack_holds_its_key_alone(self, stage: Stage) -> None:
        """Until the delay is over, no message of the key comes, and other keys go on."""
        client, receiver = await stage.open_ordered()
        await client.send_messages(numbered(2, key="k"))
        await receiver.nack(await stage.receive(receiver), delay=stage.long_delay)
        await client.send_messages([EventMessage(b"other", ordering_key="l"), EventMessage(b"no key")])
        assert sorted(texts(await stage.drain(receiver, 2))) == ["no key", "other"]
        await client.send_messages(numbered(2, key="m"))
        first = await stage.receive(receiver)
        began = time.monotonic()
        await receiver.nack(first, delay=stage.short_delay)
        again = await stage.drain(receiver, 2)
        assert time.monotonic() - began >= stage.short_delay
        assert [(each.ordering_key, each.data_as_string()) for each in again] == [("m", "0000"), ("m", "0001")]

    @rule("R10", "R6")
    async def test_an_expiry_goes_on_with_that_message(self, stage: Stage) -> None:
        """A held run that expires comes again, whole and in order."""
        receiver, run = await self._run(stage, max_lease_duration="1")
        left = ["k1", "k2", "k3"]
        while left:
            again = await stage.receive_all(receiver, 1)
            assert texts(again) == left[:1]
            left = left if await stage.expired(receiver, again) else left[1:]
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge(run[0])
        assert caught.value.code is ErrorCode.EXPIRED
