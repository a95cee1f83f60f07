"""``processing`` and ``consume``: everyday code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import pickle
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import attrs
import pytest

from events_core import (
    AcknowledgeError,
    ErrorCode,
    EventClient,
    EventConfig,
    EventMessage,
    EventReceiver,
    ReceivedMessage,
    Reject,
    RetryAfter,
    consume,
    create_client,
)
from events_core import consuming as consuming_module
from events_core.backends import memory
from events_core.backends.memory import MemorySource
from events_core.engine import BrokerError, Outcome, Settlement, dead_letter_attributes, log_dead_letter

from .network_memory import NetworkClient, outage

REQUEST = contextvars.ContextVar("REQUEST", default="")


def run(test: Callable[[EventClient, EventReceiver], Awaitable[None]], **options: str) -> None:
    """Run *test* with a client of a fresh topic, and a receiver."""

    async def main() -> None:
        config = EventConfig(uuid.uuid4().hex, options={"subscription": "s", **options}, backend="memory")
        async with asyncio.timeout(60), create_client(config) as client, await client.subscribe() as receiver:
            await test(client, receiver)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def numbered(count: int, key: str | None = None) -> list[EventMessage]:
    return [EventMessage.from_string(str(number), ordering_key=key) for number in range(count)]


async def next_of(receiver: EventReceiver) -> ReceivedMessage:
    message = await receiver.receive_message(60)
    assert message is not None
    return message


def test_success_acknowledges() -> None:
    """H1: a message whose block succeeds is acknowledged."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        async with receiver.processing(await next_of(receiver)) as message:
            assert message.data == b"x"
        assert receiver.stats.held == 0
        assert await receiver.receive_message(0) is None

    run(test)


def test_an_exception_nacks_and_goes_on() -> None:
    """H1: a message whose block raises comes again, and its attempt is counted."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        with pytest.raises(LookupError):
            async with receiver.processing(await next_of(receiver)):
                raise LookupError
        assert (await next_of(receiver)).delivery_attempt == 2

    run(test)


def test_cancellation_hands_back() -> None:
    """H1: a message whose block is cancelled comes again at once, and its attempt is not counted."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        message = await next_of(receiver)

        async def process() -> None:
            async with receiver.processing(message):
                await asyncio.sleep(60)

        task = asyncio.create_task(process())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        again = await receiver.receive_message(0)
        assert again is not None
        assert again.delivery_attempt == 1

    run(test)


def test_a_delivery_that_expired_meanwhile_is_logged_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """H1: the end of the block logs the expiry, and raises nothing."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        async with receiver.processing(await next_of(receiver)):
            await asyncio.sleep(0.3)

    with caplog.at_level(logging.WARNING):
        run(test, max_lease_duration="0.1")
    assert "expired; it usually comes again" in caplog.text


def test_acknowledging_what_was_nacked_inside_is_an_error() -> None:
    """H1: any failure to acknowledge except an expiry is raised."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        message = await next_of(receiver)
        with pytest.raises(AcknowledgeError) as caught:
            async with receiver.processing(message):
                await receiver.nack(message)
        assert caught.value.code is ErrorCode.ALREADY_SETTLED

    run(test)


def test_consume_handles_at_most_so_many_at_once() -> None:
    """H2: as many handlers run at once as the concurrency says, and never more."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(30))
        running = peak = done = 0
        stop = asyncio.Event()

        async def handle(_: ReceivedMessage) -> None:
            nonlocal running, peak, done
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0)
            running -= 1
            done += 1
            if done == 30:
                stop.set()

        await consume(receiver, handle, concurrency=5, stop=stop)
        assert (peak, done, receiver.stats.held) == (5, 30, 0)

    run(test)


def test_consume_keeps_the_order_of_a_key() -> None:
    """H2: messages of a key are handled in order, with any concurrency, also after failures."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(20, "k"))
        handled: list[str] = []
        stop = asyncio.Event()
        failing = {"3", "7"}

        async def handle(message: ReceivedMessage) -> None:
            text = message.data_as_string()
            if text in failing:
                failing.remove(text)
                raise LookupError(text)
            await asyncio.sleep(0)
            handled.append(text)
            if len(handled) == 20:
                stop.set()

        await consume(receiver, handle, concurrency=4, stop=stop)
        assert handled == [str(number) for number in range(20)]

    run(test)


def test_a_failing_handler_is_logged_and_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    """H2: the failure is in the log, and the message comes again."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            if message.delivery_attempt == 1:
                raise LookupError("no luck")
            stop.set()

        await consume(receiver, handle, stop=stop)

    run(test)
    assert "no luck" in caplog.text


def test_a_failure_is_logged_before_its_message_is_settled(caplog: pytest.LogCaptureFixture) -> None:
    """H2: the log shows the last failure of a message first, and then that the message became a dead letter."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            stop.set()
            raise LookupError

        await consume(receiver, handle, stop=stop)

    run(test, max_delivery_attempts="1", dead_letter_topic=uuid.uuid4().hex)
    failed, moved = (record.message for record in caplog.records if record.levelno >= logging.WARNING)
    assert failed.startswith("the handler failed on message")
    assert "was moved to dead-letter topic" in moved


def test_a_handler_that_awaited_what_was_cancelled_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    """H2: its message is nacked and the attempt counted; only a cancelled consume hands messages back."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            if message.delivery_attempt == 2:
                stop.set()
                return
            shared = asyncio.ensure_future(asyncio.sleep(60))
            shared.cancel()
            await shared

        await consume(receiver, handle, stop=stop)
        assert stop.is_set()

    run(test)
    assert "the handler failed" in caplog.text


def test_stopping_lets_handlers_finish() -> None:
    """H2: when stop is set, running handlers finish and no message is received."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(3))
        started, finished = asyncio.Event(), []
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            started.set()
            await asyncio.sleep(0.05)
            finished.append(message.data)

        consuming = asyncio.create_task(consume(receiver, handle, stop=stop))
        await started.wait()
        stop.set()
        await consuming
        assert finished == [b"0"]
        assert len(await receiver.receive_messages(10, 0)) == 2

    run(test)


def test_stopping_ends_a_wait_for_messages() -> None:
    """H2: stop ends a receive that waits."""

    async def test(_: EventClient, receiver: EventReceiver) -> None:
        stop = asyncio.Event()

        async def handle(_: ReceivedMessage) -> None: ...

        consuming = asyncio.create_task(consume(receiver, handle, concurrency=3, stop=stop))
        await asyncio.sleep(0.01)
        stop.set()
        await asyncio.wait_for(consuming, 60)

    run(test)


def test_stopping_is_noticed_where_nothing_ever_waits() -> None:
    """H2: stop works although neither the receiver nor the handler ever gives the loop a turn."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(200))
        handled: list[bytes] = []
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            if not handled:
                asyncio.get_running_loop().call_soon(stop.set)
            handled.append(message.data)
            time.sleep(0.005)  # noqa: ASYNC251  # as a handler that computes

        await consume(receiver, handle, stop=stop)
        assert len(handled) < 200

    run(test)


def test_cancelling_hands_back_what_is_in_hand() -> None:
    """H2: a cancelled consume hands its messages back before it ends, and their attempts are not counted."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(2))
        started = asyncio.Event()

        async def handle(_: ReceivedMessage) -> None:
            started.set()
            await asyncio.sleep(60)

        consuming = asyncio.create_task(consume(receiver, handle, concurrency=2))
        await started.wait()
        consuming.cancel()
        await asyncio.wait([consuming])
        assert consuming.cancelled()
        assert receiver.stats.held == 0
        assert [each.delivery_attempt for each in await receiver.receive_messages(10, 0)] == [1, 1]

    run(test)


def test_cancelling_ends_it_whatever_a_handler_makes_of_that() -> None:
    """H2: a handler that turns its cancellation into another error does not keep consume running."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(2))
        started = asyncio.Event()

        async def handle(_: ReceivedMessage) -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise LookupError("no luck") from None

        consuming = asyncio.create_task(consume(receiver, handle))
        await started.wait()
        consuming.cancel()
        await asyncio.wait([consuming], timeout=60)
        assert consuming.cancelled()

    run(test)


def test_closing_the_receiver_ends_it() -> None:
    """H2: consume returns without an error when its receiver is closed."""

    async def test(_: EventClient, receiver: EventReceiver) -> None:
        async def handle(_: ReceivedMessage) -> None: ...

        consuming = asyncio.create_task(consume(receiver, handle, concurrency=2))
        await asyncio.sleep(0)
        await receiver.close()
        await asyncio.wait_for(consuming, 60)

    run(test)


def test_concurrency_is_a_whole_number() -> None:
    """H2: half a worker is a TypeError at once."""

    async def test(_: EventClient, receiver: EventReceiver) -> None:
        half: Any = 1.5
        with pytest.raises(TypeError, match="concurrency must be an int"):
            await consume(receiver, print, concurrency=half, threads=True)

    run(test)


def test_concurrency_must_be_positive() -> None:
    """H2: a concurrency below 1 is a ValueError at once."""

    async def test(_: EventClient, receiver: EventReceiver) -> None:
        async def handle(_: ReceivedMessage) -> None: ...

        with pytest.raises(ValueError, match="concurrency"):
            await consume(receiver, handle, concurrency=0)

    run(test)


async def handled_with_an_outage(decide: Callable[[list[str]], None], **options: str) -> list[str]:
    """Consume two messages of a key, with an outage longer than ack_timeout in the first call of the handler.

    :param decide: called in the handler with the messages handled so far; it may raise.
    :returns: the messages that were handled, until the second one was.
    """
    config = EventConfig(uuid.uuid4().hex, options={"ack_timeout": "0.2", **options})
    async with NetworkClient(config) as client, await client.subscribe("s") as receiver:
        await client.send_messages(numbered(2, "key"))
        handled: list[str] = []
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            handled.append(message.data_as_string())
            if len(handled) == 1:
                stack.enter_context(outage())
                stack.callback(setattr, receiver._settler, "_timeout", 60)  # type: ignore[attr-defined]
                asyncio.get_running_loop().call_later(0.5, stack.close)
            decide(handled)
            if handled[-1] == "1":
                stop.set()

        with ExitStack() as stack:
            await consume(receiver, handle, stop=stop)
        return handled


@pytest.mark.parametrize("fails", [False, True])
def test_what_could_not_be_settled_is_settled_later(fails: bool) -> None:
    """H2, S5: an outage longer than ack_timeout does not keep a key waiting until max_lease_duration is over."""

    def decide(handled: list[str]) -> None:
        if fails and len(handled) == 1:
            raise LookupError("no luck")

    handled = asyncio.run(asyncio.wait_for(handled_with_an_outage(decide), 60))
    assert handled == (["0", "0", "1"] if fails else ["0", "1"])


def test_stopping_does_not_wait_for_what_cannot_be_settled() -> None:
    """H2: a message that cannot be settled does not delay stop, and stays held."""

    async def main() -> None:
        config = EventConfig(uuid.uuid4().hex, options={"ack_timeout": "0.1"})
        async with asyncio.timeout(60), NetworkClient(config) as client, await client.subscribe("s") as receiver:
            await client.send_message(EventMessage(b"x"))
            stop = asyncio.Event()

            async def handle(_: ReceivedMessage) -> None:
                stack.enter_context(outage())
                asyncio.get_running_loop().call_later(0.5, stop.set)

            with ExitStack() as stack:
                await consume(receiver, handle, stop=stop)
                assert receiver.stats.held == 1

    asyncio.run(main())


def test_a_delay_beyond_the_limit_is_shortened_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """H3: the message is nacked with the broker's longest delay."""

    class HastySource(MemorySource):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            limits = attrs.evolve(self.capabilities.limits, max_nack_delay=0.1)
            self.capabilities = attrs.evolve(self.capabilities, limits=limits)

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        with pytest.raises(RetryAfter):
            async with receiver.processing(await next_of(receiver)):
                raise RetryAfter(3600)
        assert (await next_of(receiver)).delivery_attempt == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "MemorySource", HastySource)
        run(test)
    assert "a delay of 3600 s was asked; the backend delays 0.1 s at most, and uses that" in caplog.text


def test_what_cannot_be_dead_lettered_is_nacked(caplog: pytest.LogCaptureFixture) -> None:
    """H3: a letter that the broker refuses for good leaves no message held."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        with pytest.raises(Reject):
            async with receiver.processing(await next_of(receiver)):
                raise Reject("no total")
        assert (await next_of(receiver)).delivery_attempt == 2

    settle = MemorySource.settle

    async def refused_rejection(self: MemorySource, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        if settlements[0].outcome is Outcome.REJECT:
            return [BrokerError("the role pubsub.publisher is missing", ErrorCode.PERMISSION_DENIED)]
        return await settle(self, settlements)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemorySource, "settle", refused_rejection)
        run(test, dead_letter_topic="dead", max_delivery_attempts="5")
    assert "was rejected (no total), and it cannot be dead-lettered" in caplog.text
    assert "the role pubsub.publisher is missing" in caplog.text


def test_a_decision_is_no_failure_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    """H3: consume logs no failure for Reject and RetryAfter."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(2))
        stop = asyncio.Event()

        async def handle(message: ReceivedMessage) -> None:
            if message.data == b"0":
                raise Reject("no total")
            if message.delivery_attempt == 1:
                raise RetryAfter(0.01)
            stop.set()

        await consume(receiver, handle, stop=stop)

    run(test, dead_letter_topic="dead", max_delivery_attempts="5")
    assert "the handler failed" not in caplog.text
    assert "was rejected at attempt 1" in caplog.text
    assert caplog.text.count("no total") == 1


@pytest.mark.parametrize(("seconds", "error"), [(-1, ValueError), (float("inf"), ValueError), ("5", TypeError)])
def test_an_impossible_delay_is_an_error_of_the_handler(seconds: Any, error: type[Exception]) -> None:
    """H3: RetryAfter refuses it when it is made, so the traceback names the line in the handler."""
    with pytest.raises(error, match="seconds"):
        RetryAfter(seconds)


def test_a_reason_that_is_no_text_is_an_error_of_the_handler() -> None:
    """H3: Reject refuses it when it is made, so the traceback names the line in the handler."""
    error: Any = ValueError("no total")
    with pytest.raises(TypeError, match="reason"):
        Reject(error)


def test_rejecting_with_a_reason_that_is_no_text_changes_nothing() -> None:
    """S6: it is a TypeError, and the message stays held."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x", ordering_key="k"))
        message = await next_of(receiver)
        reason: Any = ValueError("no total")
        with pytest.raises(TypeError, match="reason"):
            await receiver.reject(message, reason)
        await receiver.nack(message, delay=0)
        assert await next_of(receiver) == message

    run(test, dead_letter_topic="dead", max_delivery_attempts="5")


def test_a_decision_can_be_pickled() -> None:
    """H3: both exceptions survive pickling, so that a handler may run in a process pool."""
    rejected, later = pickle.loads(pickle.dumps([Reject("no total"), RetryAfter(5)]))
    assert (rejected.reason, later.seconds) == ("no total", 5.0)


def test_a_rejected_message_that_could_not_be_settled_comes_again() -> None:
    """H3, S5: after an outage longer than ack_timeout, it comes again and is rejected again."""

    def decide(handled: list[str]) -> None:
        if handled[-1] == "0":
            raise Reject("no total")

    options = {"dead_letter_topic": uuid.uuid4().hex, "max_delivery_attempts": "9"}
    handled = asyncio.run(asyncio.wait_for(handled_with_an_outage(decide, **options), 60))
    # On a stalled machine the rejection may just be in time.
    assert handled in (["0", "0", "1"], ["0", "1"])


def test_a_long_reason_is_shortened_in_the_letter() -> None:
    """S6: a broker would refuse a letter whose attribute is too long."""
    attributes = dead_letter_attributes(
        {}, topic_name="t", subscription="s", message_id="1", attempts=1, reason="\ud800" + "é" * 1000
    )
    assert attributes["dead_letter_reason"] == "?" + "é" * 511


def test_a_long_reason_is_shortened_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """V1: a handler may put a whole document into its reason; the log gets as much of it as the letter."""
    log_dead_letter("1", attempts=1, subscription="s", dead_letter_topic="d", reason="é" * 1000)
    assert caplog.text.count("é") == 512


@pytest.mark.parametrize("handler", [None, "handle", 7])
def test_a_handler_that_cannot_be_called_is_refused(handler: Any) -> None:
    """H2: the TypeError is raised before a message is received."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        with pytest.raises(TypeError, match="handler must be callable"):
            await consume(receiver, handler)
        assert receiver.stats.held == 0
        assert (await next_of(receiver)).delivery_attempt == 1

    run(test)


@pytest.mark.parametrize("join", [False, True])
def test_what_is_no_receiver_is_refused(join: bool) -> None:
    """H2: a client, or a subscription that is not joined yet, is a TypeError that shows how to join it."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        no_receiver: Any = client.subscribe() if join else client
        handler: Any = print
        with pytest.raises(TypeError, match=r"receiver must be an EventReceiver, .*'async with client\.subscribe"):
            await consume(no_receiver, handler)
        if join:
            no_receiver.close()

    run(test)


@pytest.mark.parametrize(
    ("stop", "kind"),
    [(threading.Event(), "threading.Event"), (asyncio.Event, "builtins.type"), (True, "builtins.bool")],
)
def test_what_cannot_stop_it_is_refused(stop: Any, kind: str) -> None:
    """H2: an event of another library would block the event loop; it is a TypeError before a message is received."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        with pytest.raises(TypeError, match=f"stop must be an asyncio.Event, not a {kind}"):
            await consume(receiver, print, stop=stop, threads=True)
        assert receiver.stats.held == 0

    run(test)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_plain_function_is_called_once_and_refused(concurrency: int) -> None:
    """H2: its message goes back with its attempt not counted, and consume raises TypeError."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(5))
        handled: list[bytes] = []
        plain: Any = lambda message: handled.append(message.data)  # noqa: E731
        with pytest.raises(TypeError, match="returned None, which cannot be awaited"):
            await consume(receiver, plain, concurrency=concurrency)
        assert handled == [b"0"]
        assert receiver.stats.held == 0
        assert sorted(each.data for each in await receiver.receive_messages(10, 60)) == [b"0", b"1", b"2", b"3", b"4"]

    run(test)


def test_a_refused_function_lets_other_handlers_finish() -> None:
    """H2: other messages are acknowledged before the TypeError is raised."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(2))
        finished: list[bytes] = []

        async def slow(message: ReceivedMessage) -> None:
            await asyncio.sleep(0.05)
            finished.append(message.data)

        either: Any = lambda message: slow(message) if message.data == b"0" else None  # noqa: E731
        with pytest.raises(TypeError):
            await consume(receiver, either, concurrency=2)
        assert finished == [b"0"]
        (left,) = await receiver.receive_messages(10, 60)
        assert (left.data, left.delivery_attempt) == (b"1", 1)

    run(test)


def test_any_awaitable_will_do() -> None:
    """H2: a handler may return a future."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        stop = asyncio.Event()

        def handle(_: ReceivedMessage) -> asyncio.Future[None]:
            stop.set()
            return asyncio.ensure_future(asyncio.sleep(0))

        await consume(receiver, handle, stop=stop)
        assert await receiver.receive_message(0) is None

    run(test)


def test_functions_run_in_threads() -> None:
    """H2: as many functions run at once as the concurrency says, in threads, with the caller's context variables."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(6))
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        together = threading.Barrier(3)
        lock = threading.Lock()
        handled: list[str] = []
        threads: set[int] = set()
        REQUEST.set("mine")

        def handle(message: ReceivedMessage) -> None:
            together.wait(60)
            with lock:
                threads.add(threading.get_ident())
                handled.append(f"{message.data_as_string()} {REQUEST.get()}")
                if len(handled) == 6:
                    loop.call_soon_threadsafe(stop.set)

        await consume(receiver, handle, concurrency=3, stop=stop, threads=True)
        assert sorted(handled) == [f"{number} mine" for number in range(6)]
        assert len(threads) == 3
        assert threading.get_ident() not in threads
        assert await receiver.receive_message(0) is None

    run(test)


def test_a_function_in_a_thread_fails_as_a_coroutine_does(caplog: pytest.LogCaptureFixture) -> None:
    """H2, H3: exceptions, also StopIteration, and decisions of a function in a thread reach consume."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(3))
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        handled: list[str] = []

        def handle(message: ReceivedMessage) -> None:
            handled.append(message.data_as_string())
            if len(handled) == 5:
                loop.call_soon_threadsafe(stop.set)
            if message.delivery_attempt == 1:
                raise {b"0": LookupError("no luck"), b"1": StopIteration(), b"2": Reject("no total")}[message.data]

        await consume(receiver, handle, stop=stop, threads=True)
        assert sorted(handled) == ["0", "0", "1", "1", "2"]

    run(test, dead_letter_topic="dead", max_delivery_attempts="5")
    assert "no luck" in caplog.text
    assert "StopIteration" in caplog.text
    assert "rejected at attempt 1" in caplog.text


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError, concurrent.futures.CancelledError], ids=["asyncio", "futures"]
)
def test_a_function_in_a_thread_that_meets_a_cancellation_has_failed(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """H2: the cancellation of something else does not end the worker."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        attempts: list[int | None] = []

        def handle(message: ReceivedMessage) -> None:
            attempts.append(message.delivery_attempt)
            if len(attempts) == 1:
                raise error
            loop.call_soon_threadsafe(stop.set)

        await consume(receiver, handle, stop=stop, threads=True)
        assert attempts == [1, 2]

    run(test)
    assert "the handler raised CancelledError()" in caplog.text


def test_a_coroutine_function_in_a_thread_is_called_once_and_refused() -> None:
    """H2: the coroutine that it returns cannot be awaited in a thread."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))

        async def handle(_: ReceivedMessage) -> None: ...

        with pytest.raises(TypeError, match="leave out threads=True"):
            await consume(receiver, handle, threads=True)
        assert (await next_of(receiver)).delivery_attempt == 1

    run(test)


def generator(_: ReceivedMessage) -> Iterator[None]:
    yield


async def async_generator(_: ReceivedMessage) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("handler", [generator, async_generator])
def test_a_generator_in_a_thread_is_refused(handler: Callable[[ReceivedMessage], object]) -> None:
    """H2: calling it runs none of its code, so its message goes back instead of being acknowledged."""

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        with pytest.raises(TypeError, match="the handler is a generator, none of whose code has run"):
            await consume(receiver, handler, threads=True)
        assert await receiver.receive_message(60) is not None

    run(test)


def test_a_cancelled_consume_waits_for_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: a function that ends soon after the cancellation has its message acknowledged."""
    monkeypatch.setattr(consuming_module, "THREAD_PATIENCE", 60)

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_messages(numbered(2))
        loop, started, released = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def handle(_: ReceivedMessage) -> None:
            loop.call_soon_threadsafe(started.set)
            assert released.wait(60)

        consuming = asyncio.create_task(consume(receiver, handle, threads=True))
        await started.wait()
        consuming.cancel()
        await asyncio.sleep(0)
        assert not consuming.done()
        released.set()
        await asyncio.wait([consuming])
        assert consuming.cancelled()
        assert [each.data for each in await receiver.receive_messages(10, 60)] == [b"1"]

    run(test)


def test_a_cancelled_consume_leaves_a_thread_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """H2: after its patience consume hands the message back and logs a warning."""
    monkeypatch.setattr(consuming_module, "THREAD_PATIENCE", 0.05)
    released = threading.Event()

    async def test(client: EventClient, receiver: EventReceiver) -> None:
        await client.send_message(EventMessage(b"x"))
        loop, started = asyncio.get_running_loop(), asyncio.Event()

        def handle(_: ReceivedMessage) -> None:
            loop.call_soon_threadsafe(started.set)
            assert released.wait(60)

        consuming = asyncio.create_task(consume(receiver, handle, threads=True))
        await started.wait()
        consuming.cancel()
        await asyncio.wait([consuming])
        assert consuming.cancelled()
        assert (await next_of(receiver)).delivery_attempt == 1

    try:
        run(test)
    finally:
        released.set()
    assert "still runs in its thread" in caplog.text
