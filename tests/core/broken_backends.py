"""Backends that each break one rule, and a suite for each: all the kit's tests of that rule.

``test_kit_fails`` runs this file and wants every suite to fail.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import pytest

from events_core import Capabilities, EventClient, EventConfig, EventMessage, register_backend
from events_core.backends.memory import MemoryClient, MemoryDriver, MemoryOptions, MemorySource
from events_core.engine import Delivery, Outcome, Settlement
from events_core.testing import ConformanceSuite, Harness, Stage, rule


class ImpatientHarness(Harness):
    """Memory, where what does not come soon never does."""

    settle_time = 0.15
    patience = 0.5
    sdk_modules = ("broken_backends",)

    def __init__(self, backend: str = "memory") -> None:
        self._backend = backend

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        return EventConfig(topic_name, options=options, backend=self._backend)


def breaks(*rules: str) -> Callable[[type[EventClient]], type[EventClient]]:
    """Make a suite of the tests of *rules*, for the client class decorated."""

    def decorate(client: type[EventClient]) -> type[EventClient]:
        name = client.__name__
        register_backend(name, client)
        tests = {
            test: getattr(ConformanceSuite, test)
            for test in dir(ConformanceSuite)
            if set(rules) & set(getattr(getattr(ConformanceSuite, test), "rules", ()))
        }
        harness = pytest.fixture(lambda self: ImpatientHarness(f"{__name__}:{name}"), name="harness")
        globals()[f"Test{name}"] = type(f"Test{name}", (), {"make_harness": harness, **tests})
        return client

    return decorate


class TwistedDriver(MemoryDriver):
    """A driver whose subclasses twist what passes through it."""

    def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """What a fetch returns."""
        return deliveries

    def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
        """What the broker is told."""
        return settlements

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
        source = await super().subscribe(subscription, wake)
        fetch, settle = source.fetch, source.settle

        async def fetch_twisted(limit: int) -> Sequence[Delivery]:
            return self.fetched(await fetch(limit))

        async def settle_twisted(settlements: Sequence[Settlement]) -> Sequence[None]:
            await settle(list(self.settled(settlements)))
            return [None] * len(settlements)

        source.fetch, source.settle = fetch_twisted, settle_twisted  # type: ignore[method-assign,assignment]
        return source


@breaks("§1")
class LosesAttributes(MemoryClient):
    """Sends nothing but data."""

    async def send_message(self, message: EventMessage) -> str:
        return await super().send_message(EventMessage(message.data))


@breaks("O1")
class IgnoresUnknownOptions(MemoryClient):
    """Takes what it knows of its options."""

    def __init__(self, config: EventConfig) -> None:
        known = {field.name for field in attrs.fields(MemoryOptions)}
        options = {name: text for name, text in config.options.items() if name in known}
        super().__init__(attrs.evolve(config, options=options))


@breaks("B1")
class ImportsItsSdk(MemoryClient):
    """Comes with what only a connection needs: here, this very module."""


@breaks("P1")
class RepeatsIds(MemoryClient):
    """Gives every message the same id."""

    async def send_message(self, message: EventMessage) -> str:
        await super().send_message(message)
        return "1"


@breaks("P2")
class DeclaresSmallerLimits(MemoryClient):
    """Accepts more than it says."""

    @property
    def capabilities(self) -> Capabilities:
        found = super().capabilities
        return attrs.evolve(found, limits=attrs.evolve(found.limits, max_attributes=3))


@breaks("P4")
class ReversesBatches(MemoryClient):
    """Stores the last message first."""

    class driver_class(MemoryDriver):
        """Its driver."""

        async def publish(self, messages: Sequence[EventMessage]) -> Sequence[Any]:
            return list(reversed(await super().publish(messages[::-1])))


@breaks("Q3")
class DeniesReplay(MemoryClient):
    """Does what it does not declare."""

    @property
    def capabilities(self) -> Capabilities:
        return attrs.evolve(super().capabilities, replay=False)


@breaks("R2")
class IgnoresLimits(MemoryClient):
    """Fetches two where one was asked for."""

    class driver_class(TwistedDriver):
        """Its driver."""

        async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
            source = await super().subscribe(subscription, wake)
            fetch = source.fetch
            source.fetch = lambda limit: fetch(2 * limit)  # type: ignore[method-assign]
            return source


@breaks("R4")
class HandsOutTwice(MemoryClient):
    """Returns every delivery again."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            return [copy for delivery in deliveries for copy in (delivery, attrs.evolve(delivery, message_id="twice"))]


@breaks("R8")
class FreesKeysAtOnce(MemoryClient):
    """Lets the next message of a key out while one is held."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            for delivery in deliveries:
                delivery.token.ordering_key = None
            return deliveries


@breaks("R9")
class LosesNacks(MemoryClient):
    """Takes a nack for an acknowledgement."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [settlement._replace(outcome=Outcome.ACK) for settlement in settlements]


@breaks("R10")
class NacksPiecemeal(MemoryClient):
    """Puts a nacked message behind its successors."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return reversed(list(settlements))


@breaks("R11")
class IgnoresDelays(MemoryClient):
    """Delivers again at once."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [settlement._replace(delay=0) for settlement in settlements]


@breaks("R12")
class BuriesNothing(MemoryClient):
    """Throws dead letters away."""

    class driver_class(MemoryDriver):
        """Its driver."""

        def bury(self, item: Any, subscription: str) -> list[MemorySource]:
            return []


@breaks("S1")
class ForgetsAcknowledgements(MemoryClient):
    """Takes an acknowledgement for a return."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [settlement._replace(outcome=Outcome.RETURN) for settlement in settlements]


@breaks("C1")
class KeepsWhatItHeld(MemoryClient):
    """Hands nothing back on closing."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [settlement for settlement in settlements if settlement.outcome is not Outcome.RETURN]


@breaks("C3")
class LeaksFiles(MemoryClient):
    """Opens a file and leaves it."""

    class driver_class(MemoryDriver):
        """Its driver."""

        async def open(self) -> None:
            os.open(os.devnull, os.O_RDONLY)
            await super().open()


@breaks("F3")
class ClaimsDurability(MemoryClient):
    """Declares what a process cannot keep."""

    @property
    def capabilities(self) -> Capabilities:
        return attrs.evolve(super().capabilities, durable="process_crash")


@breaks("T2")
class WorksAfterAFork(MemoryClient):
    """Does not ask in which process it is."""

    def _check_process(self) -> None:
        pass


class ExceptedHarness(ImpatientHarness):
    """Says why a rule cannot be shown here."""

    exceptions = {"R9": "the emulator loses nacks"}


class TestExcepted:
    """A broken backend in an environment that is to blame for it."""

    test_nack = ConformanceSuite.test_a_nacked_message_comes_again_the_same

    @pytest.fixture
    def harness(self) -> Harness:
        return ExceptedHarness("LosesNacks")


class MistakenHarness(ImpatientHarness):
    """Excepts what does not exist."""

    exceptions = {"R99": "no such rule"}


class TestMistaken:
    """Every test fails until the exception names a rule or test."""

    test_ping = ConformanceSuite.test_ping_tells_how_long_the_broker_took

    @pytest.fixture
    def harness(self) -> Harness:
        return MistakenHarness()


class HastyHarness(ImpatientHarness):
    """Gives a test next to no time."""

    bound = 0.1


class TestUnending:
    """Scenes that do not end by themselves."""

    @pytest.fixture
    def harness(self) -> Harness:
        return HastyHarness()

    @rule("R1")
    async def test_that_waits_for_ever(self, stage: Stage) -> None:
        """Nothing was sent."""
        _, receiver = await stage.open()
        await receiver.receive_message()

    @rule("C3")
    async def test_that_leaves_a_task(self, stage: Stage) -> None:
        """As a backend might."""
        self.task = asyncio.create_task(asyncio.sleep(60))
