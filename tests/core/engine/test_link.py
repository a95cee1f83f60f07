"""Outages: the pauses of requests before their next try, in simulated time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from events_core import Capabilities, ErrorCode
from events_core.engine.backoff import Backoff
from events_core.engine.driver import BrokerError, Delivery, Settlement, Source
from events_core.engine.feed import PrefetchingFeed
from events_core.engine.ledger import Ledger
from events_core.engine.link import Link, Pauses
from events_core.engine.waiting import Waiter, WaitingRoom

from .receiving import prefetching
from .simulated_clock import simulate

AWAY = BrokerError("the broker is away", ErrorCode.UNAVAILABLE, retryable=True)


def unlucky() -> Backoff:
    """Return the longest pauses: 0.1 s, doubling up to 30 s."""
    return Backoff(uniform=lambda low, high: high)


class Restarting(Source):
    """A receiver's source at a broker that comes back at *returns*."""

    subscription = "s"
    capabilities = Capabilities()

    def __init__(self, returns: float) -> None:
        self._returns = returns
        self.answered = asyncio.Event()
        self.answered_at = 0.0

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        now = asyncio.get_running_loop().time()
        if now < self._returns:
            raise AWAY
        if self.answered.is_set():
            await asyncio.get_running_loop().create_future()
        self.answered_at = now
        self.answered.set()
        return ()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        return [None] * len(settlements)

    async def close(self) -> None:
        pass


def feed(source: Source, link: Link) -> PrefetchingFeed:
    return prefetching(source, Ledger(max_messages=1, max_bytes=1, max_lease_duration=3600), link, 3600)


def test_the_first_receiver_that_reconnects_wakes_all() -> None:
    """F1: after a long outage all twenty receivers of a client reconnect together."""

    async def test() -> list[float]:
        link = Link("test")
        sources = [Restarting(returns=600.0) for _ in range(20)]
        feeds = [feed(source, link) for source in sources]
        for source in sources:
            await source.answered.wait()
        for each in feeds:
            await each.stop_fetching(1)
            await each.stop(1)
        return sorted(source.answered_at for source in sources)

    first, *_, last = simulate(test())
    assert last - first < 0.001


def test_a_connection_that_stands_again_ends_a_pause() -> None:
    """F1: a driver may report the connection before any request was answered."""

    async def test() -> float:
        loop, link = asyncio.get_running_loop(), Link("test")
        pauses = link.pauses(Backoff(30, 30, uniform=lambda low, high: high))
        loop.call_later(1, link.retry)
        await pauses.next()
        return loop.time()

    assert simulate(test()) == 1


class LateRoom(WaitingRoom):
    """A room in which something happens as soon as somebody has looked."""

    def enter(self, events: int) -> Waiter | None:
        self.wake_all()
        return super().enter(events)


def test_an_answer_just_before_a_pause_ends_it() -> None:
    """F1: another thread finds the broker back while a request begins to pause."""

    async def run() -> float:
        began = asyncio.get_running_loop().time()
        await Pauses(LateRoom(), unlucky()).next()
        return asyncio.get_running_loop().time() - began

    assert simulate(run()) == 0


def test_a_pause_is_not_cut_short_twice_in_a_row() -> None:
    """A broker that answers some requests and refuses others is not asked in a hot loop."""

    async def test() -> list[float]:
        loop, link = asyncio.get_running_loop(), Link("test")
        pauses = link.pauses(unlucky())

        async def answer_others() -> None:
            while True:
                await asyncio.sleep(0.01)
                link.up()

        answering = asyncio.ensure_future(answer_others())
        tries = []
        for _ in range(6):
            link.down(AWAY)
            await pauses.next()
            tries.append(loop.time())
        answering.cancel()
        return [later - earlier for earlier, later in itertools.pairwise([0.0, *tries])]

    waited = simulate(test())
    assert all(seconds < 0.02 for seconds in waited[::2])
    assert waited[1::2] == pytest.approx([0.2, 0.8, 3.2])


def test_a_pause_has_a_bound() -> None:
    """A request that has less time than the pause waits only for that time."""

    async def test() -> float:
        await Link("test").pauses(Backoff(30, 30, uniform=lambda low, high: high)).next(longest=2)
        return asyncio.get_running_loop().time()

    assert simulate(test()) == 2


def test_no_pause_is_longer_than_the_backend_allows() -> None:
    """The longest pause of a backend bounds every backoff."""

    async def test() -> float:
        await Link("test", 5).pauses(Backoff(30, 30, uniform=lambda low, high: high)).next()
        return asyncio.get_running_loop().time()

    assert simulate(test()) == 5
