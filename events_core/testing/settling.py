"""S1 to S5: acknowledging and nacking."""

from __future__ import annotations

import asyncio

import pytest

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, ReceivedMessage
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Settling"]


_SETTLED = ErrorCode.ALREADY_SETTLED


class Settling:
    """Settling once, twice, too late and in batches."""

    @rule("S1", proves=["exactly_once", "ack_confirmed"])
    async def test_an_acknowledged_message_does_not_come_again(self, stage: Stage) -> None:
        """An acknowledged message comes neither to its receiver nor, after the lease, to a new one."""
        client, receiver = await stage.open(**stage.harness.lease_options)
        await client.send_message(EventMessage(b"x"))
        # If the broker has lost the acknowledgement, that shows only after the lease: a new receiver waits for it.
        await receiver.acknowledge(await stage.receive(receiver))
        await stage.silence(receiver)
        await receiver.close()
        _, receiver = await stage.open(**stage.harness.lease_options)
        await stage.silence(receiver, seconds=stage.harness.lease)

    @rule("S1", proves=["ack_confirmed"])
    async def test_a_confirmed_acknowledgement_outlives_its_process(self, stage: Stage) -> None:
        """With ``ack_confirmed``, a message does not come again although its process dies after acknowledging it."""
        stage.require("ack_confirmed")
        stage.require("durable")
        client, receiver = await stage.open(**stage.harness.lease_options)
        # The child must be the only receiver, or this one may get the message.
        await receiver.close()
        message_id = await client.send_message(EventMessage(b"x"))
        options = {"subscription": stage.subscription, **stage.harness.lease_options}
        assert await stage.child("acknowledge_and_die", **options) == {"received": message_id}
        _, receiver = await stage.open(**stage.harness.lease_options)
        await stage.silence(receiver, seconds=stage.harness.lease)

    async def _received(self, stage: Stage) -> tuple[EventReceiver, ReceivedMessage]:
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x"))
        return receiver, await stage.receive(receiver)

    @rule("S2")
    async def test_acknowledging_twice_is_a_no_op(self, stage: Stage) -> None:
        """Acknowledging again, by message or by id, is a no-op."""
        receiver, message = await self._received(stage)
        for target in (message, message, message.message_id):
            await receiver.acknowledge(target)
        await stage.silence(receiver)

    @rule("S2")
    async def test_nacking_twice_is_a_no_op(self, stage: Stage) -> None:
        """A message that is nacked several times comes again once."""
        receiver, message = await self._received(stage)
        for target in (message, message, message.message_id):
            await receiver.nack(target)
        await stage.drain(receiver, 1)
        await stage.silence(receiver)

    @rule("S2")
    async def test_the_first_outcome_stands(self, stage: Stage) -> None:
        """Another outcome after the first one is ALREADY_SETTLED, and changes nothing."""
        receiver, message = await self._received(stage)
        await receiver.nack(message, delay=stage.short_delay)
        for target in (message, message.message_id):
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(target)
            assert caught.value.code is ErrorCode.ALREADY_SETTLED
        (again,) = await stage.drain(receiver, 1)
        for target in (again, again.message_id):
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.nack(target)
            assert caught.value.code is ErrorCode.ALREADY_SETTLED
        await stage.silence(receiver)

    @rule("S2")
    async def test_of_outcomes_at_once_one_stands(self, stage: Stage) -> None:
        """If a message is acknowledged and nacked concurrently, one outcome counts and the other call fails."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(10))
        returned: list[str] = []
        for message in await stage.receive_all(receiver, 10):
            calls = [receiver.acknowledge(message), receiver.nack(message), receiver.acknowledge(message)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            codes = [getattr(result, "code", result) for result in results]
            # Either outcome may win, and the two acknowledgements always agree.
            assert codes in ([None, _SETTLED, None], [_SETTLED, None, _SETTLED])
            returned += [] if codes[0] is None else [message.data_as_string()]
        assert sorted(texts([*await stage.drain(receiver, len(returned)), *await stage.rest(receiver)])) == returned

    @rule("S2")
    async def test_a_new_hand_out_starts_afresh(self, stage: Stage) -> None:
        """A message that comes again after a nack can be settled again; its old delivery stays nacked."""
        receiver, old = await self._received(stage)
        await receiver.nack(old)
        new = await stage.receive(receiver)
        await receiver.nack(old)
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge(old)
        assert caught.value.code is ErrorCode.ALREADY_SETTLED
        # The two calls above concern the old delivery only: the new one is still held.
        assert receiver.stats.held == 1
        await receiver.acknowledge(new)
        await stage.silence(receiver)

    @rule("S2")
    async def test_an_id_settles_the_newest_delivery(self, stage: Stage) -> None:
        """An id settles the delivery that was handed out last."""
        receiver, message = await self._received(stage)
        await receiver.nack(message.message_id)
        await stage.receive(receiver)
        await receiver.acknowledge(message.message_id)
        assert receiver.stats.held == 0
        await stage.silence(receiver)

    @rule("S3")
    async def test_an_unknown_id_is_not_found(self, stage: Stage) -> None:
        """An unknown id and another receiver's message are NOT_FOUND, and change nothing."""
        receiver, message = await self._received(stage)
        other = await stage.client().subscribe(stage.name("other"))
        for stranger, target in ((receiver, "no-such-id"), (other, message), (other, message.message_id)):
            for settle in (stranger.acknowledge, stranger.nack):
                with pytest.raises(AcknowledgeError) as caught:
                    await settle(target)
                assert caught.value.code is ErrorCode.NOT_FOUND
        await receiver.acknowledge(message)
        await stage.silence(receiver)

    @rule("S3")
    async def test_nacking_what_is_gone_with_its_subscription_is_a_no_op(self, stage: Stage) -> None:
        """Nacking messages of a deleted subscription is a no-op, also if only the broker knows that it is gone."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(3))
        first, *others = await stage.receive_all(receiver, 3)
        # Another client deletes it, so the receiver's own client cannot know.
        await stage.client().delete_subscription(stage.subscription)
        async with asyncio.timeout(stage.harness.patience):
            await receiver.nack(first)
            await receiver.nack_messages(others)

    @rule("S3", "S2")
    async def test_the_last_ten_thousand_are_remembered(self, stage: Stage) -> None:
        """The id of the first of 10,000 acknowledged messages is still known."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(10_000))
        first, *_ = await stage.drain(receiver, 10_000)
        await receiver.acknowledge(first.message_id)
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.nack(first.message_id)
        assert caught.value.code is ErrorCode.ALREADY_SETTLED

    @rule("S4")
    async def test_a_batch_settles_all_it_can(self, stage: Stage) -> None:
        """One error names the messages that could not be settled; all others are settled."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(3))
        first, second, third = await stage.receive_all(receiver, 3)
        await receiver.nack(third, delay=stage.short_delay)
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge_messages([first, "no-such-id", third, second, second.message_id])
        codes = {message_id: error.code for message_id, error in caught.value.failed.items()}
        assert codes == {"no-such-id": ErrorCode.NOT_FOUND, third.message_id: ErrorCode.ALREADY_SETTLED}
        assert texts(await stage.drain(receiver, 1)) == texts([third])
        await stage.silence(receiver)

    @rule("S4")
    async def test_a_batch_of_nacks_settles_all_it_can(self, stage: Stage) -> None:
        """One error names the unknown id; all other messages come again."""
        client, receiver = await stage.open()
        await client.send_messages(numbered(3))
        messages = await stage.receive_all(receiver, 3)
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.nack_messages([*messages, "no-such-id"])
        assert set(caught.value.failed) == {"no-such-id"}
        assert sorted(texts(await stage.drain(receiver, 3))) == texts(numbered(3))

    @rule("S4")
    async def test_a_large_batch_is_split(self, stage: Stage) -> None:
        """A batch that is larger than a request may be is settled in one call, and an empty one is a no-op."""
        client, receiver = await stage.open(max_outstanding_messages="2000")
        # More than the largest request of any broker known: 1,000 on Pub/Sub.
        await client.send_messages(numbered(1500))
        await receiver.acknowledge_messages(await stage.receive_all(receiver, 1500))
        assert receiver.stats.held == 0
        await receiver.acknowledge_messages([])
        await receiver.nack_messages([])
        await stage.silence(receiver)

    @rule("S5")
    async def test_a_cancelled_settlement_can_be_repeated(self, stage: Stage) -> None:
        """A settlement that is cancelled at once is applied or not, and can be repeated."""
        receiver, message = await self._received(stage)
        settling = asyncio.create_task(receiver.acknowledge(message))
        # One turn of the loop lets the settlement begin, so that there is something to cancel.
        await asyncio.sleep(0)
        settling.cancel()
        await asyncio.wait([settling])
        await receiver.acknowledge(message)
        await stage.silence(receiver)

    @rule("S5")
    async def test_a_failed_settlement_does_not_end_the_receiver(self, stage: Stage) -> None:
        """After a failed settlement, messages come and are settled as before."""
        client, receiver = await stage.open()
        with pytest.raises(AcknowledgeError):
            await receiver.acknowledge("no-such-id")
        await client.send_message(EventMessage(b"x"))
        assert texts(await stage.drain(receiver, 1)) == ["x"]
        await stage.silence(receiver)
