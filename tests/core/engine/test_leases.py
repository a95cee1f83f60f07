"""R6: leases are kept while messages are held; the clock is simulated."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

import pytest

from events_core import Capabilities
from events_core.engine.backoff import Backoff
from events_core.engine.driver import BrokerError, Delivery, Outcome, Settlement, Source
from events_core.engine.ledger import Ledger
from events_core.engine.link import Link
from events_core.errors import ErrorCode

from .receiving import prefetching
from .settling import begin
from .simulated_clock import simulate

HOUR = 3600.0
T = TypeVar("T")


class Broker(Source):
    """A broker that delivers once, and records how long it keeps each delivery and which ones have lapsed."""

    subscription = "s"
    capabilities = Capabilities()

    def __init__(self, messages: int, lease: float) -> None:
        self.lease = lease
        self.renewals: Counter[str] = Counter()
        self.lapsed: list[str] = []
        self.refuses: set[str] = set()
        self.fails: BaseException | None = None
        self.is_silent = False
        self._deliveries = [Delivery(str(number), b"", {}) for number in range(messages)]
        self._until: dict[str, float] = {}

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        if not self._deliveries:
            await asyncio.get_running_loop().create_future()
        some, self._deliveries = self._deliveries[:limit], self._deliveries[limit:]
        self._keep(some)
        return some

    def _keep(self, deliveries: Sequence[Delivery]) -> None:
        assert self.lease is not None
        now = asyncio.get_running_loop().time()
        for delivery in deliveries:
            if self._until.get(delivery.message_id, now) < now:
                self.lapsed.append(delivery.message_id)
            self._until[delivery.message_id] = now + self.lease

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        if self.fails:
            raise self.fails
        if self.is_silent:
            await asyncio.sleep(HOUR)
        self._keep(deliveries)
        self.renewals.update(delivery.message_id for delivery in deliveries)
        return [delivery for delivery in deliveries if delivery.message_id in self.refuses]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        return [None] * len(settlements)

    async def close(self) -> None:
        pass


class Receiving:
    """A feed at work, without a receiver around it."""

    def __init__(self, broker: Broker, messages: int) -> None:
        self.ledger = Ledger(max_messages=messages, max_bytes=2**30, max_lease_duration=2 * HOUR)
        self.feed = prefetching(broker, self.ledger, Link("test"), 2 * HOUR)

    async def hold(self, messages: int) -> Sequence[Delivery]:
        """Take as many *messages*."""
        held: list[Delivery] = []
        while len(held) < messages:
            await asyncio.sleep(0)
            held += self.feed.take(messages, asyncio.get_running_loop().time())
        return held

    async def stop(self) -> None:
        """End the tasks."""
        await self.feed.stop_fetching(1)
        await self.feed.stop(1)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("lease", [10.0, 60.0, 600.0])
@pytest.mark.usefixtures("traced")
def test_ten_thousand_leases_are_kept(lease: float) -> None:
    """R6: each lease is renewed after half to two thirds of its time, none lapses, and memory does not grow."""
    messages = 10_000
    period = 10 * lease
    broker = Broker(messages, lease)

    async def keep() -> int:
        receiving = Receiving(broker, messages)
        held = await receiving.hold(messages)
        await asyncio.sleep(period / 2)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await asyncio.sleep(period / 2)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        await receiving.stop()
        assert len(held) == messages
        return after - before

    growth = simulate(keep())
    assert broker.lapsed == []
    least, most = int(period / (lease * 2 / 3)), int(period / (lease / 2)) + 1
    assert len(broker.renewals) == messages
    assert least <= min(broker.renewals.values()) <= max(broker.renewals.values()) <= most
    assert growth < 100_000


@pytest.mark.parametrize(
    "error", [BrokerError("out of reach", ErrorCode.UNAVAILABLE, retryable=True), asyncio.CancelledError()]
)
def test_a_renewal_that_fails_is_repeated_before_the_lease_is_over(error: BaseException) -> None:
    """R6: an outage that is shorter than the rest of the lease has no consequence."""
    broker = Broker(1, 60.0)

    async def keep() -> None:
        receiving = Receiving(broker, 1)
        await receiving.hold(1)
        broker.fails = error
        await asyncio.sleep(45)
        broker.fails = None
        await asyncio.sleep(60)
        await receiving.stop()

    simulate(keep())
    assert broker.lapsed == []
    assert broker.renewals["0"] >= 2


def test_a_renewal_without_an_answer_is_repeated_before_the_lease_is_over() -> None:
    """R6: a request without an answer is given up in time for another one."""
    broker = Broker(1, 60.0)

    async def keep() -> None:
        receiving = Receiving(broker, 1)
        await receiving.hold(1)
        broker.is_silent = True
        await asyncio.sleep(35)
        broker.is_silent = False
        await asyncio.sleep(60)
        await receiving.stop()

    simulate(keep())
    assert broker.lapsed == []
    assert broker.renewals["0"] >= 2


def test_what_the_broker_has_taken_back_is_expired() -> None:
    """S3: acknowledging it raises EXPIRED; the other messages stay held."""
    broker = Broker(2, 60.0)

    async def keep() -> None:
        receiving = Receiving(broker, 2)
        lost, kept = await receiving.hold(2)
        broker.refuses = {lost.message_id}
        await asyncio.sleep(60)
        await receiving.stop()
        ledger = receiving.ledger
        assert ledger.held == 1
        verdict = begin(ledger, lost, Outcome.ACK, now=60.0)
        assert isinstance(verdict, BrokerError)
        assert verdict.code is ErrorCode.EXPIRED
        assert not isinstance(begin(ledger, kept, Outcome.ACK, now=60.0), BrokerError)

    simulate(keep())


class Recording(Broker):
    """A broker that takes its time, and records when each request begins and ends."""

    def __init__(self, messages: int) -> None:
        super().__init__(messages, 60.0)
        self.log: list[str] = []

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        return await self._recorded("renew " + " ".join(each.message_id for each in deliveries), 10, ())

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        return await self._recorded("settle", 50, [None] * len(settlements))

    async def _recorded(self, what: str, seconds: float, answer: T) -> T:
        self.log.append(what)
        await asyncio.sleep(seconds)
        self.log.append(f"end of {what}")
        return answer


def settle_at_home(receiving: Receiving, delivery: Delivery, outcome: Outcome) -> None:
    """Begin to settle *delivery*, in a home that is the running loop."""
    home, settler = receiving.feed._home, receiving.feed._settler
    home.wake = lambda callback: asyncio.get_running_loop().call_soon(callback)  # type: ignore[method-assign]
    home.spawn = lambda work, *_: asyncio.ensure_future(work)  # type: ignore[assignment, method-assign]
    begun = begin(receiving.ledger, delivery, outcome)
    assert not isinstance(begun, BrokerError)
    settler._settlements.enqueue(begun)
    settler.pump()


@pytest.mark.parametrize(("outcome", "renewed"), [(Outcome.NACK, "renew 1"), (Outcome.ACK, "renew 0 1")])
def test_what_goes_back_is_not_renewed(outcome: Outcome, renewed: str) -> None:
    """R11: the renewal could reach the broker after the nack, and end its delay; an acknowledgement needs its lease."""
    broker = Recording(2)

    async def keep() -> None:
        receiving = Receiving(broker, 2)
        first, _ = await receiving.hold(2)
        await asyncio.sleep(1)
        settle_at_home(receiving, first, outcome)
        await asyncio.sleep(44)
        await receiving.stop()

    simulate(keep())
    assert broker.log[:2] == ["settle", renewed]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome.NACK, ["renew 0", "end of renew 0", "settle"]),
        (Outcome.ACK, ["renew 0", "settle", "end of renew 0"]),
    ],
)
def test_what_goes_back_waits_for_its_renewal(outcome: Outcome, expected: list[str]) -> None:
    """R11: the nack could reach the broker before the renewal, which would end its delay."""
    broker = Recording(1)

    async def keep() -> None:
        receiving = Receiving(broker, 1)
        (held,) = await receiving.hold(1)
        while not broker.log:
            await asyncio.sleep(1)
        settle_at_home(receiving, held, outcome)
        await asyncio.sleep(15)
        await receiving.stop()

    simulate(keep())
    assert broker.log == expected


def test_a_settlement_that_fails_for_a_while_is_retried_with_backoff() -> None:
    """S5: there is one retry at a time, no matter how many others succeed and how often this one fails."""

    class Refusing(Broker):
        """A broker that confirms everything except message 0."""

        asked = 0

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
            ids = [settlement.delivery.message_id for settlement in settlements]
            self.asked += ids.count("0")
            away = BrokerError("not now", ErrorCode.UNAVAILABLE, retryable=True)
            return [away if each == "0" else None for each in ids]

    broker = Refusing(600, 3600.0)

    async def settle() -> None:
        receiving = Receiving(broker, 1000)
        home, settler = receiving.feed._home, receiving.feed._settler
        home.wake = lambda callback: asyncio.get_running_loop().call_soon(callback)  # type: ignore[method-assign]
        home.spawn = lambda work, *_: asyncio.ensure_future(work)  # type: ignore[assignment, method-assign]
        settler._retry_pauses = Backoff(maximum=1.0, uniform=lambda least, most: most)
        for delivery in await receiving.hold(600):
            begun = begin(receiving.ledger, delivery, Outcome.ACK)
            assert not isinstance(begun, BrokerError)
            settler._settlements.enqueue(begun)
            settler.pump()
            await asyncio.sleep(0.1)
        await receiving.stop()

    simulate(settle())
    assert 60 <= broker.asked <= 66


def test_what_came_again_while_its_lease_was_renewed_is_still_held() -> None:
    """R7: the broker's answer is about the older copy, and the newer one stays."""

    class Redelivering(Broker):
        """A broker that takes back what it is asked to keep, and delivers it again before it says so."""

        async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
            if self.renewals:
                return ()
            self.renewals.update(delivery.message_id for delivery in deliveries)
            self._deliveries = [Delivery(delivery.message_id, b"", {}, token="newer") for delivery in deliveries]
            await asyncio.sleep(1)
            return deliveries

        async def fetch(self, limit: int) -> Sequence[Delivery]:
            while not self._deliveries:
                await asyncio.sleep(0.1)
            return await super().fetch(limit)

    broker = Redelivering(1, 60.0)

    async def keep() -> None:
        receiving = Receiving(broker, 2)
        (held,) = await receiving.hold(1)
        await asyncio.sleep(60)
        await receiving.stop()
        assert receiving.ledger.duplicates == 1
        assert not isinstance(begin(receiving.ledger, held, Outcome.ACK, now=60.0), BrokerError)

    simulate(keep())
