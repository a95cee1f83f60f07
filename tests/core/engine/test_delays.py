"""R11: nacked messages wait here if the broker has no delays; the clock is simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from itertools import pairwise

import pytest

from events_core import Capabilities, ReceivedMessage
from events_core.engine.driver import BrokerError, Delivery, Outcome, Settlement, Source
from events_core.engine.feed import PrefetchingFeed
from events_core.engine.ledger import Ledger
from events_core.engine.link import Link
from events_core.engine.settlements import Ticket
from events_core.errors import ErrorCode

from .receiving import prefetching
from .simulated_clock import simulate

HOLD = 1000.0


class Broker(Source):
    """A broker without delays: a message that goes back comes again at once, under a new token."""

    subscription = "s"
    capabilities = Capabilities()
    keeps_delays = False

    def __init__(self, *, lease: float | None = None, longest_hold: float | None = None) -> None:
        self.lease = lease
        self.longest_hold = longest_hold
        self.tokens = 0
        self.renewed: set[str] = set()
        self.settled: list[tuple[float, str, Outcome, float | None]] = []
        self.goes_on = True
        """True if a message that was returned comes again."""
        self._arrived: asyncio.Queue[Delivery] = asyncio.Queue()

    def deliver(self, name: str, attempt: int = 1) -> None:
        """Deliver a message, perhaps again."""
        self.tokens += 1
        self._arrived.put_nowait(Delivery(name, b"x", {}, None, None, attempt, self.tokens))

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        return [await self._arrived.get()]

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        self.renewed.update(each.message_id for each in deliveries)
        return ()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        now = asyncio.get_running_loop().time()
        results: list[BrokerError | None] = []
        for each in settlements:
            name, token = each.delivery.message_id, each.delivery.token
            if token != self.tokens:
                results.append(BrokerError("an older token", ErrorCode.EXPIRED))
                continue
            results.append(None)
            self.settled.append((now, name, each.outcome, each.delay))
            if each.outcome is not Outcome.ACK and self.goes_on:
                self.deliver(name, (each.delivery.delivery_attempt or 1) + 1)
        return results

    async def close(self) -> None:
        pass


class Receiving:
    """A feed at work, without a receiver around it."""

    def __init__(self, broker: Broker, **settings: object) -> None:
        self.broker = broker
        self.ledger = Ledger(
            **{  # type: ignore[arg-type]  # a test's shorthand
                "max_messages": 10,
                "max_bytes": 1000,
                "max_lease_duration": 60.0,
                "longest_hold": broker.longest_hold,
                "keeps_delays": broker.keeps_delays,
                "keeps_order": False,
                **settings,
            }
        )
        self.feed: PrefetchingFeed = prefetching(broker, self.ledger, Link("test"), 60.0)
        self.settler = self.feed._settler
        # Home is the running loop here, and has no thread that could be woken.
        self.settler.pump = self.settler._start  # type: ignore[method-assign]
        self.now = asyncio.get_running_loop().time

    async def take(self, within: float = 10_000.0) -> Delivery:
        """Take a message, *within* seconds of simulated time."""
        async with asyncio.timeout(within):
            while True:
                taken = self.feed.take(1, self.now())
                if taken:
                    return taken[0]
                await asyncio.sleep(1)

    async def nack(self, delivery: Delivery, delay: float | None) -> Ticket:
        """Nack a message, and wait until the call ends."""
        message = ReceivedMessage(b"x", message_id=delivery.message_id, delivery=delivery)
        ticket = self.settler.begin([message], Outcome.NACK, delay, self.now(), "")
        async with asyncio.timeout(1):
            await self.settler.finished(ticket)
        return ticket

    async def stop(self) -> None:
        """End the tasks."""
        await self.feed.stop_fetching(1)
        await self.settler.stop(1)
        await self.feed.stop(1)


def test_the_broker_is_told_when_the_delay_is_over() -> None:
    """The call ends at once, the message is not held any more, and the nack has no delay of its own."""

    async def keep() -> None:
        broker = Broker()
        receiving = Receiving(broker)
        broker.deliver("1")
        held = await receiving.take()
        before = receiving.now()
        ticket = await receiving.nack(held, 30.0)
        assert (ticket.failed, receiving.ledger.held, receiving.ledger.buffered) == ({}, 0, 1)
        again = await receiving.take()
        assert again.delivery_attempt == 2
        assert broker.settled == [(pytest.approx(before + 30.0), "1", Outcome.NACK, 0.0)]
        await receiving.stop()

    simulate(keep())


def test_without_a_delay_the_backoff_of_the_attempts_is_kept() -> None:
    """The third failure waits for 0.4 s."""

    async def keep() -> None:
        broker = Broker()
        receiving = Receiving(broker)
        broker.deliver("1", attempt=3)
        held = await receiving.take()
        before = receiving.now()
        await receiving.nack(held, None)
        await receiving.take()
        assert broker.settled == [(pytest.approx(before + 0.4), "1", Outcome.NACK, 0.0)]
        await receiving.stop()

    simulate(keep())


def test_the_shortest_delay_is_over_first() -> None:
    """A later nack with a shorter delay does not wait for the earlier one."""

    async def keep() -> None:
        broker = Broker()
        broker.goes_on = False
        receiving = Receiving(broker)
        for name, delay in (("1", 50.0), ("2", 10.0)):
            broker.deliver(name)
            await receiving.nack(await receiving.take(), delay)
        broker.deliver("2")  # under the newest token, which this broker asks for
        await asyncio.sleep(20)
        broker.deliver("1")
        await asyncio.sleep(100)
        assert [name for _, name, _, _ in broker.settled] == ["2", "1"]
        await receiving.stop()

    simulate(keep())


@pytest.mark.parametrize(("delay", "attempt"), [(0.0, 1), (30.0, 3)])
def test_a_nack_that_need_not_wait_leaves_at_once(delay: float, attempt: int) -> None:
    """A nack without any delay, and the last one, which makes a dead letter."""

    async def keep() -> None:
        broker = Broker()
        receiving = Receiving(broker, local_attempts=3)
        broker.deliver("1", attempt)
        held = await receiving.take()
        before = receiving.now()
        await receiving.nack(held, delay)
        assert broker.settled == [(before, "1", Outcome.NACK, delay)]
        await receiving.stop()

    simulate(keep())


def test_what_waits_counts_for_the_bounds() -> None:
    """R5: a receiver does not collect more and more messages that fail."""

    async def keep() -> None:
        broker = Broker()
        receiving = Receiving(broker)
        broker.deliver("1")
        await receiving.nack(await receiving.take(), 30.0)
        assert receiving.ledger.room(None) == 9
        await receiving.stop()

    simulate(keep())


def test_a_delay_is_longer_than_a_lease() -> None:
    """The receiver renews the lease of what waits, and does not give it up after max_lease_duration."""

    async def keep() -> None:
        broker = Broker(lease=10.0)
        receiving = Receiving(broker)
        broker.deliver("1")
        await receiving.nack(await receiving.take(), 500.0)
        broker.renewed.clear()
        await asyncio.sleep(400)
        assert broker.renewed == {"1"}
        assert broker.settled == []
        await receiving.take()
        assert receiving.now() >= 500.0
        await receiving.stop()

    simulate(keep())


def test_a_delay_is_longer_than_the_broker_leaves_the_delivery_here() -> None:
    """The message goes back before the broker takes it, comes again, and still waits for the rest of its delay."""

    async def keep() -> None:
        broker = Broker(longest_hold=HOLD)
        receiving = Receiving(broker)
        broker.deliver("1")
        await receiving.nack(await receiving.take(), 2.5 * HOLD)
        await receiving.take()
        assert receiving.now() >= 2.5 * HOLD
        outcomes = [outcome for _, _, outcome, _ in broker.settled]
        assert outcomes == [Outcome.RETURN, Outcome.RETURN, Outcome.NACK]
        times = [0.0, *(when for when, *_ in broker.settled)]
        assert all(after - before <= HOLD + 20 for before, after in pairwise(times))
        await receiving.stop()

    simulate(keep())


def test_a_message_that_comes_again_early_waits_for_the_rest_of_its_delay() -> None:
    """After a lost connection the nack is settled with the newer token."""

    async def keep() -> None:
        broker = Broker()
        receiving = Receiving(broker)
        broker.deliver("1")
        await receiving.nack(await receiving.take(), 30.0)
        broker.deliver("1")
        await receiving.take()
        assert receiving.now() >= 30.0
        assert [outcome for _, _, outcome, _ in broker.settled] == [Outcome.NACK]
        await receiving.stop()

    simulate(keep())


def test_a_message_that_does_not_come_again_is_forgotten_after_its_delay() -> None:
    """Another receiver has it; the bounds are free again."""

    async def keep() -> None:
        broker = Broker()
        receiving = Receiving(broker)
        broker.deliver("1")
        await receiving.nack(await receiving.take(), 30.0)
        broker.tokens += 1
        await asyncio.sleep(40)
        assert (broker.settled, receiving.ledger.room(None)) == ([], 10)
        await receiving.stop()

    simulate(keep())


def test_a_close_ends_the_delays() -> None:
    """C1: the broker is told of the nacks at once, and nothing waits any more."""

    async def keep() -> None:
        broker = Broker()
        receiving = Receiving(broker)
        broker.deliver("1")
        await receiving.nack(await receiving.take(), 30.0)
        assert [each.outcome for each in receiving.ledger.close()] == [Outcome.NACK]
        assert receiving.ledger.buffered == 0
        await receiving.stop()

    simulate(keep())


def test_a_nack_while_closing_leaves_at_once() -> None:
    """C1: what the application nacks at a close does not keep the receiver open."""

    async def keep() -> None:
        broker = Broker()
        receiving = Receiving(broker)
        broker.deliver("1")
        held = await receiving.take()
        receiving.ledger.close()
        await receiving.nack(held, 30.0)
        assert [outcome for _, _, outcome, _ in broker.settled] == [Outcome.NACK]
        await receiving.stop()

    simulate(keep())
