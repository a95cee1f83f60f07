"""R6, R7, R9, R11, R12: messages that come again, and dead letters."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from events_core import (
    AcknowledgeError,
    ConfigurationError,
    ErrorCode,
    EventClient,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    ReceivedMessage,
)
from events_core.testing.rules import rule
from events_core.testing.skipping import not_declared
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Redelivering"]


async def _held_under_a_lease(stage: Stage) -> tuple[EventClient, EventReceiver, ReceivedMessage, float]:
    """Return a client, its receiver, a message that the receiver holds, and the broker's lease in seconds."""
    lease = stage.require_lease()
    client, receiver = await stage.open(**stage.harness.lease_options)
    await client.send_message(EventMessage(b"x"))
    return client, receiver, await stage.receive(receiver), lease


class Redelivering:
    """Leases, nacks, delays, dead letters."""

    @rule("R6", "R7")
    async def test_a_held_message_is_kept_beyond_the_lease(self, stage: Stage) -> None:
        """A message that is held for longer than the lease comes to no other receiver, and can be acknowledged."""
        client, receiver, message, lease = await _held_under_a_lease(stage)
        other = await client.subscribe(stage.subscription)
        # Longer than one lease: without a renewal the message would come to one of the two.
        await stage.silence(receiver, other, seconds=1.5 * lease)
        await receiver.acknowledge(message)

    @rule("R6", "R7")
    async def test_a_held_message_is_kept_while_the_loop_is_blocked(self, stage: Stage) -> None:
        """An application that blocks its event loop for longer than the lease still holds its message."""
        _, receiver, message, lease = await _held_under_a_lease(stage)
        time.sleep(1.5 * lease)  # noqa: ASYNC251  # blocking is the point
        await stage.silence(receiver)
        await receiver.acknowledge(message)

    @rule("R6", "R7")
    async def test_a_blocked_loop_loses_nothing_to_another_client(self, stage: Stage) -> None:
        """A client in another thread does not get a message whose holder blocks its loop for longer than the lease."""
        _, receiver, message, lease = await _held_under_a_lease(stage)

        async def listen() -> None:
            _, other = await stage.open(**stage.harness.lease_options)
            await stage.silence(other, seconds=1.5 * lease)
            await other.close()

        with ThreadPoolExecutor(1) as thread:
            listening = thread.submit(stage.run, listen())
            wait([listening])  # this blocks the loop
        listening.result()
        await receiver.acknowledge(message)

    @rule("R6", "R9", "S3")
    async def test_a_message_held_too_long_expires(self, stage: Stage) -> None:
        """After ``max_lease_duration`` a message comes again, and its old delivery is EXPIRED."""
        client, receiver = await stage.open(max_lease_duration="1")
        await client.send_message(EventMessage(b"x"))
        began = time.monotonic()
        old = await stage.receive(receiver)
        new = await stage.receive(receiver)
        # A little less than the second that was asked for, because timers are coarse.
        assert time.monotonic() - began >= 0.9
        assert (new.message_id, new) == (old.message_id, old)
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge(old)
        assert caught.value.code is ErrorCode.EXPIRED
        # This concerns the old delivery only, so the new one can still be acknowledged.
        await receiver.nack(old)
        while await stage.expired(receiver, [new]):
            new = await stage.receive(receiver)
        await stage.silence(receiver, seconds=1)

    @rule("R9", proves=["delivery_attempts"])
    async def test_a_nacked_message_comes_again_the_same(self, stage: Stage) -> None:
        """A nacked message comes again with the same id, data and attributes; the attempt is counted where declared."""
        client, receiver = await stage.open()
        message_id = await client.send_message(EventMessage(b"x", {"a": "b"}))
        for attempt in (1, 2, 3):
            message = await stage.receive(receiver)
            assert message == EventMessage(b"x", {"a": "b"})
            assert message.message_id == message_id
            assert message.delivery_attempt == (attempt if receiver.capabilities.delivery_attempts else None)
            await receiver.nack(message)

    @rule("R9")
    async def test_what_a_closed_receiver_held_comes_again(self, stage: Stage) -> None:
        """A message whose receiver closes comes to the next receiver, unchanged."""
        client, receiver = await stage.open()
        sent = EventMessage(b"x", {"a": "b"})
        message_id = await client.send_message(sent)
        await stage.receive(receiver)
        await receiver.close(timeout=0)
        _, other = await stage.open()
        message = await stage.receive(other)
        assert (message.message_id, message) == (message_id, sent)

    @rule("R9")
    async def test_what_a_dead_process_held_comes_again(self, stage: Stage) -> None:
        """After a process that holds a message is killed, another receiver gets the message when the lease is over."""
        stage.require("durable")
        if stage.capabilities.redelivery == "lease":
            stage.require_lease()
        client, receiver = await stage.open(**stage.harness.lease_options)
        await receiver.close()
        message_id = await client.send_message(EventMessage(b"x"))
        report = await stage.child("receive_and_die", subscription=stage.subscription, **stage.harness.lease_options)
        assert report == {"received": message_id}
        _, receiver = await stage.open(**stage.harness.lease_options)
        lease, patience = stage.harness.lease, stage.harness.patience
        message = await receiver.receive_message(lease + patience)
        assert message is not None, (
            f"no message within the lease of {lease:g} s and {patience:g} s; is the lease right?"
        )
        assert message.message_id == message_id

    @rule("R11")
    async def test_nacks_are_no_hot_loop(self, stage: Stage) -> None:
        """A message that is nacked again and again comes at intervals that grow from 0.05 s."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        intervals = []
        for _ in range(3):
            began = time.monotonic()
            await receiver.nack(message)
            message = await stage.receive(receiver)
            intervals.append(time.monotonic() - began)
        # Half of the shortest backoff of each attempt (R11), because timers are coarse.
        assert all(interval >= 0.05 * 2**attempt for attempt, interval in enumerate(intervals))

    @rule("R11")
    async def test_a_delay_is_kept(self, stage: Stage) -> None:
        """A message nacked with a delay does not come earlier, and delays no other message."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        await receiver.nack(await stage.receive(receiver), delay=stage.long_delay)
        await client.send_message(EventMessage(b"y"))
        message = await stage.receive(receiver)
        assert message.data == b"y"
        began = time.monotonic()
        await receiver.nack(message, delay=stage.short_delay)
        assert texts(await stage.drain(receiver, 1)) == ["y"]
        assert time.monotonic() - began >= stage.short_delay

    @rule("R11")
    async def test_a_delay_of_several_is_kept(self, stage: Stage) -> None:
        """Messages nacked together with a delay do not come earlier."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(6))
        messages = await stage.receive_all(receiver, 6)
        later, sooner = messages[:3], messages[3:]
        await receiver.nack_messages(later, delay=stage.long_delay)
        await receiver.nack_messages(sooner, delay=stage.short_delay)
        assert sorted(texts(await stage.drain(receiver, 3))) == sorted(texts(sooner))
        await stage.silence(receiver)

    @rule("R11")
    async def test_a_delay_of_zero_is_no_backoff(self, stage: Stage) -> None:
        """Ten nacks with ``delay=0`` take less time than their backoff would."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        # Its backoff would be 0.1 s, 0.2 s, 0.4 s and so on: 102 s for ten nacks.
        async with asyncio.timeout(stage.harness.patience):
            for _ in range(10):
                await receiver.nack(await stage.receive(receiver), delay=0)
            await stage.receive(receiver)

    @rule("R11")
    async def test_an_impossible_delay_is_refused(self, stage: Stage) -> None:
        """A negative or infinite delay is a ValueError, one beyond the declared limit is UNSUPPORTED."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        for delay in (-1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="delay"):
                await receiver.nack(message, delay=delay)
        longest = receiver.capabilities.limits.max_nack_delay
        if longest is not None:
            with pytest.raises(EventRuntimeError) as caught:
                await receiver.nack(message, delay=longest + 1)
            assert caught.value.code is ErrorCode.UNSUPPORTED
        await receiver.acknowledge(message)
        await stage.silence(receiver)

    @rule("R12", proves=["dead_letter"])
    async def test_a_message_that_failed_too_often_is_dead_lettered(self, stage: Stage) -> None:
        """After its last attempt a message goes to the dead-letter topic, and its attributes say where it came from."""
        options = stage.dead_letters
        if not stage.capabilities.dead_letter:
            await stage.refused("dead_letter", lambda: stage.client(**options).subscribe(stage.subscription))
        # Joined before the letter is sent, because a new subscription begins with what is sent next (Q1).
        dead = await stage.client(stage.name("dead")).subscribe(stage.name("undertaker"))
        client, receiver = await stage.open(**options)
        sent = EventMessage(b"x", {"a": "b"})
        message_id = await client.send_message(sent)
        for _ in range(stage.harness.dead_letter_attempts):
            message = await stage.receive(receiver)
            assert message.message_id == message_id
            await receiver.nack(message)
        letter = await stage.receive(dead)
        assert letter.data == sent.data
        assert sent.attributes.items() <= letter.attributes.items()
        added = {value for key, value in letter.attributes.items() if key not in sent.attributes}
        assert any(stage.subscription in value for value in added), "the attributes do not name the subscription"
        await stage.silence(receiver, dead)

    @rule("R12")
    async def test_a_dead_letter_waits_for_its_reader(self, stage: Stage) -> None:
        """If the dead-letter topic has no subscription, the receiver creates one that keeps the letter."""
        stage.require("dead_letter")
        letters = stage.name("letters")
        client, receiver = await stage.open(dead_letter_subscription=letters, **stage.dead_letters)
        await client.send_message(EventMessage(b"x"))
        for _ in range(stage.harness.dead_letter_attempts):
            await receiver.nack(await stage.receive(receiver))
        reader = await stage.client(stage.name("dead")).subscribe(letters)
        assert (await stage.receive(reader)).data == b"x"

    @rule("R12")
    async def test_a_dead_letter_frees_its_key(self, stage: Stage) -> None:
        """A dead-lettered message frees its key: its successors come.  A backend may refuse to do both."""
        stage.require("dead_letter")
        await stage.require_ordering()
        options = stage.dead_letters
        try:
            stage.client(ordering="true", **options)
        except ConfigurationError:
            not_declared("dead_letter together with ordering")
        dead = await stage.client(stage.name("dead"), ordering="true").subscribe(stage.name("undertaker"))
        client, receiver = await stage.open_ordered(**options)
        await client.send_messages(numbered(2, key="k"))
        for _ in range(stage.harness.dead_letter_attempts):
            message = await stage.receive(receiver)
            assert message.data == b"0000"
            await receiver.nack(message)
        assert texts(await stage.drain(receiver, 1)) == ["0001"]
        (letter,) = await stage.drain(dead, 1)
        assert (letter.data, letter.ordering_key) == (b"0000", "k")

    @rule("R12", "R6")
    async def test_a_message_that_expired_too_often_is_dead_lettered(self, stage: Stage) -> None:
        """An expiry counts as a failed attempt."""
        stage.require("dead_letter")
        dead = await stage.client(stage.name("dead")).subscribe(stage.name("undertaker"))
        client, receiver = await stage.open(max_lease_duration="1", **stage.dead_letters)
        await client.send_message(EventMessage(b"x"))
        for _ in range(stage.harness.dead_letter_attempts):
            await stage.receive(receiver)
        # The receiver itself may keep the time.  Then it must be receiving.
        receiving = asyncio.create_task(receiver.receive_message())
        assert (await stage.receive(dead)).data == b"x"
        await asyncio.wait([receiving], timeout=stage.harness.settle_time)
        assert receiving.cancel(), f"the message came again: {receiving}"

    @rule("R12", "C1")
    async def test_closing_dead_letters_nothing(self, stage: Stage) -> None:
        """A message that closing hands back is still delivered, more often than it may fail.

        If handing back counts an attempt, this can be shown only once.
        """
        stage.require("dead_letter")
        options = stage.dead_letters
        sender = stage.client(subscription=stage.subscription, **options)
        message_id = await sender.send_message(EventMessage(b"x"))
        counts = sender.capabilities.handback_counts
        for _ in range(1 if counts else stage.harness.dead_letter_attempts + 1):
            receiver = await sender.subscribe()
            assert (await stage.receive(receiver)).message_id == message_id
            await receiver.close(timeout=0)
        assert (await stage.receive(await sender.subscribe())).message_id == message_id
