"""The fixture ``memory_broker`` replaces the broker of an application in its tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from events_core import (
    ConfigurationError,
    ErrorCode,
    EventMessage,
    EventReceiver,
    PublishError,
    ReceivedMessage,
    ReceiveError,
    Reject,
    consume,
    create_client,
    sync,
)
from events_core.testing.fixtures import MemoryBroker

from .patience import PATIENCE, failure_naming

pytest_plugins = ["events_core.testing.fixtures"]

FILE = """
[clients.orders]
backend = "sqlite"
topic_name = "shop-orders"
require = ["durable:power_loss"]

[clients.orders.options]
path = { file = "/nowhere" }
subscription = "billing"
create = "never"
max_delivery_attempts = 3
dead_letter_topic = "shop-orders-dead"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the configuration of an application, whose secrets are not there."""
    path = tmp_path / "events.toml"
    path.write_text(FILE)
    return path


async def accept(message: ReceivedMessage) -> None:
    """Handle *message*."""


async def refuse(message: ReceivedMessage) -> None:
    """Reject *message*."""
    raise Reject("it is refused")


@asynccontextmanager
async def consuming(receiver: EventReceiver, handler: object = accept) -> AsyncIterator[None]:
    """Consume while the block runs."""
    stop = asyncio.Event()
    task = asyncio.create_task(consume(receiver, handler, stop=stop))  # type: ignore[arg-type]
    try:
        yield
    finally:
        stop.set()
        await task


def test_the_application_finds_the_broker_by_its_configuration(memory_broker: MemoryBroker, file: Path) -> None:
    """A client of the same name is on the broker, with the topic and the portable options of the file."""
    ours = memory_broker.client("orders", file=file)

    async def main() -> None:
        async with create_client("orders", file=file) as theirs, theirs.subscribe() as receiver:
            assert theirs.topic_name == "shop-orders"
            assert receiver.subscription == "billing"
            await ours.send_message(EventMessage(b"an order"))
            assert await receiver.receive_message(PATIENCE) == EventMessage(b"an order")

    asyncio.run(main())


def test_a_client_may_be_configured_by_the_test_alone(memory_broker: MemoryBroker) -> None:
    """Without a file, the topic has the client's name, and the test gives the options."""
    memory_broker.client("orders", options={"subscription": "billing"})
    with sync.create_client("orders") as client, client.subscribe() as receiver:
        assert (client.topic_name, receiver.subscription) == ("orders", "billing")


def test_a_client_that_the_file_does_not_have_is_named(memory_broker: MemoryBroker, file: Path) -> None:
    """A misspelt name is an error, and not a new topic."""
    with pytest.raises(ConfigurationError, match=r"no table \[clients.order\]; did you mean 'orders'"):
        memory_broker.client("order", file=file)


def test_an_option_that_the_broker_does_not_have_is_named(memory_broker: MemoryBroker) -> None:
    """A misspelt option of the test is an error, and not dropped."""
    with pytest.raises(ConfigurationError, match="subscripton"):
        memory_broker.client("orders", options={"subscripton": "billing"})


@pytest.mark.parametrize("number", [1, 2])
def test_each_test_has_a_broker_of_its_own(memory_broker: MemoryBroker, number: int) -> None:
    """A test finds nothing of another test, although both send to the same topic."""
    client = memory_broker.client("orders")
    asyncio.run(client.send_message(EventMessage(b"an order")))
    assert len(memory_broker.sent("orders")) == 1


def test_what_was_sent_is_listed_in_order(memory_broker: MemoryBroker, file: Path) -> None:
    """Each message is listed under the client's name and the topic's, whether anyone receives it or not."""
    client = memory_broker.client("orders", file=file)
    messages = [EventMessage(b"1", {"a": "b"}, ordering_key="k"), EventMessage(b"2"), EventMessage(b"3")]

    async def main() -> None:
        await client.send_messages(messages[:2])
        await client.send_message(messages[2])

    asyncio.run(main())
    assert memory_broker.sent("orders") == messages
    assert memory_broker.sent("shop-orders") == messages
    assert memory_broker.sent("invoices") == []


def test_waiting_ends_when_everything_was_handled(memory_broker: MemoryBroker, file: Path) -> None:
    """After the wait every message was handled once, also one that failed before."""
    client = memory_broker.client("orders", file=file)
    handled: list[tuple[str, int | None]] = []

    async def handle(message: ReceivedMessage) -> None:
        if message.data == b"3" and message.delivery_attempt == 1:
            raise RuntimeError("it fails once")
        handled.append((message.data_as_string(), message.delivery_attempt))

    async def main() -> None:
        async with client.subscribe() as receiver, consuming(receiver, handle):
            await client.send_messages([EventMessage.from_string(str(number)) for number in range(10)])
            await memory_broker.until_handled("orders", timeout=PATIENCE)
            assert sorted(handled) == [(str(number), 2 if number == 3 else 1) for number in range(10)]

    asyncio.run(main())


def test_waiting_works_without_a_loop(memory_broker: MemoryBroker, file: Path) -> None:
    """The wait returns at once when the message has been acknowledged."""
    memory_broker.client("orders", file=file)
    with sync.create_client("orders", file=file) as client, client.subscribe() as receiver:
        client.send_message(EventMessage(b"an order"))
        message = receiver.receive_message(PATIENCE)
        assert message is not None
        with pytest.raises(TimeoutError, match="shop-orders/billing: 1"):
            memory_broker.wait_until_handled(timeout=0.05)
        receiver.acknowledge(message)
        memory_broker.wait_until_handled(timeout=PATIENCE)


def test_a_dead_letter_is_handled_and_listed(memory_broker: MemoryBroker, file: Path) -> None:
    """A rejected message ends the wait, and is listed under its dead-letter topic with the reason."""
    client = memory_broker.client("orders", file=file)

    async def main() -> None:
        async with client.subscribe() as receiver, consuming(receiver, refuse):
            await client.send_message(EventMessage(b"an order"))
            await memory_broker.until_handled(timeout=PATIENCE)

    asyncio.run(main())
    (letter,) = memory_broker.sent("shop-orders-dead")
    assert letter.data == b"an order"
    assert letter.attributes["dead_letter_reason"] == "it is refused"


def test_in_an_outage_a_send_tries_until_its_time_is_up(memory_broker: MemoryBroker, file: Path) -> None:
    """The error is the one of a real outage, nothing is stored, and afterwards the same client sends again."""
    client = memory_broker.client("orders", file=file, options={"send_timeout": 0.2})

    async def main() -> None:
        await client.ping(PATIENCE)
        with memory_broker.failing():
            error = await failure_naming(
                "the test lets the broker fail", PublishError, lambda: client.send_message(EventMessage(b"lost"))
            )
            assert (error.code, error.retryable) == (ErrorCode.TIMEOUT, True)
            assert not client.is_connected
        client._publisher._send_timeout = PATIENCE  # type: ignore[attr-defined]
        await client.send_message(EventMessage(b"sent"))

    asyncio.run(main())
    assert memory_broker.sent("orders") == [EventMessage(b"sent")]


def test_an_outage_that_ends_in_time_is_not_noticed(memory_broker: MemoryBroker, file: Path) -> None:
    """A send and a receive that began in the outage succeed after it."""
    client = memory_broker.client("orders", file=file)

    async def main() -> None:
        async with client.subscribe() as receiver:
            with memory_broker.failing():
                sending = asyncio.create_task(client.send_message(EventMessage(b"late")))
                receiving = asyncio.create_task(receiver.receive_message(PATIENCE))
                done, _ = await asyncio.wait([sending, receiving], timeout=0.1)
                assert not done
            await sending
            assert await receiving == EventMessage(b"late")

    asyncio.run(main())


def test_a_permanent_failure_is_raised_at_once(memory_broker: MemoryBroker, file: Path) -> None:
    """Sending and receiving raise the code that the test chose."""
    client = memory_broker.client("orders", file=file)

    async def main() -> None:
        async with client.subscribe() as receiver:
            with memory_broker.failing(ErrorCode.PERMISSION_DENIED):
                with pytest.raises(PublishError) as unsent:
                    await client.send_message(EventMessage(b"refused"))
                with pytest.raises(ReceiveError) as unreceived:
                    await receiver.receive_message(PATIENCE)
        assert (unsent.value.code, unsent.value.retryable) == (ErrorCode.PERMISSION_DENIED, False)
        assert unreceived.value.code is ErrorCode.PERMISSION_DENIED

    asyncio.run(main())


def test_a_stalled_broker_does_not_answer(memory_broker: MemoryBroker, file: Path) -> None:
    """A send ends with ``TIMEOUT``, and one that waits at the end of the stall succeeds."""
    client = memory_broker.client("orders", file=file, options={"send_timeout": 0.2})
    patient = memory_broker.client("patient", topic_name="shop-orders")

    async def main() -> None:
        await asyncio.gather(client.ping(PATIENCE), patient.ping(PATIENCE))
        with memory_broker.stalling():
            waiting = asyncio.create_task(patient.send_message(EventMessage(b"waits")))
            with pytest.raises(PublishError) as caught:
                await client.send_message(EventMessage(b"lost"))
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.TIMEOUT, True)
            assert not waiting.done()
        await waiting

    asyncio.run(main())
    assert memory_broker.sent("orders") == [EventMessage(b"waits")]
