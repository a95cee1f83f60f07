"""The blocking clients keep the rules of the contract that do not speak of an event loop or of a cancelled call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.testing import Harness
from events_core.testing.arguments import Arguments
from events_core.testing.closing import Closing
from events_core.testing.deciding import Deciding
from events_core.testing.failing import Failing
from events_core.testing.native import Native
from events_core.testing.observing import Observing
from events_core.testing.ordering import Ordering
from events_core.testing.outages import Outages
from events_core.testing.processing import Processing
from events_core.testing.publishing import Publishing
from events_core.testing.receiving import Receiving
from events_core.testing.redelivering import Redelivering
from events_core.testing.settling import Settling
from events_core.testing.subscribing import Subscribing
from events_core.testing.threads import Threads
from events_core.testing.values import Values

from ..test_conformance import MemoryHarness, NetworkHarness


class BlockingHarness(MemoryHarness):
    """Topics of this process."""

    proof = None

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        return EventConfig(topic_name, options=options, backend="blocking:BlockingClient")


class BlockingNetworkHarness(NetworkHarness):
    """The same topics, behind a network that can be cut."""

    backend = "blocking:BlockingNetworkClient"


class Rules(
    Threads,
    Observing,
    Native,
    Failing,
    Deciding,
    Processing,
    Arguments,
    Redelivering,
    Ordering,
    Settling,
    Receiving,
    Subscribing,
    Publishing,
    Values,
    Closing,
):
    """The tests of the kit that make sense for blocking calls.

    The kit's tests of cancellation, of entry points and of the broker's leases say nothing about blocking calls.
    """

    # These cancel a receive, or stop its loop, and go on at once.  A blocking receive goes on too, in its thread.
    test_cancelled_receives_lose_nothing = None
    test_a_stopped_loop_hinders_nobody = None


class TestBlocking(Rules):
    """Blocking calls on memory, in the thread of the caller."""

    @pytest.fixture
    def harness(self, monkeypatch: pytest.MonkeyPatch) -> Harness:
        return _found(BlockingHarness(), monkeypatch)


class TestBlockingNetwork(Rules, Outages):
    """Blocking calls on the engine's own thread."""

    @pytest.fixture
    def harness(self, monkeypatch: pytest.MonkeyPatch) -> Harness:
        return _found(BlockingNetworkHarness(), monkeypatch)


def _found(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    # By path, so that the kit's child processes find them too.
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return harness
