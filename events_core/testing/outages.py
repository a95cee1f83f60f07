"""F1 to F3, P7: a broker that cannot be reached, and processes that die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

from events_core import (
    AcknowledgeError,
    ErrorCode,
    EventClient,
    EventConnectionError,
    EventMessage,
    EventReceiver,
    PublishError,
    ReceivedMessage,
)
from events_core.testing.observing import Recorder
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Outages"]


# Called before the test makes its clients: a harness may have to put a proxy between them and the broker.
_outage = Stage.require_outage


async def _noticed(stage: Stage, client: EventClient) -> None:
    """Wait until *client* knows that the broker cannot be reached."""
    async with asyncio.timeout(stage.harness.patience):
        # No event tells of it: ``is_connected`` is the last known state.
        while client.is_connected:
            await asyncio.sleep(0.01)


async def _assert_settled(
    stage: Stage, receiver: EventReceiver, message: ReceivedMessage, settling: Awaitable[None]
) -> None:
    """Check that *settling* confirms *message*, or that it is EXPIRED and comes again.

    It may expire only if deliveries end with their connection.
    """
    came: list[ReceivedMessage] = []
    expired = False
    try:
        await settling
    except AcknowledgeError as error:
        if error.code is not ErrorCode.EXPIRED or stage.capabilities.redelivery != "disconnect":
            raise
        expired = True
        came = await stage.drain(receiver, 1)
    came += await stage.rest(receiver)
    assert [each.message_id for each in came].count(message.message_id) == expired, (
        f"the settlement was {'EXPIRED' if expired else 'confirmed'}, and these messages came: {came}"
    )


async def _acknowledged(stage: Stage, receiver: EventReceiver, message: ReceivedMessage) -> None:
    """Acknowledge *message* again and again, because the connection may come back later than one call waits."""
    async with asyncio.timeout(stage.harness.patience):
        while True:
            try:
                return await receiver.acknowledge(message)
            except AcknowledgeError as error:
                if error.code is not ErrorCode.TIMEOUT:
                    raise


class Outages:
    """Clients and receivers when the network or the broker fails."""

    @rule("F1")
    async def test_a_receiver_outlives_an_outage(self, stage: Stage) -> None:
        """A receive goes on waiting, its client is not connected, and messages come after the outage."""
        outage = _outage(stage)
        client, receiver = await stage.open()
        waiting = asyncio.create_task(receiver.receive_message())
        with outage:
            await _noticed(stage, client)
            done, _ = await asyncio.wait([waiting], timeout=stage.harness.settle_time)
            assert not done, f"the outage ended a receive: {waiting}"
        await client.send_message(EventMessage(b"x"))
        async with asyncio.timeout(stage.harness.patience):
            message = await waiting
        assert message is not None
        await receiver.acknowledge(message)
        assert client.is_connected
        assert receiver.stats.reconnects >= 1

    @rule("F1", "R1")
    async def test_a_timeout_in_an_outage_gives_none(self, stage: Stage) -> None:
        """A timeout in an outage is no error either."""
        outage = _outage(stage)
        client, receiver = await stage.open()
        with outage:
            await _noticed(stage, client)
            assert await receiver.receive_message(stage.harness.settle_time) is None
            assert await receiver.receive_messages(3, 0) == []

    @rule("F1", "Q1")
    async def test_an_ephemeral_subscription_outlives_an_outage(self, stage: Stage) -> None:
        """A message that is stored as soon as the broker is back comes, although the receiver reconnects later."""
        outage = _outage(stage)
        client = stage.client()
        receiver = await client.subscribe()
        with outage:
            await _noticed(stage, client)
            sending = asyncio.create_task(client.send_messages(numbered(3)))
            # Long enough for the send to begin.  The outage keeps it from ending.
            await asyncio.wait([sending], timeout=0.05)
        await sending
        await client.send_message(EventMessage(b"later"))
        assert sorted(texts(await stage.drain(receiver, 4))) == [*texts(numbered(3)), "later"]

    @rule("F1", "V1")
    async def test_an_outage_is_one_reconnect(self, stage: Stage) -> None:
        """An observer is told of one reconnect, which succeeds."""
        outage = _outage(stage)
        client, receiver = await stage.open()
        recorder = client.observer = Recorder()
        with outage:
            await _noticed(stage, client)
        await client.send_message(EventMessage(b"x"))
        # When a message has come, the receiver is connected again and its reconnect has ended.
        await stage.drain(receiver, 1)
        ended = [error for operation, error in recorder.ended if operation.name == "reconnect"]
        assert ended == [None]

    @rule("F1", "P7")
    async def test_sends_outlive_an_outage(self, stage: Stage) -> None:
        """Messages that are sent during an outage are stored when it is over."""
        outage = _outage(stage)
        client, receiver = await stage.open()
        with outage:
            sending = asyncio.create_task(client.send_messages(numbered(5)))
            done, _ = await asyncio.wait([sending], timeout=stage.harness.settle_time)
            assert not done, f"the outage ended a send: {sending}"
        ids = await sending
        received = await stage.drain(receiver, 5)
        assert sorted(message.message_id for message in received) == sorted(ids)

    @rule("P4", "P7")
    async def test_sends_of_a_key_keep_their_order_in_an_outage(self, stage: Stage) -> None:
        """Calls that begin during an outage are stored one after the other, however often they were tried."""
        outage = _outage(stage)
        client, receiver = await stage.open_ordered()
        calls = [numbered(5, key="k", prefix=f"{number} ") for number in range(3)]
        with outage:
            sends = [asyncio.create_task(client.send_messages(messages)) for messages in calls]
            await asyncio.wait(sends, timeout=stage.harness.settle_time)
        await asyncio.gather(*sends)
        assert texts(await stage.drain(receiver, 15)) == [text for messages in calls for text in texts(messages)]

    @rule("P3", "P7")
    async def test_each_message_of_a_failed_send_has_a_result(self, stage: Stage) -> None:
        """A call that fails in an outage has an error for each message, as if each had been sent alone."""
        outage = _outage(stage)
        client, _ = await stage.open(send_timeout="0.5")
        with outage, pytest.raises(PublishError) as caught:
            await stage.bounded(client.send_messages(numbered(3)))
        assert [type(result) for result in caught.value.results] == [PublishError] * 3
        assert all(result.retryable for result in caught.value.results if isinstance(result, PublishError))

    @rule("P7")
    async def test_a_send_that_cannot_connect_ends(self, stage: Stage) -> None:
        """The first send of a client that finds no broker fails when ``send_timeout`` is over."""
        outage = _outage(stage)
        client = stage.client(send_timeout="0.5")
        with outage:
            async with asyncio.timeout(stage.harness.patience):
                with pytest.raises(PublishError) as caught:
                    await client.send_messages(numbered(2))
        assert caught.value.retryable
        assert len(caught.value.results) == 2

    @rule("P6", "P7")
    async def test_a_send_that_waits_for_room_ends(self, stage: Stage) -> None:
        """The wait for room counts towards ``send_timeout``."""
        outage = _outage(stage)
        client, _ = await stage.open(send_timeout="0.5", publish_max_messages="1")
        with outage:
            async with asyncio.timeout(stage.harness.patience):
                results = await asyncio.gather(*map(client.send_message, numbered(5)), return_exceptions=True)
        assert [getattr(result, "retryable", result) for result in results] == [True] * 5

    @rule("P7")
    async def test_every_send_ends(self, stage: Stage) -> None:
        """In an outage, a send fails with ``retryable=True`` after ``send_timeout``, and a ping after its timeout."""
        outage = _outage(stage)
        client, _ = await stage.open(send_timeout="0.5")
        with outage:
            async with asyncio.timeout(stage.harness.patience):
                with pytest.raises(PublishError) as caught:
                    await client.send_message(EventMessage(b"x"))
                assert caught.value.retryable
                with pytest.raises(EventConnectionError):
                    await client.ping(timeout=0.5)

    @rule("F1", "S5")
    async def test_settling_outlives_an_outage(self, stage: Stage) -> None:
        """An acknowledgement during an outage succeeds when the outage is over."""
        outage = _outage(stage)
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        with outage:
            settling = asyncio.create_task(receiver.acknowledge(message))
            await asyncio.wait([settling], timeout=stage.harness.settle_time)
        await _assert_settled(stage, receiver, message, settling)

    @rule("F2")
    async def test_what_is_held_outlives_its_session_or_expires(self, stage: Stage) -> None:
        """After an outage, a held message can be acknowledged; it may be EXPIRED if it belonged to the connection."""
        outage = _outage(stage)
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        with outage:
            await _noticed(stage, client)
        await _assert_settled(stage, receiver, message, receiver.acknowledge(message))

    @rule("S1", "S2")
    async def test_acknowledging_twice_waits_for_the_confirmation(self, stage: Stage) -> None:
        """A second acknowledgement waits for the answer to the first one."""
        outage = _outage(stage)
        stage.require("ack_confirmed")
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        with outage:
            settling = [asyncio.create_task(receiver.acknowledge(message)) for _ in range(2)]
            done, _ = await asyncio.wait(settling, timeout=stage.harness.settle_time)
            assert not done, f"acknowledge returned before the broker could have confirmed it: {done}"
        await _assert_settled(stage, receiver, message, settling[0])
        results = await asyncio.gather(*settling, return_exceptions=True)
        assert len({getattr(result, "code", result) for result in results}) == 1, (
            f"the two calls have different outcomes: {results}"
        )

    @rule("C2")
    async def test_closing_in_an_outage_ends_what_waits(self, stage: Stage) -> None:
        """Sends, receives and settlements that are unfinished when the close runs out of time fail with CLOSED."""
        outage = _outage(stage)
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"held"))
        held = await stage.receive(receiver)
        with outage:
            await _noticed(stage, client)
            calls: list[Coroutine[Any, Any, object]] = [
                client.send_message(EventMessage(b"x")),
                client.send_messages(numbered(2)),
                receiver.receive_message(),
            ]
            if stage.capabilities.redelivery == "lease":  # otherwise it has expired with its session
                calls.append(receiver.acknowledge(held))
            waiting = [asyncio.create_task(call) for call in calls]
            await asyncio.wait(waiting, timeout=0.05)
            async with asyncio.timeout(stage.harness.patience):
                await client.close(timeout=0.2)
                results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [getattr(result, "code", result) for result in results] == [ErrorCode.CLOSED] * len(calls)

    @rule("S5")
    async def test_a_settlement_without_an_answer_times_out(self, stage: Stage) -> None:
        """After ``ack_timeout`` a settlement is TIMEOUT, the message stays held, and settling it again works."""
        stage.require("ack_confirmed")  # otherwise a settlement may not need the broker
        outage = _outage(stage)
        client, receiver = await stage.open(ack_timeout="0.5")
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        with outage, pytest.raises(AcknowledgeError) as caught:
            async with asyncio.timeout(stage.harness.patience):
                await receiver.acknowledge(message)
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.TIMEOUT, True)
        if stage.capabilities.redelivery == "lease":
            assert receiver.stats.held == 1
        await _assert_settled(stage, receiver, message, _acknowledged(stage, receiver, message))

    @rule("Q2")
    async def test_subscribing_ends(self, stage: Stage) -> None:
        """During an outage, subscribing fails with a connection error when ``connect_timeout`` is over."""
        outage = _outage(stage)
        client = stage.client(connect_timeout="0.5")
        with outage, pytest.raises(EventConnectionError):
            async with asyncio.timeout(stage.harness.patience):
                await client.subscribe(stage.subscription)

    @rule("P7", proves=["idempotent_publish"])
    async def test_a_retried_send_is_stored_once(self, stage: Stage) -> None:
        """Messages whose ids were lost on the way are sent again, and with ``idempotent_publish`` each comes once."""
        lost = stage.require_lost_answers()
        stage.require("idempotent_publish")
        ids, came = await self._sent_again(stage, lost)
        assert sorted(came) == sorted(ids), "a retried send was stored twice, although idempotent_publish is declared"

    @rule("P7")
    async def test_a_send_whose_answer_is_lost_ends(self, stage: Stage) -> None:
        """A send whose answer is lost is repeated, and each message comes at least once, under the id returned."""
        ids, came = await self._sent_again(stage, stage.require_lost_answers())
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(came)

    async def _sent_again(
        self, stage: Stage, lost: AbstractContextManager[None]
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Return the ids of messages sent while answers were lost, and the ids of all messages that came."""
        client, receiver = await stage.open()
        # Connect first: the lost answer must be that of the send, and not one of connecting.
        await client.send_message(EventMessage(b"connected"))
        (first,) = await stage.drain(receiver, 1)
        # Nobody receives meanwhile: a message handed out in a lost answer would come only after its lease.
        await receiver.close()
        with lost:
            sending = asyncio.create_task(client.send_messages(numbered(3)))
            # Nothing shows when the request has gone through; on a busy machine that takes a while.
            done, _ = await asyncio.wait([sending], timeout=stage.harness.patience / 5)
            assert not done, f"the send returned before any answer could have come: {sending}"
        ids = await sending
        receiver = await client.subscribe(stage.subscription)
        came = [*await stage.drain(receiver, len(ids)), *await stage.rest(receiver)]
        return ids, [message.message_id for message in came if message.message_id != first.message_id]

    @rule("S5", "S1")
    async def test_an_acknowledgement_whose_answer_is_lost_ends(self, stage: Stage) -> None:
        """An acknowledgement without an answer is repeated: it is confirmed, or EXPIRED if the broker forgot it."""
        lost = stage.require_lost_answers()
        client, receiver = await stage.open(**stage.harness.lease_options)
        await client.send_message(EventMessage(b"x"))
        message = await stage.receive(receiver)
        with lost:
            settling = asyncio.create_task(receiver.acknowledge(message))
            await asyncio.wait([settling], timeout=stage.harness.patience / 5)
        (error,) = await asyncio.gather(settling, return_exceptions=True)
        if isinstance(error, AcknowledgeError):
            assert error.code is ErrorCode.EXPIRED
        elif receiver.capabilities.exactly_once:
            await stage.silence(receiver, seconds=stage.harness.lease)
        await client.send_message(EventMessage(b"later"))
        assert "later" in texts([*await stage.drain(receiver, 1), *await stage.rest(receiver)])

    @rule("F3", proves=["durable=process_crash", "durable=power_loss"])
    async def test_a_confirmed_message_survives_its_sender(self, stage: Stage) -> None:
        """A process is killed as soon as its send has returned, and the message comes."""
        stage.require("durable")
        _, receiver = await stage.open()
        report = await stage.child("send_and_die")
        assert (await stage.receive(receiver)).message_id == report["sent"]

    @rule("F3", proves=["durable=process_crash", "durable=power_loss"])
    async def test_a_confirmed_message_survives_the_broker(self, stage: Stage) -> None:
        """After the sender and the broker are killed, the broker starts again and delivers the message."""
        stage.require("durable")
        client, receiver = await stage.open()
        # A broker without a process of its own must die with its last client, the child (``Harness.restart``).
        await receiver.close()
        await client.close()
        report = await stage.child("send_and_die")
        await stage.restart()
        _, receiver = await stage.open()
        assert (await stage.receive(receiver)).message_id == report["sent"]

    @rule("S1", "F3", proves=["exactly_once"])
    async def test_a_confirmed_acknowledgement_survives_the_broker(self, stage: Stage) -> None:
        """With ``exactly_once``, an acknowledged message does not come from a broker that was restarted."""
        stage.require("durable")
        stage.require("exactly_once")
        client, receiver = await stage.open()
        await client.send_messages(numbered(2))
        done, held = await stage.receive_all(receiver, 2)
        await receiver.acknowledge(done)
        await client.close(timeout=0)
        await stage.restart()
        _, receiver = await stage.open()
        # The held message shows that the broker is back.  Silence alone would prove nothing.
        assert texts(await stage.drain(receiver, 1)) == texts([held])
        await stage.silence(receiver, seconds=stage.harness.lease)

    @rule("F1")
    async def test_a_receiver_outlives_a_restart(self, stage: Stage) -> None:
        """A receive goes on waiting while the broker is restarted, and messages come afterwards."""
        stage.require("durable")
        client, receiver = await stage.open()
        waiting = asyncio.create_task(receiver.receive_message())
        await stage.restart()
        await client.send_message(EventMessage(b"x"))
        async with asyncio.timeout(stage.harness.patience):
            message = await waiting
        assert message is not None
        assert message.data == b"x"
