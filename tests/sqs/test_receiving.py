"""Receiving, leases and settling, on MiniStack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, ReceivedMessage
from events_core.engine import BrokerError, Delivery, Letters, Outcome, Settlement, uptime
from events_sqs import SQSClient
from events_sqs.codec import PACKED, Receipt, size_objection
from events_sqs.limits import CARRIED_ID
from events_sqs.settling import Settling

from ..receiving import PATIENCE, acknowledge_what_is_left, numbered, settle_all, settle_data, take
from ..waiting import until
from .console import Console
from .disturbed import disturbed, outcome
from .faults import FOREVER, FaultyProxy, faulty
from .server import Server

DELETE, HIDE, RECEIVE = "DeleteMessageBatch", "ChangeMessageVisibilityBatch", "ReceiveMessage"


def asked(proxy: FaultyProxy, operation: str) -> list[Mapping[str, Any]]:
    """Return the parameters of each request of an operation."""
    return [call.parameters for call in proxy.calls if call.operation == operation]


def timeouts(proxy: FaultyProxy) -> list[int]:
    """Return the visibility timeouts that were asked for."""
    return [entry["VisibilityTimeout"] for given in asked(proxy, HIDE) for entry in given["Entries"]]


# Order


async def send_before_receiving(both: SQSClient, count: int) -> None:
    """Send messages of one key to a subscription without a receiver, so that they are received together."""
    await (await both.subscribe()).close()
    await both.send_messages(numbered(count, key="k"))


async def take_run(receiver: EventReceiver, count: int) -> list[ReceivedMessage]:
    """Return *count* messages of one key that came in one call."""
    await until(lambda: receiver.stats.buffered >= count)
    return await receiver.receive_messages(count, PATIENCE)


def test_a_nack_in_the_middle_of_a_run_keeps_the_order_over_all_receivers(fifo: Console) -> None:
    """R8, R10: the run stays with its receiver, which counts the failure of one message only."""

    async def scenario() -> None:
        async with fifo, fifo.client() as both:
            await send_before_receiving(both, 5)
            first, second = await both.subscribe(), await both.subscribe()
            await until(lambda: first.stats.buffered + second.stats.buffered >= 5)
            if second.stats.buffered:
                first, second = second, first
            held = await take_run(first, 3)
            await first.nack(held[1], delay=0)
            await first.acknowledge(held[0])
            came: list[tuple[int, int | None]] = []
            while len(came) < 4:
                for receiver in (first, second):
                    for message in await receiver.receive_messages(10, 0.5):
                        came.append((int(message.data), message.delivery_attempt))
                        await receiver.acknowledge(message)
            assert came == [(1, 2), (2, 1), (3, 1), (4, 1)]

    asyncio.run(scenario())


def test_a_closed_receiver_hands_its_run_to_another_one_in_order(fifo: Console) -> None:
    """C1, R10: what was held and what was buffered goes back in order, at once.

    That counts an attempt.  It counts a second one if the request that is still out brings the messages here again.
    """

    async def scenario() -> None:
        async with fifo, fifo.client() as both:
            await send_before_receiving(both, 25)
            first = await both.subscribe()
            await take(first)
            await until(lambda: first.stats.buffered >= 9)
            await first.close(timeout=0)
            async with both.subscribe() as second:
                again = await take(second)
                assert again.data == b"0"
                assert again.delivery_attempt in (2, 3)
                await second.acknowledge(again)
                assert await settle_all(second, 24) == [*range(1, 25)]

    asyncio.run(scenario())


# Leases


def test_leases_are_extended_in_full_requests(console: Console) -> None:
    """R6: the leases of 20 messages that are held for long are extended, and ten share a request."""

    async def scenario() -> None:
        async with disturbed(console, visibility_timeout="4") as (proxy, both, receiver):
            await both.send_messages(numbered(20))
            held = []
            while len(held) < 20:
                held += await receiver.receive_messages(20, PATIENCE)
            await until(lambda: len(timeouts(proxy)) >= 60)
            assert set(timeouts(proxy)) == {4}
            assert len(asked(proxy, HIDE)) <= len(timeouts(proxy)) / 10 * 2
            # On a busy machine, a lease that is so short may end before it is extended.
            settled = await acknowledge_what_is_left(receiver, held)
            await settle_data(receiver, {each.data for each in numbered(20)} - {each.data for each in settled})
            assert await console.messages() == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("ordering", ["false", "true"])
def test_an_acknowledgement_after_the_lease_is_expired(server: Server, ordering: str) -> None:
    """S3, R9: if the lease could not be extended, the delivery is EXPIRED here, and the message comes again."""

    async def scenario() -> None:
        console = Console(server, ordering=ordering)
        # With one message, the receiver asks for no other one, so the message does not come to it again.
        options = {"visibility_timeout": "2", "max_outstanding_messages": "1"}
        async with disturbed(console, **options) as (proxy, both, receiver):
            await both.send_message(EventMessage(b"x"))
            message = await take(receiver)
            proxy.refuse(HIDE, "InternalError", status=500, times=FOREVER)
            # Not behind the proxy, so that the other receiver keeps its lease.
            async with console.client() as present, present.subscribe() as other:
                again = await take(other)
                with pytest.raises(AcknowledgeError) as caught:
                    await receiver.acknowledge(message)
                assert outcome(caught.value)[0] is ErrorCode.EXPIRED
                await other.acknowledge(again)
            assert await console.messages() == 0

    asyncio.run(scenario())


class Calls:
    """The requests of :class:`Settling`, which all succeed."""

    def __init__(self) -> None:
        self.hidden: list[int] = []

    async def hide(self, receipts: Sequence[tuple[Receipt, int]]) -> Sequence[BrokerError | None]:
        self.hidden += [seconds for _, seconds in receipts]
        return [None] * len(receipts)


def received_before(seconds: float) -> Delivery:
    """Return a delivery that came so long ago, and whose lease was always extended."""
    now = uptime()
    return Delivery("1", b"x", {}, token=Receipt("handle", now - seconds, {}, until=now + 30))


async def nothing(*_: object) -> None:
    """Store a letter."""


def test_no_delay_and_no_lease_goes_beyond_twelve_hours() -> None:
    """R11: SQS refuses a visibility timeout that ends 12 hours after the receipt, so none is asked for."""

    async def scenario() -> None:
        calls = Calls()
        letters = Letters(nothing, topic_name="t", subscription="s", dead_letter_topic=None)
        settling = Settling(calls, letters, 30, is_fifo=False)  # type: ignore[arg-type]
        hour = 3600
        await settling.settle([Settlement(received_before(0), Outcome.NACK, 11.5 * hour)])
        await settling.settle([Settlement(received_before(2 * hour), Outcome.NACK, 11.5 * hour)])
        await settling.extend([received_before(12 * hour - 20)])
        assert calls.hidden[0] == 11.5 * hour
        assert 10 * hour - 5 <= calls.hidden[1] <= 10 * hour
        assert 10 <= calls.hidden[2] <= 20

    asyncio.run(scenario())


def test_what_is_too_old_is_not_extended() -> None:
    """R6: SQS may accept an old handle, and would hide the message from its new receiver."""

    async def scenario() -> None:
        calls = Calls()
        letters = Letters(nothing, topic_name="t", subscription="s", dead_letter_topic=None)
        settling = Settling(calls, letters, 30, is_fifo=False)  # type: ignore[arg-type]
        old, young = received_before(100), received_before(10)
        old.token.until = uptime() - 1
        assert await settling.extend([old, young]) == [old]
        assert calls.hidden == [30]
        assert young.token.until > uptime() + 25

    asyncio.run(scenario())


def test_a_copy_with_our_id_is_another_message(console: Console) -> None:
    """R7: a program that copies the attributes of a message copies its id; both messages come, and both are settled."""

    async def scenario() -> None:
        async with disturbed(console) as (_, both, receiver):
            sent = await both.send_message(EventMessage(b"x"))
            copied = {PACKED: {"DataType": "String", "StringValue": sent}}
            await console.sqs.send_message(QueueUrl=await console.url(), MessageBody="copy", MessageAttributes=copied)
            came = [await take(receiver) for _ in range(2)]
            assert sorted(message.data for message in came) == [b"copy", b"x"]
            await receiver.acknowledge_messages(came)
            assert await console.messages() == 0

    asyncio.run(scenario())


# Settling


def test_a_nack_asks_for_a_visibility_timeout(console: Console) -> None:
    """R11: delays are whole seconds, and a message that goes back without a failure comes at once."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await both.send_messages(numbered(3))
            held = [await take(receiver) for _ in range(3)]
            await receiver.nack(held[0], delay=1234.5)
            await receiver.nack(held[1])
            await receiver.hand_back(held[2])
            assert timeouts(proxy) == [1235, 1, 0]

    asyncio.run(scenario())


def test_acknowledgements_one_by_one_share_requests(console: Console) -> None:
    """S4: 300 messages that 300 tasks acknowledge take few more than 30 requests."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await both.send_messages(numbered(300))
            held = []
            while len(held) < 300:
                held += await receiver.receive_messages(100, PATIENCE)
            await asyncio.gather(*map(receiver.acknowledge, held))
            assert proxy.count(DELETE) <= 1.15 * 30
            assert await console.messages() == 0

    asyncio.run(scenario())


def test_a_delete_whose_answer_was_lost_succeeds(console: Console) -> None:
    """S5: the engine repeats the request, which MiniStack refuses because the message is gone."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await both.send_message(EventMessage(b"x"))
            message = await take(receiver)
            proxy.lose_answer(DELETE)
            await receiver.acknowledge(message)
            assert proxy.count(DELETE) == 2
            assert await console.messages() == 0

    asyncio.run(scenario())


def test_a_handle_that_sqs_does_not_know_is_expired(console: Console) -> None:
    """S3: if the first delete is refused, the message is somebody else's."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await both.send_message(EventMessage(b"x"))
            message = await take(receiver)
            proxy.fail_entry(DELETE, lambda text: True, "ReceiptHandleIsInvalid", is_senders_fault=True)
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(message)
            assert outcome(caught.value)[0] is ErrorCode.EXPIRED

    asyncio.run(scenario())


# Dead letters


def test_a_redrive_policy_moves_dead_letters(console: Console) -> None:
    """R12: if the queue's redrive policy is that of the options, SQS moves messages and the library does not."""

    async def scenario() -> None:
        dead, letters = f"{console.topic}-dead", "undertaker"
        options = {
            "max_delivery_attempts": "2",
            "dead_letter_topic": dead,
            "dead_letter_subscription": letters,
        }
        async with console, console.client(**options) as both:
            await (await both.subscribe()).close()
            target = (await console.attributes(f"{dead}-{letters}"))["QueueArn"]
            policy = {"deadLetterTargetArn": target, "maxReceiveCount": "2"}
            await console.sqs.set_queue_attributes(
                QueueUrl=await console.url(), Attributes={"RedrivePolicy": json.dumps(policy)}
            )
            async with both.subscribe() as receiver:
                await both.send_message(EventMessage(b"x"))
                for attempt in (1, 2):
                    message = await take(receiver)
                    assert message.delivery_attempt == attempt
                    await receiver.nack(message, delay=0)
                async with console.client(dead) as reader, reader.subscribe(letters) as coffin:
                    letter = await take(coffin)
                    assert letter.data == b"x"
                    assert await coffin.receive_message(1) is None, "the library has moved it too"

    asyncio.run(scenario())


def test_a_letter_whose_answer_was_lost_is_stored_once_on_fifo(fifo: Console) -> None:
    """R12: it is stored again with the same id, which SNS knows."""
    dead = f"{fifo.topic}-dead"
    options = {"max_delivery_attempts": "5", "dead_letter_topic": dead, "dead_letter_subscription": "undertaker"}

    async def scenario() -> None:
        async with disturbed(fifo, **options) as (proxy, both, receiver):
            await both.send_message(EventMessage(b"x"))
            message = await take(receiver)
            proxy.lose_answer("PublishBatch")
            await receiver.reject(message, "bad")
            assert proxy.count("PublishBatch") == 3
            async with fifo.client(dead) as reader, reader.subscribe("undertaker") as coffin:
                letter = await take(coffin)
                await coffin.acknowledge(letter)
                assert letter.attributes["dead_letter_reason"] == "bad"
                assert await coffin.receive_message(1) is None

    asyncio.run(scenario())


def test_a_message_of_the_largest_size_becomes_a_letter(console: Console) -> None:
    """R12: as much of its origin as fits goes with it."""
    dead = f"{console.topic}-dead"
    options = {"max_delivery_attempts": "5", "dead_letter_topic": dead, "dead_letter_subscription": "undertaker"}

    async def scenario() -> None:
        async with disturbed(console, **options) as (_, both, receiver):
            largest = EventMessage(b"x" * (262_144 - CARRIED_ID - 40))
            await both.send_message(largest)
            await receiver.reject(await take(receiver), "bad" * 100)
            async with console.client(dead) as reader, reader.subscribe("undertaker") as coffin:
                letter = await take(coffin)
                assert letter.data == largest.data
                assert size_objection(EventMessage(letter.data, letter.attributes), "0" * 32, 262_144) == ""

    asyncio.run(scenario())


# Closing


def test_an_ephemeral_subscription_repeats_no_request(fifo: Console) -> None:
    """C1: the queue is deleted with its messages, so nothing needs to be given back."""

    async def scenario() -> None:
        async with disturbed(fifo, subscription="", wait_time="20") as (proxy, _, receiver):
            await until(lambda: proxy.count(RECEIVE) > 0)
            await receiver.close(timeout=0)
            assert proxy.count(RECEIVE) == 1

    asyncio.run(scenario())


def test_a_close_hands_back_what_its_last_request_brings(console: Console) -> None:
    """C1: a close waits for the request that is out, and a message that it brings is visible again at once."""

    async def scenario() -> None:
        async with disturbed(console, wait_time="20", visibility_timeout="600") as (proxy, both, receiver):
            await until(lambda: proxy.count(RECEIVE) > 0)
            closing = asyncio.create_task(receiver.close(timeout=300))
            await asyncio.sleep(0)
            await both.send_message(EventMessage(b"x"))
            await closing
            assert receiver.stats.held == 0
            async with both.subscribe() as other:
                assert (await take(other)).delivery_attempt == 2

    asyncio.run(scenario())


def test_a_close_without_time_repeats_its_last_request_on_fifo(fifo: Console) -> None:
    """C1: the request that is cut is repeated with its ReceiveRequestAttemptId, without waiting."""

    async def scenario() -> None:
        async with fifo, faulty(fifo.server.url) as proxy:
            # Without the engine, which would cancel the close of the source soon.
            driver = fifo.client(endpoint_url=proxy.url, wait_time="20")._driver
            await driver.open()
            source = await driver.subscribe(fifo.subscription, lambda: None)
            fetching = asyncio.create_task(source.fetch(10))
            await until(lambda: proxy.count(RECEIVE) > 0)
            fetching.cancel()
            await source.close()
            await driver.close()
            first, second = asked(proxy, RECEIVE)
            assert first["ReceiveRequestAttemptId"] == second["ReceiveRequestAttemptId"]
            assert (first["WaitTimeSeconds"], second["WaitTimeSeconds"]) == (20, 0)

    asyncio.run(scenario())


def test_an_idle_receiver_asks_once_in_its_wait_time(console: Console) -> None:
    """A receiver without messages has one request out, which waits at SQS."""

    async def scenario() -> None:
        async with disturbed(console, wait_time="3") as (proxy, _, receiver):
            assert await receiver.receive_message(8) is None
            assert proxy.count(RECEIVE) <= 4
            assert {given["WaitTimeSeconds"] for given in asked(proxy, RECEIVE)} == {3}

    asyncio.run(scenario())


def test_a_backlog_takes_few_requests(console: Console) -> None:
    """300 messages take few more than 30 requests to receive and 30 to acknowledge."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await receiver.close()
            await both.send_messages(numbered(300))
            before = proxy.count(RECEIVE)
            async with both.subscribe() as other:
                assert sorted(await settle_all(other, 300)) == [*range(300)]
            assert proxy.count(RECEIVE) - before <= 1.15 * 30 + 2
            assert proxy.count(DELETE) <= 1.15 * 30

    asyncio.run(scenario())


def test_the_group_of_a_message_in_a_standard_queue_is_no_key(console: Console) -> None:
    """R8: there it serves fairness and keeps no order; the message can be sent on, and tells its group if asked."""

    async def scenario() -> None:
        async with console, console.client() as both, both.subscribe() as receiver:
            await console.sqs.send_message(QueueUrl=await console.url(), MessageBody="x", MessageGroupId="tenant-7")
            message = await take(receiver)
            assert both.native_message(message)["Attributes"]["MessageGroupId"] == "tenant-7"
            assert message.ordering_key is None
            await both.send_message(message)
            assert (await take(receiver)).data == b"x"

    asyncio.run(asyncio.wait_for(scenario(), 120))
