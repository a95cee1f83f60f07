"""Backends that each break a rule, and a suite for each: all the kit's tests of that rule.

``test_kit_fails`` runs this file and wants every suite to fail, but the one of a backend that breaks nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs
import pytest
from network_memory import NetworkClient, NetworkDriver, SessionClient, SessionDriver, SessionSource, outage

from events_core import (
    AcknowledgeError,
    Capabilities,
    ErrorCode,
    EventClient,
    EventConfig,
    EventMessage,
    EventReceiver,
    PublishError,
    ReceivedMessage,
)
from events_core.backends.memory import MemoryClient, MemoryDriver, MemoryOptions, MemorySource
from events_core.engine import BrokerError, Delivery, EngineClient, Outcome, Settlement, Source
from events_core.engine.receiver import EngineReceiver
from events_core.interface import API_VERSION, ReceiverStats
from events_core.testing import ConformanceSuite, Harness, Stage, rule


class ImpatientHarness(Harness):
    """Memory, where what does not come soon never does."""

    settle_time = 0.15
    patience = 0.5
    bound = 10.0
    lease = 0.2
    sdk_modules: Collection[str] = ("broken_backends",)

    def __init__(self, backend: str = "memory") -> None:
        self._backend = backend

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        return EventConfig(topic_name, options=options, backend=self._backend)


class PatientHarness(ImpatientHarness):
    """The same where what is held for a second may expire."""

    patience = 1.5


class CuttingHarness(PatientHarness):
    """The same behind a network that can be cut."""

    def outage(self) -> AbstractContextManager[None]:
        return outage()


def breaks(
    *rules: str, harness: type[ImpatientHarness] = ImpatientHarness
) -> Callable[[type[EventClient]], type[EventClient]]:
    """Make a suite of the tests of *rules*, for the client class decorated."""

    def decorate(client: type[EventClient]) -> type[EventClient]:
        name = client.__name__
        others = {
            test: None
            for test in dir(ConformanceSuite)
            if test.startswith("test_") and not set(rules) & set(getattr(ConformanceSuite, test).rules)
        }
        fixture = pytest.fixture(lambda self: harness(f"{__name__}:{name}"), name="harness")
        globals()[f"Test{name}"] = type(f"Test{name}", (ConformanceSuite,), {"make_harness": fixture, **others})
        return client

    return decorate


class UnknownHarness(PatientHarness):
    """Says no more than it must."""

    lease = 0.0
    sdk_modules = ()


class TestUnbroken(ConformanceSuite):
    """The control: what fails below does not fail for want of patience."""

    @pytest.fixture
    def harness(self) -> Harness:
        return UnknownHarness()


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

        source.fetch, source.settle = fetch_twisted, settle_twisted  # type: ignore[method-assign]
        return source


class TwistedClient(EngineClient):
    """A client whose receivers are of another class."""

    receiver_class: type[EngineReceiver]

    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        receiver = await super().subscribe(subscription)
        receiver.__class__ = self.receiver_class  # the engine asks nobody which class to make
        return receiver


class IgnorantClient(MemoryClient):
    """A client that does not hear of some options."""

    ignored: Collection[str]

    def __init__(self, config: EventConfig) -> None:
        options = {name: text for name, text in config.options.items() if name not in self.ignored}
        super().__init__(attrs.evolve(config, options=options))


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


@breaks("§3")
class SaysItIsConnected(MemoryClient):
    """Is connected whatever happens."""

    is_connected = True


@breaks("§4")
class MiscountsWhatItHolds(TwistedClient, MemoryClient):
    """Holds nothing, as it says."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        @property
        def stats(self) -> ReceiverStats:
            return attrs.evolve(super().stats, held=0)


@breaks("§6")
class PromisesMoreThanItCan(MemoryClient):
    """Has capabilities that its class denies."""

    full_capabilities = Capabilities()


@breaks("O2")
class ShowsItsOptions(MemoryClient):
    """Tells everything about itself."""

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config)
        self._shown = dict(config.options)

    def __repr__(self) -> str:
        return f"<ShowsItsOptions {self._shown}>"


@breaks("B3")
class IsOfAnotherVersion(MemoryClient):
    """Was written for an interface that is not this one."""

    api_version = API_VERSION + 1


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


@breaks("P3")
class PausesKeys(MemoryClient):
    """Sends nothing of a key of which a message was refused."""

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config)
        self._paused: set[str | None] = set()

    async def send_message(self, message: EventMessage) -> str:
        if message.ordering_key in self._paused:
            raise PublishError("the key is paused", code=ErrorCode.INTERNAL)
        try:
            return await super().send_message(message)
        except PublishError:
            self._paused.add(message.ordering_key)
            raise


@breaks("P5")
class StoresTheFirstOfABatch(NetworkClient):
    """Confirms what it has not stored."""

    class driver_class(NetworkDriver):
        """Its driver."""

        async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            (stored,) = await super().publish(messages[:1])
            return [stored, *(f"{stored}-{number}" for number in range(1, len(messages)))]


@breaks("P6")
class SendsWithoutBounds(IgnorantClient):
    """Takes all that it is given."""

    ignored = ("publish_max_messages", "publish_max_bytes", "publish_on_limit")


@breaks("P7")
class NeverGivesUp(MemoryClient):
    """Tries again what cannot succeed."""

    class driver_class(MemoryDriver):
        """Its driver."""

        async def open(self) -> None:
            try:
                await super().open()
            except BrokerError as error:
                raise BrokerError(str(error), error.code, retryable=True) from error


@breaks("P8")
class CancelsItsBatch(MemoryClient):
    """Sends what gathers in one task, which ends with the first of those that wait for it."""

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config)
        self._gathered: list[EventMessage] = []
        self._sending: asyncio.Task[list[str]] | None = None

    async def send_message(self, message: EventMessage) -> str:
        if self._sending is None or self._sending.done():
            self._gathered = []
            self._sending = asyncio.create_task(self._send_gathered())
        self._gathered.append(message)
        place = len(self._gathered) - 1
        return (await self._sending)[place]

    async def _send_gathered(self) -> list[str]:
        await asyncio.sleep(0.001)
        self._sending = None
        return await self.send_messages(self._gathered)


@breaks("P8")
class StaysInterrupted(MemoryClient):
    """Sends nothing more once a send was cancelled."""

    _interrupted = False

    async def send_message(self, message: EventMessage) -> str:
        if self._interrupted:
            raise PublishError("a send was interrupted", code=ErrorCode.INTERNAL)
        try:
            await asyncio.sleep(0)
            return await super().send_message(message)
        except asyncio.CancelledError:
            self._interrupted = True
            raise


@breaks("Q1")
class EndsItsSubscriptions(MemoryClient):
    """Takes every subscription for an ephemeral one."""

    class driver_class(MemoryDriver):
        """Its driver."""

        async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
            source = await super().subscribe(subscription, wake)
            source._ephemeral = True
            return source


@breaks("Q2")
class CreatesRegardless(IgnorantClient):
    """Makes what is missing, allowed or not."""

    ignored = ("create",)


@breaks("Q3")
class DeniesReplay(MemoryClient):
    """Does what it does not declare."""

    @property
    def capabilities(self) -> Capabilities:
        return attrs.evolve(super().capabilities, replay=False)


@breaks("R1")
class ComesBackEarly(TwistedClient, MemoryClient):
    """Waits half as long as it should."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
            return await super().receive_messages(limit, timeout and timeout / 2)


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


@breaks("R3")
class LosesCancelledReceives(TwistedClient, MemoryClient):
    """Waits once more between taking a message and handing it out."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
            received = await super().receive_messages(limit, timeout)
            await asyncio.sleep(0)
            return received


@breaks("R4")
class HandsOutTwice(MemoryClient):
    """Returns every delivery again."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            return [copy for delivery in deliveries for copy in (delivery, attrs.evolve(delivery, message_id="twice"))]


@breaks("R5")
class HoldsWithoutBounds(IgnorantClient):
    """Fetches whatever is there."""

    ignored = ("max_outstanding_messages", "max_outstanding_bytes")


@breaks("R6", harness=PatientHarness)
class LetsLeasesLapse(MemoryClient):
    """Keeps nothing alive for longer than a moment."""

    def __init__(self, config: EventConfig) -> None:
        super().__init__(attrs.evolve(config, options={**config.options, "max_lease_duration": "0.1"}))


@breaks("R6", harness=PatientHarness)
class HoldsForEver(IgnorantClient):
    """Lets nothing expire."""

    ignored = ("max_lease_duration",)


@breaks("R7")
class HandsOutAgain(MemoryClient):
    """Delivers with each fetch what it delivered with the one before."""

    class driver_class(TwistedDriver):
        """Its driver."""

        _before: Sequence[Delivery] = ()

        def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            again = [attrs.evolve(delivery, message_id=f"{delivery.message_id}-again") for delivery in self._before]
            self._before = deliveries
            return [*deliveries, *again]


@breaks("R8")
class FreesKeysAtOnce(MemoryClient):
    """Lets the next message of a key out while one is held."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            for delivery in deliveries:
                delivery.token.ordering_key = None
            return deliveries


@breaks("R9", harness=PatientHarness)
class LosesNacks(MemoryClient):
    """Takes a nack for an acknowledgement."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [attrs.evolve(settlement, outcome=Outcome.ACK) for settlement in settlements]


@breaks("R10", harness=PatientHarness)
class NacksPiecemeal(MemoryClient):
    """Puts a nacked message behind its successors, each on its own."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            for settlement in settlements:
                if settlement.outcome is Outcome.NACK:
                    settlement.delivery.token.order = math.inf
                yield settlement


@breaks("R11")
class IgnoresDelays(MemoryClient):
    """Delivers again at once."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [attrs.evolve(settlement, delay=0) for settlement in settlements]


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
            return [attrs.evolve(settlement, outcome=Outcome.RETURN) for settlement in settlements]


class _Swallowing(EngineReceiver):
    """A receiver that has no objection."""

    async def acknowledge(self, message: ReceivedMessage | str) -> None:
        with contextlib.suppress(AcknowledgeError):
            await super().acknowledge(message)

    async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
        with contextlib.suppress(AcknowledgeError):
            await super().nack(message, delay=delay)


@breaks("S2", "S3", harness=PatientHarness)
class SettlesAnything(TwistedClient, MemoryClient):
    """Says of no settlement that it came too late."""

    receiver_class = _Swallowing


@breaks("S4")
class SettlesUpToTheFirstError(TwistedClient, MemoryClient):
    """Leaves a batch where something of it cannot be settled."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge_messages(self, messages: Iterable[ReceivedMessage | str]) -> None:
            for message in messages:
                await self.acknowledge(message)


@breaks("S5")
class EndsWithAFailedSettlement(TwistedClient, MemoryClient):
    """Closes its receiver when something cannot be settled."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge(self, message: ReceivedMessage | str) -> None:
            try:
                await super().acknowledge(message)
            except AcknowledgeError:
                await self.close(timeout=0)
                raise


@breaks("S5", harness=CuttingHarness)
class DropsWhatTimedOut(TwistedClient, NetworkClient):
    """Holds a message no longer when its settlement had no answer."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge(self, message: ReceivedMessage | str) -> None:
            try:
                await super().acknowledge(message)
            except AcknowledgeError:
                with self._lock:
                    self._ledger.expire(math.inf)
                raise


@breaks("S5")
class RefusesToRepeat(TwistedClient, MemoryClient):
    """Settles a message at the first call or never."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge(self, message: ReceivedMessage | str) -> None:
            begun = self.__dict__.setdefault("begun", [])
            if message in begun:
                raise AcknowledgeError("a settlement of it was begun before", code=ErrorCode.INTERNAL)
            begun.append(message)
            await asyncio.sleep(0)
            await super().acknowledge(message)


@breaks("C1")
class KeepsWhatItHeld(MemoryClient):
    """Hands nothing back on closing."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [settlement for settlement in settlements if settlement.outcome is not Outcome.RETURN]


@breaks("C2")
class CutsItsClosingShort(MemoryClient):
    """Gives nobody the time to settle."""

    async def close(self, timeout: float = 15.0) -> None:
        await super().close(0)


@breaks("C3")
class LeaksFiles(MemoryClient):
    """Opens a file and leaves it."""

    class driver_class(MemoryDriver):
        """Its driver."""

        async def open(self) -> None:
            os.open(os.devnull, os.O_RDONLY)
            await super().open()


@breaks("F1", harness=CuttingHarness)
class EndsInAnOutage(NetworkClient):
    """Takes a broken connection for the end."""

    class driver_class(NetworkDriver):
        """Its driver."""

        async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:  # type: ignore[override]
            source = await super().subscribe(subscription, wake)
            fetch = source.fetch

            async def fetch_once(limit: int) -> Sequence[Delivery]:
                try:
                    return await fetch(limit)
                except BrokerError as error:
                    raise BrokerError("the session is over", ErrorCode.NOT_FOUND) from error

            source.fetch = fetch_once  # type: ignore[method-assign]
            return source


@breaks("F2", harness=CuttingHarness)
class DeniesItsSessions(SessionClient):
    """Loses with its connection what it declares to be leased."""

    @property
    def capabilities(self) -> Capabilities:
        return attrs.evolve(super().capabilities, redelivery="lease")


@breaks("F2", harness=CuttingHarness)
class ConfirmsWhatItLost(SessionClient):
    """Takes an acknowledgement of what is no longer held."""

    class driver_class(SessionDriver):
        """Its driver."""

        class source_class(SessionSource):
            """Its receivers."""

            async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
                await super().settle(settlements)
                return [None] * len(settlements)


@breaks("F3")
class ClaimsDurability(MemoryClient):
    """Declares what a process cannot keep."""

    @property
    def capabilities(self) -> Capabilities:
        return attrs.evolve(super().capabilities, durable="process_crash")


@breaks("T1")
class BelongsToOneLoop(MemoryClient):
    """Works in the event loop of its first send and in no other."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def send_message(self, message: EventMessage) -> str:
        self._loop = self._loop or asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("attached to a different loop")
        return await super().send_message(message)


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
        return ExceptedHarness(f"{__name__}:LosesNacks")


class MistakenHarness(ImpatientHarness):
    """Excepts what does not exist."""

    exceptions = {"R99": "no such rule"}


class TestMistaken:
    """Every test fails until the exception names a rule or test."""

    test_ping = ConformanceSuite.test_ping_tells_how_long_the_broker_took

    @pytest.fixture
    def harness(self) -> Harness:
        return MistakenHarness()


class NeverCloses(MemoryClient):
    """Waits on closing for what nobody will tell it."""

    async def close(self, timeout: float = 15.0) -> None:
        await asyncio.get_running_loop().create_future()


class ClosesWithAnError(MemoryClient):
    """Is not content with how it ended."""

    async def close(self, timeout: float = 15.0) -> None:
        await super().close(timeout)
        raise OSError("what was sent may be lost")


class HangsElsewhere(MemoryClient):
    """Sends in the event loop of its first send, which nobody may run any more."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def send_message(self, message: EventMessage) -> str:
        self._loop = self._loop or asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            await asyncio.get_running_loop().create_future()
        return await super().send_message(message)


class HastyHarness(ImpatientHarness):
    """Gives a test next to no time."""

    bound = 0.1


class TestUnending:
    """Scenes that do not end by themselves."""

    @pytest.fixture
    def harness(self) -> Harness:
        return HastyHarness(f"{__name__}:HangsElsewhere")

    @rule("R1")
    async def test_that_waits_for_ever(self, stage: Stage) -> None:
        """Nothing was sent."""
        _, receiver = await stage.open()
        await receiver.receive_message()

    test_in_many_loops = ConformanceSuite.test_one_client_serves_loops_one_after_the_other

    @rule("C3")
    async def test_that_leaves_a_task(self, stage: Stage) -> None:
        """As a backend might."""
        self.task = asyncio.create_task(asyncio.sleep(60))


class TestNeverCloses:
    """A backend whose end does not come."""

    @pytest.fixture
    def harness(self) -> Harness:
        return HastyHarness(f"{__name__}:NeverCloses")

    @rule("§3")
    async def test_that_is_over(self, stage: Stage) -> None:
        """What remains is closing."""
        stage.client()


class TestClosesWithAnError:
    """A backend whose end is an error."""

    @pytest.fixture
    def harness(self) -> Harness:
        return ImpatientHarness(f"{__name__}:ClosesWithAnError")

    @rule("§3")
    async def test_that_is_over(self, stage: Stage) -> None:
        """What remains is closing."""
        stage.client()

    @rule("C2")
    async def test_that_each_client_is_closed(self, stage: Stage) -> None:
        """Also after one that raised."""
        clients = [stage.client(), stage.client()]
        for client in clients:
            await client.ping()
        with pytest.raises(OSError, match="lost"):
            await stage.close()
        assert not any(client.is_connected for client in clients)
