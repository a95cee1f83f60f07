"""Settlements that wait for others, if each request of the broker costs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from events_core import ReceivedMessage
from events_core.engine import BrokerError, Settlement, gathering
from events_core.engine.gathering import LONGEST_WAIT, Gathering

from .test_client import ScriptedClient, ScriptedDriver, message, run

MORE, ALL = True, False


def concurrent() -> Gathering:
    """Return the decisions for an application that has just settled concurrently."""
    found = Gathering(10)
    found.take(1, MORE)
    found.answered(1)
    return found


def test_nothing_waits_if_requests_cost_nothing() -> None:
    """With a unit of one, every settlement leaves at once."""
    free = Gathering(1)
    for queued in (1, 7, 27):
        assert free.wait(queued, MORE, 0.0) == 0.0
        assert free.take(queued, MORE) == queued
        free.answered(queued)


def test_settlements_one_after_the_other_do_not_wait() -> None:
    """An application that waits for each settlement gets no other one in time."""
    found = Gathering(10)
    for turn in range(5):
        assert found.wait(1, MORE, float(turn)) == 0.0
        assert found.take(1, MORE) == 1
        found.answered(0)


def test_concurrent_settlements_wait_for_others() -> None:
    """If another one came while a request was out, the next ones wait until they fill a request."""
    found = concurrent()
    assert found.wait(1, MORE, 5.0) == pytest.approx(LONGEST_WAIT)
    assert found.wait(9, MORE, 5.0 + LONGEST_WAIT / 2) == pytest.approx(LONGEST_WAIT / 2)
    assert found.wait(10, MORE, 5.0 + LONGEST_WAIT / 2) == 0.0
    assert found.take(10, MORE) == 10


def test_a_wait_is_short() -> None:
    """When its time is over, what is queued leaves."""
    found = concurrent()
    assert found.wait(1, MORE, 5.0) > 0
    assert found.wait(3, MORE, 5.0 + LONGEST_WAIT) == 0.0
    assert found.take(3, MORE) == 3
    found.answered(0)
    assert found.wait(1, MORE, 6.0) > 0, "it has gained two, so it is done again"


def test_a_wait_in_vain_is_not_repeated() -> None:
    """If no other one came in that time, the application settles one after the other now."""
    found = concurrent()
    assert found.wait(1, MORE, 5.0) > 0
    assert found.wait(1, MORE, 5.0 + LONGEST_WAIT) == 0.0
    assert found.take(1, MORE) == 1
    found.answered(0)
    assert found.wait(1, MORE, 6.0) == 0.0


def test_all_that_is_held_does_not_wait() -> None:
    """If the application settles all it holds, no other settlement can come."""
    found = concurrent()
    assert found.wait(3, ALL, 5.0) == 0.0
    assert found.take(27, ALL) == 27


def test_the_rest_that_fills_no_request_waits() -> None:
    """Of 27 settlements, 20 leave, and 7 are the first of the next request."""
    found = concurrent()
    assert found.take(27, MORE) == 20
    found.answered(7)
    assert found.wait(7, MORE, 5.0) > 0


def test_a_batch_leaves_at_once() -> None:
    """An application that settles batches, one after the other, waits for one round trip and not for two."""
    found = Gathering(10)
    for turn in range(5):
        assert found.wait(27, MORE, float(turn)) == 0.0
        assert found.take(27, MORE) == 27
        found.answered(0)


class CostlyDriver(ScriptedDriver):
    """A driver whose broker takes money for each request of ten settlements."""

    settle_unit = 10


def test_handlers_that_acknowledge_one_by_one_fill_requests() -> None:
    """Requests for 200 messages that 200 tasks acknowledge, each by itself, are nearly full."""
    counts: list[int] = []

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        under_way = receiver._settler._settlements  # type: ignore[attr-defined]

        async def settle(settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
            counts.append(len(settlements))
            await asyncio.sleep(0.001)
            # On a busy machine, no other one may come in this time, and settlements would not be concurrent.
            while len(counts) == 1 and counts[0] < 200 and not under_way.queued:
                await asyncio.sleep(0.001)
            return [None] * len(settlements)

        client.broker.sources[0].settle = settle  # type: ignore[method-assign]
        await client.send_messages([message(str(number)) for number in range(200)])
        held: list[ReceivedMessage] = []
        while len(held) < 200:
            held += await receiver.receive_messages(200, timeout=60)

        async def handle(number: int) -> None:
            await asyncio.sleep(0.0005 * number)
            await receiver.acknowledge(held[number])

        await asyncio.gather(*map(handle, range(200)))

    # A machine that is busy lets settlements come late.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "LONGEST_WAIT", 60.0)
        run(test, driver=CostlyDriver)
    assert sum(counts) == 200
    assert sum(-(-count // 10) for count in counts) <= 22


def test_a_close_waits_for_no_other_settlement() -> None:
    """A receiver that closes sends what it has, although it does not fill a request."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        source = client.broker.sources[0]
        await client.send_messages([message(str(number)) for number in range(5)])
        held: list[ReceivedMessage] = []
        while len(held) < 5:
            held += await receiver.receive_messages(5, timeout=60)
        source.settle_gate = asyncio.Event()
        acknowledging = [asyncio.ensure_future(receiver.acknowledge(each)) for each in held[:2]]
        while len(source.settled) < 1:
            await asyncio.sleep(0.001)
        client._home.wake(source.settle_gate.set)
        # The second acknowledgement came while the first one was out, so it waits for others.
        await receiver.close(timeout=0)
        await asyncio.gather(*acknowledging)
        assert len(source.settled) == 5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "LONGEST_WAIT", 600.0)
        run(test, driver=CostlyDriver)
