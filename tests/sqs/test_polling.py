"""Requests to receive that nothing cuts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery
from events_sqs import poll_pace, polling
from events_sqs.poll_pace import PollPace
from events_sqs.polling import Polls

from ..waiting import until

AWAY = BrokerError("away", ErrorCode.UNAVAILABLE, retryable=True)


class Requests:
    """Requests to receive, whose answers a test gives."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, str | None]] = []
        self.answers: list[asyncio.Future[Sequence[Delivery]]] = []

    async def __call__(self, limit: int, wait: int, attempt_id: str | None) -> Sequence[Delivery]:
        self.asked.append((limit, wait, attempt_id))
        answer: asyncio.Future[Sequence[Delivery]] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        return await answer


class Receiver:
    """The requests of a receiver, and what it gives back."""

    def __init__(self, *, is_fifo: bool = False) -> None:
        self.requests = Requests()
        self.polls = Polls(self.requests, self.give_back, 20, is_fifo=is_fifo)
        self.returned: list[Delivery] = []

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        self.returned += deliveries

    async def asks(self, count: int) -> None:
        """Wait until so many requests have been sent in all."""
        async with asyncio.timeout(60):
            while len(self.requests.asked) < count:
                await asyncio.sleep(0.001)


def deliveries(count: int) -> list[Delivery]:
    return [Delivery(str(number), b"x", {}) for number in range(count)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each full answer lead to one request more."""
    monkeypatch.setattr(poll_pace, "_FULL", 1)


async def cancelled(task: asyncio.Task[Sequence[Delivery]]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def receive_after_cancelling(receiver: Receiver) -> asyncio.Task[Sequence[Delivery]]:
    first = asyncio.create_task(receiver.polls.receive(100))
    await receiver.asks(1)
    await cancelled(first)
    return asyncio.create_task(receiver.polls.receive(100))


def test_cancelling_cuts_no_request() -> None:
    """R3: the next receive gets what the request of a cancelled one brings."""

    async def scenario() -> None:
        receiver = Receiver()
        second = await receive_after_cancelling(receiver)
        brought = deliveries(3)
        receiver.requests.answers[0].set_result(brought)
        assert await second == brought
        assert len(receiver.requests.asked) == 1

    asyncio.run(scenario())


def test_a_close_gives_back_what_a_request_brings() -> None:
    """C1: the request of a cancelled receive goes on, and its messages go back as soon as they come."""

    async def scenario() -> None:
        receiver = Receiver()
        second = await receive_after_cancelling(receiver)
        await cancelled(second)
        finishing = asyncio.create_task(receiver.polls.finish())
        await asyncio.sleep(0)
        brought = deliveries(3)
        receiver.requests.answers[0].set_result(brought)
        await finishing
        assert receiver.returned == brought
        await receiver.polls.close(60)
        assert receiver.returned == brought

    asyncio.run(scenario())


def test_a_request_that_is_cut_is_repeated_on_fifo() -> None:
    """C1: a FIFO queue repeats the answer for the same ReceiveRequestAttemptId, and the messages go back."""

    async def scenario() -> None:
        receiver = Receiver(is_fifo=True)
        await cancelled(await receive_after_cancelling(receiver))
        closing = asyncio.create_task(receiver.polls.close(0.01))
        await receiver.asks(2)
        (_, wait, first), (_, second_wait, second) = receiver.requests.asked
        assert (wait, second_wait) == (20, 0)
        assert first is not None
        assert first == second
        brought = deliveries(2)
        receiver.requests.answers[1].set_result(brought)
        await closing
        assert receiver.requests.answers[0].cancelled()
        assert receiver.returned == brought

    asyncio.run(scenario())


def test_a_request_that_is_cut_is_not_repeated_on_a_standard_queue() -> None:
    """C1: a standard queue repeats nothing; the messages come again when their visibility timeout is over."""

    async def scenario() -> None:
        receiver = Receiver()
        await cancelled(await receive_after_cancelling(receiver))
        await receiver.polls.close(0.01)
        assert receiver.requests.answers[0].cancelled()
        assert (len(receiver.requests.asked), receiver.returned) == (1, [])

    asyncio.run(scenario())


def test_a_close_may_cut_without_giving_back() -> None:
    """C1: for a queue that is deleted, nothing is repeated."""

    async def scenario() -> None:
        receiver = Receiver(is_fifo=True)
        await cancelled(await receive_after_cancelling(receiver))
        await receiver.polls.cut()
        assert receiver.requests.answers[0].cancelled()
        assert (len(receiver.requests.asked), receiver.returned) == (1, [])

    asyncio.run(scenario())


def test_what_is_kept_comes_again_before_anything_else() -> None:
    """R3: a turn that failed loses nothing, and the order stays."""

    async def scenario() -> None:
        receiver = Receiver()
        kept = deliveries(3)
        receiver.polls.keep(kept)
        assert await receiver.polls.receive(100) == kept
        receiver.polls.keep(kept)
        await receiver.polls.finish()
        assert receiver.returned == kept

    asyncio.run(scenario())


def test_a_lost_answer_is_asked_for_again_on_fifo() -> None:
    """F1: after a failed request, the next one has the same attempt id; after an answer, another one."""

    async def scenario() -> None:
        receiver = Receiver(is_fifo=True)
        ids = []
        for number, result in enumerate([AWAY, [], []]):
            receiving = asyncio.create_task(receiver.polls.receive(10))
            await receiver.asks(number + 1)
            answer = receiver.requests.answers[number]
            if isinstance(result, BrokerError):
                answer.set_exception(result)
                with pytest.raises(BrokerError):
                    await receiving
            else:
                answer.set_result(result)
                assert await receiving == []
            ids.append(receiver.requests.asked[number][2])
        assert ids[0] == ids[1] != ids[2]

    asyncio.run(scenario())


async def lose_an_answer(receiver: Receiver) -> str | None:
    """Let a request fail; return its attempt id."""
    receiving = asyncio.create_task(receiver.polls.receive(10))
    await receiver.asks(1)
    receiver.requests.answers[0].set_exception(AWAY)
    with pytest.raises(BrokerError):
        await receiving
    return receiver.requests.asked[0][2]


@pytest.mark.parametrize("is_lost_by_the_close", [True, False])
def test_a_close_asks_for_a_lost_answer_again_on_fifo(is_lost_by_the_close: bool) -> None:
    """C1: an answer that was lost just before the close may have brought messages, and they go back."""

    async def scenario() -> None:
        receiver = Receiver(is_fifo=True)
        if is_lost_by_the_close:
            receiving = asyncio.create_task(receiver.polls.receive(10))
            await receiver.asks(1)
            await cancelled(receiving)
            lost = receiver.requests.asked[0][2]
            receiver.requests.answers[0].set_exception(AWAY)
            await receiver.polls.finish()
        else:
            lost = await lose_an_answer(receiver)
        closing = asyncio.create_task(receiver.polls.close(0.01))
        await receiver.asks(2)
        assert receiver.requests.asked[1] == (10, 0, lost)
        brought = deliveries(2)
        receiver.requests.answers[1].set_result(brought)
        await closing
        assert receiver.returned == brought

    asyncio.run(scenario())


def test_what_a_cancelled_close_got_is_given_back_by_the_next(eager: None) -> None:
    """C1: an answer came, another one did not, and the close was cancelled while it waited."""

    async def scenario() -> None:
        receiver = Receiver()
        receiving = asyncio.create_task(receiver.polls.receive(100))
        await receiver.asks(1)
        receiver.requests.answers[0].set_result(deliveries(10))
        await receiving
        await cancelled_when_asked(receiver, 3)
        closing = asyncio.create_task(receiver.polls.close(60))
        await asyncio.sleep(0)
        brought = deliveries(4)
        receiver.requests.answers[1].set_result(brought)
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await until(receiver.requests.answers[2].cancelled)
        await receiver.polls.close(0.01)
        assert receiver.returned == brought

    asyncio.run(scenario())


async def cancelled_when_asked(receiver: Receiver, count: int) -> None:
    """Receive, and cancel that when *count* requests have been sent in all."""
    receiving = asyncio.create_task(receiver.polls.receive(90))
    await receiver.asks(count)
    await cancelled(receiving)


def test_a_failure_is_followed_by_a_request_that_does_not_wait() -> None:
    """F1: the end of an outage is noticed at once, and not after a long poll."""

    async def scenario() -> None:
        receiver = Receiver()
        results: list[BrokerError | list[Delivery]] = [[], AWAY, AWAY, [], []]
        for number, result in enumerate(results):
            receiving = asyncio.create_task(receiver.polls.receive(10))
            await receiver.asks(number + 1)
            if isinstance(result, BrokerError):
                receiver.requests.answers[number].set_exception(result)
            else:
                receiver.requests.answers[number].set_result(result)
            await asyncio.wait([receiving])
            assert (receiving.exception() is None) is isinstance(result, list)
        assert [wait for _, wait, _ in receiver.requests.asked] == [20, 20, 0, 0, 20]

    asyncio.run(scenario())


@pytest.mark.parametrize(("is_fifo", "wait"), [(False, 1), (True, 0)])
def test_full_answers_lead_to_several_requests_that_wait_little(eager: None, is_fifo: bool, wait: int) -> None:
    """A backlog is fetched with several requests at once, within the room that there is."""

    async def scenario() -> None:
        receiver = Receiver(is_fifo=is_fifo)
        receiving = asyncio.create_task(receiver.polls.receive(100))
        await receiver.asks(1)
        receiver.requests.answers[0].set_result(deliveries(10))
        await receiving
        receiving = asyncio.create_task(receiver.polls.receive(90))
        await receiver.asks(3)
        assert [asked[:2] for asked in receiver.requests.asked] == [(10, 20), (10, wait), (10, wait)]
        receiver.requests.answers[1].set_result(deliveries(10))
        receiver.requests.answers[2].set_result(deliveries(4))
        assert len(await receiving) == 14

    asyncio.run(scenario())


def test_a_request_that_waits_in_vain_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is empty when others are full.  When its late answer comes, that says nothing about a newer backlog."""
    learned: list[list[int]] = []
    monkeypatch.setattr(polling, "_STRAGGLERS", 0.01)
    monkeypatch.setattr(PollPace, "count", lambda *_: 2)
    monkeypatch.setattr(PollPace, "answered", lambda _, sizes, *__: learned.append([*sizes]))

    async def scenario() -> None:
        receiver = Receiver()

        async def receive(asked: int, answered: dict[int, int]) -> int:
            receiving = asyncio.create_task(receiver.polls.receive(100))
            await receiver.asks(asked)
            for number, count in answered.items():
                receiver.requests.answers[number].set_result(deliveries(count))
            return len(await receiving)

        assert await receive(2, {0: 10}) == 10  # the second one waits at SQS
        assert await receive(4, {1: 0}) == 0
        assert await receive(4, {2: 10, 3: 7}) == 17

    asyncio.run(scenario())
    assert learned == [[10, 0], [10, 7]]


def test_a_late_answer_does_not_stop_receiving(eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a connection is silent, further requests are sent over others; the late answer is used when it comes."""
    monkeypatch.setattr(polling, "_STRAGGLERS", 0.01)

    async def scenario() -> None:
        receiver = Receiver()
        receiving = asyncio.create_task(receiver.polls.receive(100))
        await receiver.asks(1)
        receiver.requests.answers[0].set_result(deliveries(10))
        await receiving
        receiving = asyncio.create_task(receiver.polls.receive(90))
        await receiver.asks(3)
        receiver.requests.answers[1].set_result(deliveries(10))
        assert len(await receiving) == 10
        receiving = asyncio.create_task(receiver.polls.receive(80))
        await receiver.asks(4)
        receiver.requests.answers[2].set_result(deliveries(7))
        assert len(await receiving) == 7
        receiving = asyncio.create_task(receiver.polls.receive(80))
        for answer in receiver.requests.answers[3:]:
            answer.set_result([])
        await receiving

    asyncio.run(scenario())


@pytest.mark.parametrize("failure", [AWAY, RuntimeError("of the client library")])
def test_one_failure_does_not_hide_the_other_answers(eager: None, failure: Exception) -> None:
    """If one of several requests fails, the messages of the others are returned."""

    async def scenario() -> None:
        receiver = Receiver()
        receiving = asyncio.create_task(receiver.polls.receive(100))
        await receiver.asks(1)
        receiver.requests.answers[0].set_result(deliveries(10))
        await receiving
        receiving = asyncio.create_task(receiver.polls.receive(90))
        await receiver.asks(3)
        receiver.requests.answers[1].set_exception(failure)
        receiver.requests.answers[2].set_result(deliveries(4))
        assert len(await receiving) == 4

    asyncio.run(scenario())
