"""Settlements and leases of a queue whose answers the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from botocore.exceptions import ClientError

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery, Letters, Outcome, Settlement, uptime
from events_sqs.calls import Calls
from events_sqs.codec import Names, Receipt
from events_sqs.driver import SQSDriver
from events_sqs.options import SQSOptions
from events_sqs.settling import Settling
from events_sqs.source import Context, SQSSource
from events_sqs.topology import Queue

from ..waiting import until

AWAY = BrokerError("away", ErrorCode.UNAVAILABLE, retryable=True)
DENIED = BrokerError("denied", ErrorCode.PERMISSION_DENIED)
GONE = BrokerError("gone", ErrorCode.EXPIRED)
QUEUE = Queue("q", "http://q", "arn:aws:sqs:us-east-1:000000000000:q", is_fifo=False)


async def nothing(*_: object) -> None:
    """Do nothing."""


def delivery(number: int = 0) -> Delivery:
    now = uptime()
    found = Delivery(str(number), b"x", {}, token=Receipt(str(number), now, {}, until=now + 30))
    found.order = number
    return found


class Answers:
    """The requests of a receiver, each of which takes a moment."""

    def __init__(self, deleting: BrokerError | None = None, hiding: BrokerError | None = None) -> None:
        self.deleting, self.hiding = deleting, hiding
        self.refusal: BrokerError | None = None
        """The result of each extension and hand-back."""
        self.hidden: list[str] = []
        self.most = 0
        self._out = 0

    async def delete(self, receipts: Sequence[Receipt]) -> Sequence[BrokerError | None]:
        if self.deleting is not None:
            raise self.deleting
        return [None] * len(receipts)

    async def hide(self, receipts: Sequence[tuple[Receipt, int]]) -> Sequence[BrokerError | None]:
        self._out += 1
        self.most = max(self.most, self._out)
        await asyncio.sleep(0.01)
        self._out -= 1
        if self.hiding is not None:
            raise self.hiding
        self.hidden += [receipt.handle for receipt, _ in receipts]
        return [self.refusal] * len(receipts)

    def settling(self, *, is_fifo: bool = False) -> Settling:
        letters = Letters(nothing, topic_name="t", subscription="s", dead_letter_topic=None)
        return Settling(self, letters, 30, is_fifo=is_fifo)  # type: ignore[arg-type]


def test_one_error_that_nothing_can_fix_does_not_hide_another() -> None:
    """S4: the requests fail for two reasons, and each settlement gets its own."""
    settling = Answers(DENIED, AWAY).settling()
    settlements = [Settlement(delivery(), Outcome.ACK), Settlement(delivery(1), Outcome.RETURN)]
    assert asyncio.run(settling.settle(settlements)) == [DENIED, AWAY]


def test_an_outage_is_raised() -> None:
    """S5: all of it may be repeated, so the engine pauses."""
    settling = Answers(AWAY, AWAY).settling()
    settlements = [Settlement(delivery(), Outcome.ACK), Settlement(delivery(1), Outcome.RETURN)]
    with pytest.raises(BrokerError) as caught:
        asyncio.run(settling.settle(settlements))
    assert caught.value is AWAY


def test_what_is_being_deleted_is_not_lost() -> None:
    """S5: the answer to a delete was lost, and SQS refuses to extend what is deleted."""

    async def scenario() -> None:
        answers = Answers(deleting=AWAY)
        settling, deleted, other = answers.settling(), delivery(), delivery(1)
        with pytest.raises(BrokerError):
            await settling.settle([Settlement(deleted, Outcome.ACK)])
        answers.refusal = GONE
        assert list(await settling.extend([deleted, other])) == [other]

    asyncio.run(scenario())


class Extensions(Answers):
    """Requests to extend the leases of 10 messages each; the first one of a call fails at once, or one of its entries.

    The others wait until the test lets them end.
    """

    def __init__(self, failure: BrokerError, *, of_an_entry: bool) -> None:
        super().__init__()
        self.failure = failure
        self.of_an_entry = of_an_entry
        self.may_end = asyncio.Event()
        self.ended = 0

    async def hide(self, receipts: Sequence[tuple[Receipt, int]]) -> Sequence[BrokerError | None]:
        if receipts[0][0].handle != "0":
            await self.may_end.wait()
            self.ended += 1
            return [None] * len(receipts)
        if not self.of_an_entry:
            raise self.failure
        return [self.failure, *[None] * (len(receipts) - 1)]


@pytest.mark.parametrize("of_an_entry", [True, False])
def test_an_extension_that_failed_leaves_no_request_behind(of_an_entry: bool) -> None:
    """R6: a late one would overtake a nack, or the next extension."""

    async def scenario() -> None:
        answers = Extensions(AWAY, of_an_entry=of_an_entry)
        some = [delivery(number) for number in range(30)]
        extending = asyncio.create_task(answers.settling().extend(some))
        await asyncio.sleep(0.05)
        assert not extending.done()
        answers.may_end.set()
        with pytest.raises(BrokerError) as caught:
            await extending
        assert (caught.value, answers.ended) == (AWAY, 2)

    asyncio.run(scenario())


class Slow(Answers):
    """Requests of which only the first ten end before the test lets the others end."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = asyncio.Event()

    async def hide(self, receipts: Sequence[tuple[Receipt, int]]) -> Sequence[BrokerError | None]:
        if self.hidden:
            await self.may_end.wait()
        return await super().hide(receipts)


def test_leases_that_end_first_are_extended_first() -> None:
    """R6: the engine cuts an extension that takes long, and then asks for the same deliveries."""

    async def scenario() -> None:
        answers = Slow()
        settling, some = answers.settling(), [delivery(number) for number in range(250)]
        extending = asyncio.create_task(settling.extend(some))
        await until(lambda: len(answers.hidden) == 100)
        extending.cancel()
        await asyncio.gather(extending, return_exceptions=True)
        extended, answers.hidden = {*answers.hidden}, []
        answers.may_end.set()
        await settling.extend(some)
        assert not extended & {*answers.hidden[:100]}

    asyncio.run(scenario())


def test_a_delivery_whose_lease_cannot_be_extended_is_lost() -> None:
    """R6: if asking again cannot help, it is lost, and the others are extended."""

    async def scenario() -> None:
        answers = Extensions(DENIED, of_an_entry=True)
        answers.may_end.set()
        some = [delivery(number) for number in range(30)]
        assert list(await answers.settling().extend(some)) == some[:1]

    asyncio.run(scenario())


@pytest.mark.parametrize("is_fifo", [True, False])
@pytest.mark.parametrize("gives_back", [True, False])
def test_messages_go_back_together_or_in_order(is_fifo: bool, gives_back: bool) -> None:
    """C1, R10: a standard queue has no order, so no request waits for another one."""

    async def scenario() -> None:
        answers = Answers()
        settling, some = answers.settling(is_fifo=is_fifo), [delivery(number) for number in range(100)]
        if gives_back:
            await settling.give_back(some)
        else:
            await settling.settle([Settlement(each, Outcome.RETURN) for each in some])
        assert answers.most == (1 if is_fifo else 10)
        in_order = [str(number) for number in range(100)]
        assert (answers.hidden if is_fifo else sorted(answers.hidden, key=int)) == in_order

    asyncio.run(scenario())


class Client:
    """A client of SQS with one message, which refuses to change its visibility timeout until it is told to agree."""

    def __init__(self, refusal: BaseException | None) -> None:
        self.refusal = refusal
        self.timeouts: list[int] = []
        self._messages = [{"MessageId": "1", "ReceiptHandle": "h", "Body": "x"}]

    async def receive_message(self, **_: Any) -> Mapping[str, Any]:
        if not self._messages:
            await asyncio.get_running_loop().create_future()
        return {"Messages": [self._messages.pop()]}

    async def change_message_visibility_batch(self, *, Entries: Sequence[Mapping[str, Any]], **_: Any) -> Any:
        self.timeouts += [entry["VisibilityTimeout"] for entry in Entries]
        if self.refusal is not None:
            raise self.refusal
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}


def source_of(client: Client) -> SQSSource:
    """Return a source that extends all that it receives."""
    options = SQSOptions(region="us-east-1")
    capabilities = SQSDriver("t", "", options).capabilities
    source = SQSSource("s", QUEUE, Context(options, "t", client, capabilities, nothing, nothing))
    source.lease = 0.0
    return source


@pytest.mark.parametrize(
    "refusal",
    [ClientError({"Error": {"Code": "InternalError"}}, "ChangeMessageVisibilityBatch"), asyncio.CancelledError()],
)
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_failed_turn_loses_nothing(refusal: BaseException, is_closed: bool) -> None:
    """R3, C1: the next turn has its messages, or the close gives them back."""

    async def scenario() -> None:
        client = Client(refusal)
        source = source_of(client)
        with pytest.raises((BrokerError, asyncio.CancelledError)):
            await source.fetch(10)
        client.refusal = None
        if is_closed:
            await source.finish_fetching()
            assert client.timeouts == [30, 0]
        else:
            assert [each.message_id for each in await source.fetch(10)] == ["1"]

    asyncio.run(scenario())


def test_the_lease_of_a_late_answer_began_when_it_was_asked_for() -> None:
    """R6: SQS took the message before the answer was on its way, which took long."""

    class Slow(Client):
        """A client whose answers are late."""

        async def receive_message(self, **_: Any) -> Mapping[str, Any]:
            await asyncio.sleep(0.3)
            return await super().receive_message()

    async def scenario() -> None:
        (found,) = await Calls(Slow(None), QUEUE, "s", 30).receive(10, 0, None)
        assert found.token.until < uptime() + 29.8

    asyncio.run(scenario())


def named(name: str, message_id: str) -> Delivery:
    return Delivery(name, b"x", {}, token=Receipt("h", 0.0, {"MessageId": message_id}))


def test_copies_keep_their_ids_while_they_are_here() -> None:
    """R7: a redelivery has the id of its message, also when the first one of that id has gone."""
    names = Names()
    first, copy = named("a", "1"), named("a", "2")
    for each in (first, copy):
        names.distinguish(each)
    assert (first.message_id, copy.message_id) == ("a", "a#2")
    again = named("a", "1")
    names.distinguish(again)
    assert again.message_id == "a"
    del first, again
    again = named("a", "2")
    names.distinguish(again)
    assert again.message_id == "a#2"
    del copy, again
    later = named("a", "2")
    names.distinguish(later)
    assert later.message_id == "a"
