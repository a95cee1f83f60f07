"""Promises of the memory backend beyond the contract."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Sequence

import pytest

from events_core import (
    AcknowledgeError,
    ErrorCode,
    EventConfig,
    EventMessage,
    EventRuntimeError,
    PublishError,
    ReceiveError,
    create_client,
)
from events_core.backends.memory import MemoryClient, MemoryDriver, MemorySource
from events_core.engine import BrokerError, Delivery, Settlement


def test_what_was_acknowledged_is_freed() -> None:
    """The engine remembers thousands of settled deliveries, but their data is freed at once."""

    async def scenario() -> None:
        data = bytes(1000)
        references = sys.getrefcount(data)
        config = EventConfig("freed", backend="memory")
        async with create_client(config) as client, await client.subscribe() as receiver:
            await client.send_message(EventMessage(data))
            message = await receiver.receive_message()
            assert message is not None
            await receiver.acknowledge(message)
            del message
            assert sys.getrefcount(data) == references

    asyncio.run(scenario())


def test_a_subscription_that_comes_while_another_thread_closes_the_client_goes_with_it() -> None:
    """C3: no receiver outlives its client."""

    class Driver(MemoryDriver):
        async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
            source = await super().subscribe(subscription, wake)
            closing = threading.Thread(target=lambda: asyncio.run(client.close(timeout=0)))
            closing.start()
            closing.join(60)
            return source

    class Client(MemoryClient):
        api_version = 1
        driver_class = Driver

    client = Client(EventConfig("closing"))
    with pytest.raises(EventRuntimeError) as caught:
        asyncio.run(client.subscribe("s"))
    assert caught.value.code is ErrorCode.CLOSED
    assert not client._receivers


def test_what_was_held_of_a_deleted_subscription_has_expired() -> None:
    """S3, F1: also when the subscription was created again; the receiver no longer counts it as held."""

    async def scenario() -> None:
        config = EventConfig("deleted", backend="memory")
        async with create_client(config) as client, await client.subscribe("s") as receiver:
            await client.send_message(EventMessage(b"x"))
            message = await receiver.receive_message()
            assert message is not None
            await client.delete_subscription("s")
            assert await receiver.receive_message(0) is None
            for _ in range(2):
                with pytest.raises(AcknowledgeError) as caught:
                    await receiver.acknowledge(message)
                assert caught.value.code is ErrorCode.EXPIRED
            assert receiver.stats.held == 0

    asyncio.run(scenario())


class _FailingSource(MemorySource):
    """A source that fails once when the test says so."""

    failing = ""

    def _fail(self, what: str) -> None:
        if self.failing == what:
            self.failing = ""
            raise OSError("the disk is full")

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        self._fail("fetch")
        return await super().fetch(limit)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        self._fail("settle")
        return await super().settle(settlements)


class _FailingDriver(MemoryDriver):
    """A driver that fails to publish bad messages."""

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        if messages[0].data == b"bad":
            raise OSError("the disk is full")
        return await super().publish(messages)

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
        return _FailingSource(self, subscription or "s", False, wake)


class _FailingClient(MemoryClient):
    api_version = 1
    driver_class = _FailingDriver


def test_a_mistake_of_an_inline_driver_is_a_failure_of_the_call() -> None:
    """S5, P7, F1: the error is ``INTERNAL``, and the next call tries again, as with a driver that has a thread."""

    async def scenario() -> None:
        async with _FailingClient(EventConfig("failing")) as client, await client.subscribe() as receiver:
            source = receiver._source  # type: ignore[attr-defined]  # the engine's receiver
            with pytest.raises(PublishError, match="the disk is full") as sending:
                await client.send_message(EventMessage(b"bad"))
            await client.send_message(EventMessage(b"x"))
            source.failing = "fetch"
            with pytest.raises(ReceiveError, match="the disk is full") as receiving:
                await receiver.receive_message(0)
            message = await receiver.receive_message(0)
            assert message is not None
            source.failing = "settle"
            with pytest.raises(AcknowledgeError, match="the disk is full") as settling:
                await receiver.acknowledge(message)
            await receiver.nack(message)
            assert {each.value.code for each in (sending, receiving, settling)} == {ErrorCode.INTERNAL}

    asyncio.run(scenario())


def test_a_missing_subscription_is_told_with_the_nearest() -> None:
    """The error suggests a similar name, when joining and when deleting."""

    async def scenario() -> None:
        config = EventConfig("mistyped", backend="memory")
        strict = EventConfig("mistyped", options={"create": "never"}, backend="memory")
        async with create_client(config) as client, create_client(strict) as other:
            await client.subscribe("billing")
            await client.subscribe()
            for joins in (other.subscribe("biling"), client.delete_subscription("biling")):
                with pytest.raises(ReceiveError, match=r"no subscription 'biling'.*; did you mean 'billing'") as caught:
                    await joins
                assert caught.value.code is ErrorCode.NOT_FOUND
            with pytest.raises(ReceiveError) as caught:
                await other.subscribe("ephemeral-1")
            assert "did you mean" not in str(caught.value)

    asyncio.run(scenario())


@pytest.mark.parametrize(("ordering", "attempts"), [("true", [2, 1]), ("false", [2, 2])])
def test_an_expiry_fails_the_first_message_of_a_key(ordering: str, attempts: list[int]) -> None:
    """R10: the later ones waited behind it, so they count no attempt.  Without order, each of them fails."""

    async def scenario() -> None:
        config = EventConfig(f"expiring-{ordering}", options={"ordering": ordering}, backend="memory")
        async with (
            create_client(EventConfig(config.topic_name, backend="memory")) as sending,
            create_client(config) as holding,
            create_client(config) as taking,
            holding.subscribe("s") as held,
            taking.subscribe("s") as other,
        ):
            await sending.send_messages([EventMessage(data, ordering_key="k") for data in (b"1", b"2")])
            assert len(await held.receive_messages(2)) == 2
            for item in held._source._held:  # type: ignore[attr-defined]
                item.deadline = 0.0
            again = await other.receive_messages(2, 60)
            assert [message.data for message in again] == [b"1", b"2"]
            assert [message.delivery_attempt for message in again] == attempts

    asyncio.run(scenario())


def test_a_topic_keeps_letters_no_longer_than_other_messages() -> None:
    """Letters past the retention go although nobody sends to their topic or joins it."""

    async def scenario() -> None:
        options = {"dead_letter_topic": "kept-failed", "max_delivery_attempts": "1"}
        config = EventConfig("keeping", options=options, backend="memory")
        letters = EventConfig("kept-failed", options={"retention": "1e-6"}, backend="memory")
        async with (
            create_client(config) as client,
            create_client(letters) as keeping,
            client.subscribe("s") as receiver,
        ):
            await keeping.ping()
            for _ in range(5):
                await client.send_message(EventMessage(b"x"))
                message = await receiver.receive_message()
                assert message is not None
                await receiver.reject(message)
            assert len(keeping._driver._topic.kept) <= 1  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_a_letter_is_logged_by_the_receiver_that_moves_it(caplog: pytest.LogCaptureFixture) -> None:
    """R12: also if a receiver of another client held the message too long."""

    async def scenario() -> None:
        options = {"dead_letter_topic": "failed", "max_delivery_attempts": "1", "max_lease_duration": "0.01"}
        config = EventConfig("overdue", options=options, backend="memory")
        async with create_client(config) as holding, create_client(config) as moving:
            held, other = await holding.subscribe("s"), await moving.subscribe("s")
            await holding.send_message(EventMessage(b"x"))
            assert await held.receive_message() is not None
            async with asyncio.timeout(60):
                while "was moved to dead-letter topic 'failed'" not in caplog.text:
                    assert await other.receive_message(0.01) is None

    asyncio.run(scenario())


def test_a_log_handler_may_ask_the_receiver_that_moves_a_letter() -> None:
    """R12: the letter is logged while no lock is held that the handler may need."""
    asked: list[int] = []

    async def scenario() -> None:
        options = {"dead_letter_topic": "failed", "max_delivery_attempts": "1"}
        config = EventConfig("logged", options=options, backend="memory")
        async with create_client(config) as client, await client.subscribe("s") as receiver:

            class Handler(logging.Handler):
                def emit(self, record: logging.LogRecord) -> None:
                    asked.append(receiver.stats.held)

            handler = Handler()
            logger = logging.getLogger("events_core.receiver")
            logger.addHandler(handler)
            try:
                await client.send_message(EventMessage(b"x"))
                message = await receiver.receive_message()
                assert message is not None
                await receiver.nack(message)
            finally:
                logger.removeHandler(handler)

    # In a thread, because a handler that waits for a lock of its own thread would never return.
    thread = threading.Thread(target=lambda: asyncio.run(scenario()), daemon=True)
    thread.start()
    thread.join(60)
    assert asked == [0]
