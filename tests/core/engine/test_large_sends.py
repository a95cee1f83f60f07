"""Sends of so many messages that they would block the loop, on both kinds of homes."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from events_core import ErrorCode, EventConfig, EventMessage, EventReceiver, PublishError
from events_core.backends.memory import MemoryClient
from events_core.engine import BrokerError, EngineClient
from events_core.engine import client as client_module
from events_core.engine.loop_order import LoopOrder
from events_core.engine.publisher import AT_ONCE
from tests.core.network_memory import NetworkClient

LARGE = 4 * AT_ONCE + 1

Test = Callable[[EngineClient, EventReceiver], Awaitable[None]]
both = pytest.mark.parametrize("kind", [MemoryClient, NetworkClient])


def run(kind: type[EngineClient], test: Test, topic: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(180), kind(EventConfig(topic)) as client, await client.subscribe("s") as receiver:
            await test(client, receiver)

    asyncio.run(main())


def numbered(count: int, key: str | None = "k", start: int = 0) -> list[EventMessage]:
    return [EventMessage(b"%d" % number, ordering_key=key) for number in range(start, start + count)]


async def received(receiver: EventReceiver, count: int) -> list[int]:
    numbers: list[int] = []
    while len(numbers) < count:
        messages = await receiver.receive_messages(1000)
        numbers += [int(message.data) for message in messages]
        await receiver.acknowledge_messages(messages)
    return numbers


async def begun(client: EngineClient, messages: Sequence[EventMessage]) -> asyncio.Task[list[str]]:
    """Begin a send, and return its task when a part of it has been checked."""
    sending = asyncio.create_task(client.send_messages(messages))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not sending.done()
    return sending


class Meter:
    """A counter of calls in this thread, and of the most calls between two turns of other tasks."""

    def __init__(self) -> None:
        self.since = self.most = self.total = 0
        self._thread = threading.get_ident()

    def counts(self, function: Callable[..., Any], weigh: Callable[..., int] = lambda *_: 1) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            if threading.get_ident() == self._thread:
                self.since += weigh(*arguments)
                self.total += weigh(*arguments)
                self.most = max(self.most, self.since)
            return function(*arguments, **keywords)

        return counted

    async def watch(self) -> None:
        while True:
            self.since = 0
            await asyncio.sleep(0)


@contextmanager
def watched(meter: Meter) -> Iterator[None]:
    watching = asyncio.create_task(meter.watch())
    yield
    watching.cancel()


@both
def test_checking_a_large_send_gives_way_to_other_tasks(kind: type[EngineClient]) -> None:
    """P6: it yields after each part."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        meter = Meter()
        client._driver.objection = meter.counts(client._driver.objection)  # type: ignore[method-assign]
        with watched(meter):
            await client.send_messages(numbered(LARGE))
        assert (meter.total, meter.most) == (LARGE, AT_ONCE)

    run(kind, test, "checking")


def test_queueing_a_large_send_gives_way_to_other_tasks() -> None:
    """P6: this is for a driver in the engine's thread."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        meter = Meter()
        batcher = client._publisher._outbox.batcher
        batcher.add = meter.counts(batcher.add)  # type: ignore[method-assign]
        with watched(meter):
            await client.send_messages(numbered(LARGE))
        assert (meter.total, meter.most) == (LARGE, AT_ONCE)

    run(NetworkClient, test, "queueing")


def test_storing_a_large_send_gives_way_to_other_tasks() -> None:
    """P6: this is for a driver in the caller's thread."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        meter = Meter()
        client._driver.publish = meter.counts(client._driver.publish, len)  # type: ignore[method-assign]
        with watched(meter):
            await client.send_messages(numbered(LARGE))
        assert (meter.total, meter.most) == (LARGE, AT_ONCE)

    run(MemoryClient, test, "storing")


def test_reporting_the_failures_of_a_large_send_gives_way_to_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """P6: each message has an error of its own."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        async def failing(messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            return [BrokerError("refused", ErrorCode.PERMISSION_DENIED) for _ in messages]

        client._driver.publish = failing  # type: ignore[method-assign]
        meter = Meter()
        monkeypatch.setattr(client_module, "translate", meter.counts(client_module.translate))
        with watched(meter), pytest.raises(PublishError) as caught:
            await client.send_messages(numbered(LARGE, key=None))
        assert [type(result) for result in caught.value.results] == [PublishError] * LARGE
        assert (meter.total, meter.most) == (LARGE, AT_ONCE)

    run(MemoryClient, test, "reporting")


@both
def test_a_large_send_is_stored_whole_and_in_order(kind: type[EngineClient]) -> None:
    """P1, P4: each message has an id, in the order of the input."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        ids = await client.send_messages(numbered(LARGE))
        messages = await receiver.receive_messages(10)
        assert ids[: len(messages)] == [message.message_id for message in messages]
        await receiver.acknowledge_messages(messages)
        assert len(set(ids)) == LARGE
        assert await received(receiver, LARGE - len(messages)) == [*range(len(messages), LARGE)]

    run(kind, test, "whole")


@both
def test_sends_of_a_key_do_not_overtake_a_large_one_of_their_loop(kind: type[EngineClient]) -> None:
    """P4: neither small nor large sends overtake it."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        first = await begun(client, numbered(LARGE))
        second = asyncio.create_task(client.send_messages(numbered(1, start=LARGE)))
        third = asyncio.create_task(client.send_messages(numbered(LARGE, start=LARGE + 1)))
        fourth = asyncio.create_task(client.send_messages(numbered(2, start=2 * LARGE + 1)))
        assert await received(receiver, 2 * LARGE + 3) == [*range(2 * LARGE + 3)]
        await asyncio.gather(first, second, third, fourth)

    run(kind, test, "order")


def test_sends_without_a_key_do_not_wait_for_a_large_one() -> None:
    """P5: without a key there is no order to keep."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        first = await begun(client, numbered(LARGE))
        await client.send_messages(numbered(1, key=None))
        assert not first.done()
        await first

    run(MemoryClient, test, "overtaking")


@both
def test_a_bad_message_at_the_end_of_a_large_send_prevents_it(kind: type[EngineClient]) -> None:
    """P2: no message of the large send is sent."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        bad = EventMessage(b"", {"x" * 1000: ""})
        with pytest.raises(PublishError, match=f"message {LARGE}") as caught:
            await client.send_messages([*numbered(LARGE), bad])
        assert caught.value.code is ErrorCode.INVALID
        await client.send_messages(numbered(1, start=LARGE))
        assert await received(receiver, 1) == [LARGE]

    run(kind, test, "bad")


@both
def test_a_large_send_that_is_cancelled_leaves_a_beginning(kind: type[EngineClient]) -> None:
    """P8: later sends come after that beginning, and nothing more of it comes."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        sending = await begun(client, numbered(LARGE))
        following = asyncio.create_task(client.send_messages(numbered(1, start=LARGE)))
        while not client._publisher.is_busy:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        sending.cancel()
        await following
        assert sending.cancelled()
        numbers = await received(receiver, 1)
        while LARGE not in numbers:
            numbers += await received(receiver, 1)
        assert numbers == [*range(len(numbers) - 1), LARGE]
        assert len(numbers) < LARGE
        assert not client._publisher.is_busy

    run(kind, test, "cancelled")


@both
def test_a_large_send_whose_loop_was_closed_hinders_nobody(kind: type[EngineClient]) -> None:
    """P4, C2: neither sends of another loop nor the close wait for it."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)  # a task is destroyed while it is pending
        await asyncio.to_thread(_begin, loop, client)
        assert await client.send_messages(numbered(1, start=LARGE))
        loop.close()
        del loop
        with client._publisher._lock:
            gc.collect()
        assert not client._publisher.order.lines
        await receiver.close(timeout=0)
        await client.close(timeout=60)

    run(kind, test, "closed-loop")


def _begin(loop: asyncio.AbstractEventLoop, client: EngineClient) -> None:
    """Begin a large send, and keep no reference to it."""
    loop.run_until_complete(begun(client, numbered(LARGE)))


def test_a_failure_in_a_large_send_is_of_its_part_and_its_keys() -> None:
    """P3: later messages of a failed key are not attempted, and the others are sent."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        publish = client._driver.publish

        async def failing(messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            if any(message.data == b"bad" for message in messages):
                raise BrokerError("refused", ErrorCode.PERMISSION_DENIED)
            return await publish(messages)

        client._driver.publish = failing  # type: ignore[method-assign]
        messages = [*numbered(AT_ONCE, "a"), EventMessage(b"bad", ordering_key="b"), *numbered(AT_ONCE - 1, None)]
        with pytest.raises(PublishError) as caught:
            await client.send_messages([*messages, *numbered(2, "b"), *numbered(2, "a")])
        codes = [result if isinstance(result, str) else result.code for result in caught.value.results]
        assert all(isinstance(code, str) for code in codes[:AT_ONCE])
        assert codes[AT_ONCE : 2 * AT_ONCE] == [ErrorCode.PERMISSION_DENIED] * AT_ONCE
        assert codes[2 * AT_ONCE :][:2] == [ErrorCode.NOT_ATTEMPTED] * 2
        assert all(isinstance(code, str) for code in codes[-2:])

    run(MemoryClient, test, "failing")


@pytest.mark.parametrize("timeout", [60.0, 0.0])
def test_a_close_waits_for_a_large_send(timeout: float) -> None:
    """C2: it waits within its timeout, and then the rest fails with CLOSED."""

    async def test(client: EngineClient, receiver: EventReceiver) -> None:
        sending = await begun(client, numbered(LARGE))
        while not client._publisher.is_busy:
            await asyncio.sleep(0)
        await receiver.close(timeout=0)
        await client.close(timeout)
        (outcome,) = await asyncio.gather(sending, return_exceptions=True)
        if timeout:
            assert isinstance(outcome, list)
            assert len(outcome) == LARGE
        else:
            assert isinstance(outcome, PublishError)
            codes = [result if isinstance(result, str) else result.code for result in outcome.results]
            assert codes[-1] is ErrorCode.CLOSED

    run(MemoryClient, test, "closing")


def test_a_line_goes_on_when_somebody_in_it_gives_up() -> None:
    """P4: the order of the others is kept."""

    async def main() -> None:
        order, had = LoopOrder(), []

        async def enter(number: int) -> None:
            async with order.turn():
                had.append(number)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(enter(number)) for number in range(4)]
        await asyncio.sleep(0)
        assert order.is_here
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert had == [0, 2, 3]
        assert not order.is_here

    asyncio.run(main())
