"""Settling so many messages that it would block the loop, by a driver in the caller's thread and in the engine's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from events_core import AcknowledgeError, EventConfig, EventMessage, ReceivedMessage
from events_core.backends.memory import MemoryClient
from events_core.engine import EngineClient
from events_core.engine import receiver as receiver_module
from events_core.engine.receiver import AT_ONCE, EngineReceiver
from tests.core.network_memory import NetworkClient

from .test_large_sends import Meter, watched

LARGE = 4 * AT_ONCE + 1

Test = Callable[[EngineReceiver, list[ReceivedMessage]], Awaitable[None]]
both = pytest.mark.parametrize("kind", [MemoryClient, NetworkClient])


def run(kind: type[EngineClient], test: Test, topic: str) -> None:
    """Run *test* with a receiver that holds many messages."""

    async def main() -> None:
        config = EventConfig(topic, options={"max_outstanding_messages": str(LARGE)})
        async with asyncio.timeout(180), kind(config) as client, await client.subscribe("s") as receiver:
            assert isinstance(receiver, EngineReceiver)
            await client.send_messages([EventMessage(b"x")] * LARGE)
            held: list[ReceivedMessage] = []
            while len(held) < LARGE:
                held += await receiver.receive_messages(LARGE)
            await test(receiver, held)

    asyncio.run(main())


@both
def test_a_large_settlement_gives_way_to_other_tasks(kind: type[EngineClient]) -> None:
    """Each has its turn after a thousand messages."""

    async def test(receiver: EngineReceiver, held: list[ReceivedMessage]) -> None:
        meter = Meter()
        receiver._ledger.begin = meter.counts(  # type: ignore[method-assign]
            receiver._ledger.begin, lambda targets, *_: len(targets)
        )
        with watched(meter):
            await receiver.acknowledge_messages(held)
        assert (meter.total, meter.most, receiver.stats.held) == (LARGE, AT_ONCE, 0)

    run(kind, test, "settling")


@both
def test_a_large_settlement_reports_all_that_failed(kind: type[EngineClient]) -> None:
    """S4: wherever they stand among the others."""

    async def test(receiver: EngineReceiver, held: list[ReceivedMessage]) -> None:
        targets: list[ReceivedMessage | str] = ["nope 1", *held, "nope 2"]
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge_messages(targets)
        assert list(caught.value.failed) == ["nope 1", "nope 2"]
        assert receiver.stats.held == 0

    run(kind, test, "failing")


@both
def test_reporting_a_large_settlement_gives_way_to_other_tasks(
    kind: type[EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message that failed has an error of its own."""

    async def test(receiver: EngineReceiver, held: list[ReceivedMessage]) -> None:
        meter = Meter()
        monkeypatch.setattr(receiver_module, "translate", meter.counts(receiver_module.translate))
        targets = [f"nope {number}" for number in range(LARGE)]
        with watched(meter), pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge_messages(targets)
        assert list(caught.value.failed) == targets
        assert (meter.total, meter.most) == (LARGE, AT_ONCE)

    run(kind, test, "reporting")


@both
def test_a_large_settlement_that_was_cancelled_can_be_repeated(kind: type[EngineClient]) -> None:
    """S5: what was settled stays settled, and the rest is held."""

    async def test(receiver: EngineReceiver, held: list[ReceivedMessage]) -> None:
        settling = asyncio.create_task(receiver.acknowledge_messages(held))
        for _ in range(2):
            await asyncio.sleep(0)
        settling.cancel()
        await asyncio.wait([settling])
        assert settling.cancelled()
        await receiver.acknowledge_messages(held)
        assert receiver.stats.held == 0

    run(kind, test, "cancelling")


@both
def test_a_large_nack_brings_every_message_again(kind: type[EngineClient]) -> None:
    """S1: once each."""

    async def test(receiver: EngineReceiver, held: list[ReceivedMessage]) -> None:
        await receiver.nack_messages(held, delay=0)
        again = 0
        while again < LARGE:
            again += len(await receiver.receive_messages(LARGE))
        assert receiver.stats.held == LARGE

    run(kind, test, "nacking")
