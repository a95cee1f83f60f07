"""Backends that each break a rule, and a suite for each: all the kit's tests of that rule.

``test_kit_fails`` runs this file and wants every suite to fail, but the one of a backend that breaks nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, ClassVar

import attrs
import pytest
from network_memory import NetworkClient, NetworkDriver, SessionClient, SessionDriver, SessionSource, outage

from events_core import (
    AcknowledgeError,
    Capabilities,
    ErrorCode,
    EventClient,
    EventConfig,
    EventConnectionError,
    EventError,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    PublishError,
    ReceivedMessage,
    ReceiveError,
)
from events_core.backends import memory
from events_core.backends.memory import MemoryClient, MemoryDriver, MemoryOptions, MemorySource
from events_core.engine import BrokerError, Delivery, EngineClient, Outcome, Settlement, Source
from events_core.engine.batching_publisher import BatchingPublisher
from events_core.engine.inline_receiver import InlineReceiver
from events_core.engine.ledger import Ledger
from events_core.engine.receiver import EngineReceiver
from events_core.interface import API_VERSION, Joining, ReceiverStats
from events_core.observing import UNOBSERVED, Operation, observed
from events_core.testing import ConformanceSuite, Harness, Stage, rule


class ImpatientHarness(Harness):
    """Memory with little patience, because most messages here never come."""

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
    """The same with the patience that an expiry after a second needs."""

    patience = 1.5


class CuttingHarness(PatientHarness):
    """The same behind a network that can be cut."""

    refused_message = EventMessage(b"x", {"refused": ""})

    def outage(self) -> AbstractContextManager[None]:
        return outage()


class LastingHarness(CuttingHarness):
    """The same with a settle time that is long enough for a failure to show on a busy machine."""

    settle_time = 2.0


def breaks(
    *rules: str, harness: type[ImpatientHarness] = ImpatientHarness, by: Collection[str] = ()
) -> Callable[[type[EventClient]], type[EventClient]]:
    """Make a suite of the tests of *rules*, for the client class decorated.

    :param by: only these tests, where the backend breaks one sentence of a rule that has many.
    """

    def decorate(client: type[EventClient]) -> type[EventClient]:
        name = client.__name__
        tests = {test for test in dir(ConformanceSuite) if test.startswith("test_")}
        chosen = by or {test for test in tests if set(rules) & set(getattr(ConformanceSuite, test).rules)}
        others = dict.fromkeys(tests.difference(chosen))
        fixture = pytest.fixture(lambda self: harness(f"{__name__}:{name}"), name="harness")
        globals()[f"Test{name}"] = type(f"Test{name}", (ConformanceSuite,), {"make_harness": fixture, **others})
        return client

    return decorate


class UnknownHarness(PatientHarness):
    """Says no more than it must, and waits as long as a busy machine needs."""

    patience = 60.0
    bound = 300.0
    lease = 0.0
    sdk_modules = ()


class TestUnbroken(ConformanceSuite):
    """The control: the suites below do not fail because they lack patience."""

    @pytest.fixture
    def harness(self) -> Harness:
        return UnknownHarness()


class TwistedDriver(MemoryDriver):
    """A driver whose subclasses twist what passes through it."""

    def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the deliveries that a fetch returns."""
        return deliveries

    def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
        """Return the settlements that the broker is told."""
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
        # The engine asks nobody which class to make.  What a twisted class does not define stays as it was.
        receiver.__class__ = type("Twisted", (self.receiver_class, type(receiver)), {})
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
    """Says always that it is connected."""

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


@breaks("O4")
class KeepsLessThanItDeclares(MemoryClient):
    """Gives receivers without order to a client that requires order."""

    def subscribe(self, subscription: str | None = None) -> Joining[EventReceiver]:
        return Joining(self._joined(subscription))

    async def _joined(self, subscription: str | None) -> EventReceiver:
        receiver: Any = await super().subscribe(subscription)
        receiver._source.capabilities = attrs.evolve(receiver.capabilities, ordering="none")
        return receiver  # type: ignore[no-any-return]


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


@breaks("P2", by=["test_a_large_send_is_split"])
class SendsTooMuchAtOnce(NetworkClient):
    """Splits no send, although its broker takes few messages in a request."""

    class driver_class(NetworkDriver):
        """Its driver."""

        max_batch_messages = 10_000

        async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            if len(messages) > NetworkDriver.max_batch_messages:
                raise BrokerError("the request has too many messages", ErrorCode.EXHAUSTED)
            return await super().publish(messages)


@breaks("P4")
class ReversesBatches(MemoryClient):
    """Stores the last message first."""

    class driver_class(MemoryDriver):
        """Its driver."""

        async def publish(self, messages: Sequence[EventMessage]) -> Sequence[Any]:
            return list(reversed(await super().publish(messages[::-1])))


@breaks("P4", harness=LastingHarness, by=["test_sends_of_a_key_keep_their_order_in_an_outage"])
class ReversesRetries(NetworkClient):
    """Stores the last message first, once it has failed to store any."""

    class driver_class(NetworkDriver):
        """Its driver."""

        _failed = False

        async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            try:
                results = await super().publish(messages[::-1] if self._failed else messages)
            except BrokerError:
                self._failed = True
                raise
            return results[::-1] if self._failed else results


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


@breaks("P3", harness=CuttingHarness, by=["test_results_tell_the_outcome_of_each_message"])
class TellsNoResults(NetworkClient):
    """Says that something failed, not what."""

    async def send_messages(self, messages: Iterable[EventMessage]) -> list[str]:
        try:
            return await super().send_messages(messages)
        except PublishError as error:
            error.results = ()
            raise


@breaks("P3", harness=CuttingHarness, by=["test_each_message_of_a_failed_send_has_a_result"])
class TellsTheDriversResults(NetworkClient):
    """Lets out what is not an error of this library."""

    async def _all(self, results: Sequence[str | BrokerError]) -> list[str]:
        try:
            return await super()._all(results)
        except PublishError as error:
            error.results = results  # type: ignore[assignment]  # the mistake
            raise


@breaks("P3", harness=CuttingHarness, by=["test_results_tell_the_outcome_of_each_message"])
class GoesOnAfterAFailure(NetworkClient):
    """Sends the successors of what was refused."""

    async def send_messages(self, messages: Iterable[EventMessage]) -> list[str]:
        batch = list(messages)
        try:
            return await super().send_messages(batch)
        except PublishError as error:
            results = list(error.results)
            for place, result in enumerate(results):
                if not isinstance(result, str) and result.code is ErrorCode.NOT_ATTEMPTED:
                    results[place] = await self.send_message(batch[place])
            error.results = results
            raise


@breaks("P3", harness=CuttingHarness, by=["test_a_message_that_the_broker_refuses_fails_nobody_elses"])
class SharesRefusals(NetworkClient):
    """Takes the refusal of a request for one of each of its messages."""

    class driver_class(NetworkDriver):
        """Its driver."""

        async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            try:
                return await super().publish(messages)
            except BrokerError as error:
                if error.retryable:
                    raise
                return [error] * len(messages)


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


@breaks("P6", by=["test_past_the_bound_a_send_fails_by_option"])
class CountsNoBytes(IgnorantClient):
    """Bounds what is in flight in messages only."""

    ignored = ("publish_max_bytes",)


@breaks("P6", by=["test_a_send_that_waits_for_room_may_be_cancelled"])
class LeaksRoom(NetworkClient):
    """Keeps the place of a send that was cancelled while it waited for one."""

    class driver_class(NetworkDriver):
        """Its driver, which is so slow that sends still wait when they are cancelled."""

        async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            await asyncio.sleep(0.2)
            return await super().publish(messages)

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config)
        assert isinstance(self._publisher, BatchingPublisher)
        outbox = self._publisher._outbox
        end = outbox.end

        def leak(send: Any, error: BrokerError) -> None:
            waiting = [entry for entry in send.entries if entry.result is None and not entry.admitted]
            end(send, error)
            outbox.messages += len(waiting)

        outbox.end = leak  # type: ignore[method-assign]


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


@breaks("Q1", by=["test_what_one_subscription_settles_another_keeps"])
class SettlesForEverybody(MemoryClient):
    """Takes what one subscription has acknowledged from all of them."""

    class driver_class(TwistedDriver):
        """Its driver."""

        _settled: ClassVar[set[str]] = set()

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            for settlement in settlements:
                self._settled.add(settlement.delivery.message_id)
                yield settlement

        def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            return [delivery for delivery in deliveries if delivery.message_id not in self._settled]


@breaks("Q1", harness=CuttingHarness, by=["test_an_ephemeral_subscription_outlives_an_outage"])
class LosesWhatFollowsAnOutage(NetworkClient):
    """Starts a new ephemeral subscription when its connection is back."""

    class driver_class(NetworkDriver):
        """Its driver."""

        _lost = False

        async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:  # type: ignore[override]
            source = await super().subscribe(subscription, wake)
            fetch = source.fetch

            async def fetch_anew(limit: int) -> Sequence[Delivery]:
                try:
                    deliveries = await fetch(limit)
                except BrokerError:
                    self._lost = True
                    raise
                lost, self._lost = self._lost, False
                return [] if lost else deliveries

            source.fetch = fetch_anew  # type: ignore[method-assign]
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


@breaks("Q3", by=["test_start_earliest_leaves_an_existing_subscription_as_it_is"])
class RewindsOnJoining(MemoryClient):
    """Begins with the oldest message each time."""

    class driver_class(MemoryDriver):
        """Its driver."""

        def _join(self, name: str, *, ephemeral: bool = False) -> Any:
            subscription = self._topic.subscriptions.get(name)
            for stored in self._topic.kept if subscription and self.options.start == "earliest" else ():
                subscription.queue.push(memory._Item(stored))
            return super()._join(name, ephemeral=ephemeral)


@breaks("Q4")
class JoinsAsAMereCoroutine(MemoryClient):
    """Returns a coroutine, which cannot be entered."""

    def subscribe(self, subscription: str | None = None) -> Any:
        return self._awaited(subscription)

    async def _awaited(self, subscription: str | None) -> EventReceiver:
        return await super().subscribe(subscription)


@breaks("R1")
class ComesBackEarly(TwistedClient, MemoryClient):
    """Waits half as long as it should."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
            return await super().receive_messages(limit, timeout and timeout / 2)


@breaks("R1", by=["test_timeouts_are_kept"])
class ComesBackLate(TwistedClient, MemoryClient):
    """Waits twice as long as it should."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
            return await super().receive_messages(limit, timeout and timeout * 2)


@breaks("R1", by=["test_timeouts_are_kept"])
class AlwaysWaits(TwistedClient, MemoryClient):
    """Waits a moment where it should not."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
            return await super().receive_messages(limit, 0.05 if timeout == 0 else timeout)


@breaks("R1", harness=CuttingHarness, by=["test_a_timeout_in_an_outage_gives_none"])
class MakesTimeoutsErrors(TwistedClient, NetworkClient):
    """Raises, at the end of its time, what kept the messages away."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
            received = await super().receive_messages(limit, timeout)
            if not received and not self._settler._link.is_up:
                raise ReceiveError("the broker cannot be reached", code=ErrorCode.UNAVAILABLE, retryable=True)
            return received


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


class _Iteration(AsyncIterator[ReceivedMessage]):
    """Waits once more for each message."""

    def __init__(self, messages: AsyncIterator[ReceivedMessage]) -> None:
        self._messages = messages

    async def __anext__(self) -> ReceivedMessage:
        message = await anext(self._messages)
        await asyncio.sleep(0)
        return message


@breaks("R3", by=["test_a_receive_is_cancelled_anywhere"])
class LosesCancelledIterations(TwistedClient, MemoryClient):
    """Receives as it should, and iterates carelessly."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        def __aiter__(self) -> AsyncIterator[ReceivedMessage]:
            return _Iteration(super().__aiter__())


@breaks("R4")
class HandsOutTwice(MemoryClient):
    """Returns every delivery again."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            return [copy for delivery in deliveries for copy in (delivery, attrs.evolve(delivery, message_id="twice"))]


@breaks("R5")
class HoldsWithoutBounds(IgnorantClient):
    """Fetches all messages, without a bound."""

    ignored = ("max_outstanding_messages", "max_outstanding_bytes")


class LedgerClient(MemoryClient):
    """A client whose receivers count otherwise."""

    ledger_class: type[Ledger]

    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        receiver: Any = await super().subscribe(subscription)
        receiver._ledger.__class__ = self.ledger_class
        return receiver  # type: ignore[no-any-return]


@breaks("R5", harness=LastingHarness, by=["test_what_is_buffered_counts_as_held"])
class BuffersWithoutBounds(LedgerClient, NetworkClient):
    """Counts what is held and not what is buffered."""

    class ledger_class(Ledger):
        """Its count."""

        def room(self, prefetch: int | None) -> int:
            return max(0, self._max_messages - self.held)


@breaks("R5", by=["test_bytes_held_are_bounded_together"])
class BoundsTheLargest(LedgerClient):
    """Bounds the bytes of each message and not of all."""

    class ledger_class(Ledger):
        """Its count."""

        def room(self, prefetch: int | None) -> int:
            total, self._bytes = self._bytes, max((each.size for each in self._live.values()), default=0)
            try:
                return super().room(prefetch)
            finally:
                self._bytes = total


@breaks("R6", harness=PatientHarness)
class LetsLeasesLapse(MemoryClient):
    """Keeps nothing alive for longer than a moment."""

    def __init__(self, config: EventConfig) -> None:
        super().__init__(attrs.evolve(config, options={**config.options, "max_lease_duration": "0.1"}))


@breaks("R6", harness=PatientHarness)
class HoldsForEver(IgnorantClient):
    """Lets nothing expire."""

    ignored = ("max_lease_duration",)


@breaks("R6", harness=PatientHarness, by=["test_a_blocked_loop_loses_nothing_to_another_client"])
class KeptByTheApplication(NetworkClient):
    """Renews what it holds in the event loop that subscribed."""

    lease = 0.2

    class driver_class(NetworkDriver):
        """Its driver."""

        def __init__(self, topic_name: str, project_id: str, options: MemoryOptions) -> None:
            super().__init__(topic_name, project_id, options)
            self.options = attrs.evolve(self.options, max_lease_duration=KeptByTheApplication.lease)

    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        receiver: Any = await super().subscribe(subscription)
        loop = asyncio.get_running_loop()

        def renew() -> None:
            with memory._lock:
                for item in receiver._source._inline._held:
                    item.deadline = time.monotonic() + self.lease
            if not self._closed:
                loop.call_later(self.lease / 4, renew)

        renew()
        return receiver  # type: ignore[no-any-return]


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


@breaks("R10", harness=PatientHarness, by=["test_a_keyed_message_comes_again_the_same"])
class ForgetsAttributes(MemoryClient):
    """Delivers again the data of a keyed message, and its key."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def fetched(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            for delivery in deliveries:
                if delivery.ordering_key and delivery.delivery_attempt != 1:
                    delivery.attributes = {}
            return deliveries


@breaks("R11")
class IgnoresDelays(MemoryClient):
    """Delivers again at once."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [attrs.evolve(settlement, delay=0) for settlement in settlements]


@breaks("R11", by=["test_a_delay_of_several_is_kept"])
class DelaysOneByOne(TwistedClient, MemoryClient):
    """Keeps a delay where one message is nacked."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def nack_messages(self, messages: Iterable[ReceivedMessage | str], *, delay: float | None = None) -> None:
            await super().nack_messages(messages)


@breaks("R11", by=["test_a_delay_of_zero_is_no_backoff"])
class TakesZeroForNone(TwistedClient, MemoryClient):
    """Takes no delay for no wish."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
            await super().nack(message, delay=delay or None)


@breaks("R12")
class BuriesNothing(MemoryClient):
    """Throws dead letters away."""

    class driver_class(MemoryDriver):
        """Its driver."""

        def bury(self, item: Any, subscription: str) -> list[MemorySource]:
            return []


@breaks("R12", harness=PatientHarness, by=["test_a_dead_letter_frees_its_key"])
class BuriesWithoutAKey(MemoryClient):
    """Strips its dead letters of their key."""

    class driver_class(MemoryDriver):
        """Its driver."""

        def bury(self, item: Any, subscription: str) -> list[MemorySource]:
            item.stored.ordering_key = None
            return super().bury(item, subscription)


@breaks("R12", harness=PatientHarness, by=["test_a_message_that_expired_too_often_is_dead_lettered"])
class ForgivesExpiries(MemoryClient):
    """Takes what expired back as if it had never been handed out."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [attrs.evolve(settlement, outcome=Outcome.RETURN) for settlement in settlements]

        async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
            source = await super().subscribe(subscription, wake)
            take_back = source._take_back
            source._take_back = lambda item, outcome, *rest: take_back(item, Outcome.RETURN, *rest)  # type: ignore[method-assign]
            return source


@breaks("N1", by=["test_a_failure_of_native_work_comes_back_unchanged"])
class WrapsForeignFailures(MemoryClient):
    """Takes a failure of the application's own code for one of its connection."""

    async def run_native(self, work: Callable[[Any], Awaitable[Any]], timeout: float = 30.0) -> Any:
        try:
            return await super().run_native(work, timeout)
        except EventError:
            raise
        except Exception as error:
            raise EventConnectionError("the native work failed", code=ErrorCode.INTERNAL) from error


@breaks("S6", by=["test_a_rejected_message_is_dead_lettered_at_once"])
class NacksWhatIsRejected(MemoryClient):
    """Takes a rejection for a nack."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            for each in settlements:
                yield attrs.evolve(each, outcome=Outcome.NACK) if each.outcome is Outcome.REJECT else each


@breaks(
    *("S6", "H3"),
    by=[
        "test_rejecting_without_a_dead_letter_topic_is_refused",
        "test_a_message_that_cannot_be_rejected_is_nacked",
    ],
)
class HidesThatItCannotReject(TwistedClient, MemoryClient):
    """Nacks a rejected message, and says nothing."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def reject(self, message: ReceivedMessage | str, reason: str = "") -> None:
            await self.nack(message)


@breaks("S6", by=["test_a_reason_that_is_no_text_is_refused"])
class TakesEveryReason(TwistedClient, MemoryClient):
    """Rejects with a reason of any type."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def reject(self, message: ReceivedMessage | str, reason: str = "") -> None:
            await super().reject(message, str(reason))


@breaks("H3", by=["test_a_handler_rejects_its_message", "test_a_handler_asks_for_its_message_later"])
class NacksWhateverIsRaised(TwistedClient, MemoryClient):
    """Does not know the exceptions of a handler that decides."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        @asynccontextmanager
        async def processing(self, message: ReceivedMessage) -> AsyncIterator[ReceivedMessage]:
            try:
                yield message
            except BaseException:
                await self.nack(message)
                raise
            await self.acknowledge(message)


@breaks("S1")
class ForgetsAcknowledgements(MemoryClient):
    """Takes an acknowledgement for a return."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            return [attrs.evolve(settlement, outcome=Outcome.RETURN) for settlement in settlements]


@breaks("S1", harness=CuttingHarness, by=["test_acknowledging_twice_waits_for_the_confirmation"])
class ConfirmsTheSecondTime(TwistedClient, NetworkClient):
    """Says of what was begun that it is done."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge(self, message: ReceivedMessage | str) -> None:
            begun = self.__dict__.setdefault("begun", [])
            if message not in begun:
                begun.append(message)
                await super().acknowledge(message)


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


@breaks("S2", harness=PatientHarness, by=["test_of_outcomes_at_once_one_stands"])
class TakesBothOutcomes(TwistedClient, MemoryClient):
    """Objects to no settlement while another is under way."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge(self, message: ReceivedMessage | str) -> None:
            await self._among_others(message, super().acknowledge(message))

        async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
            await self._among_others(message, super().nack(message, delay=delay))

        async def _among_others(self, message: ReceivedMessage | str, settling: Awaitable[None]) -> None:
            under_way = self.__dict__.setdefault("under_way", [])
            alone = message not in under_way
            under_way.append(message)
            try:
                await asyncio.sleep(0)
                await settling
            except AcknowledgeError:
                if alone:
                    raise
            finally:
                under_way.remove(message)


@breaks("S2", harness=PatientHarness, by=["test_the_first_outcome_stands"])
class AcknowledgesAnyId(TwistedClient, MemoryClient):
    """Accepts an acknowledgement by id in any state of the message."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge(self, message: ReceivedMessage | str) -> None:
            with contextlib.suppress(*[AcknowledgeError] if isinstance(message, str) else ()):
                await super().acknowledge(message)


@breaks("S3", by=["test_nacking_what_is_gone_with_its_subscription_is_a_no_op"])
class ObjectsToNacks(TwistedClient, MemoryClient):
    """Wants to be asked about what it has, failed or not."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
            source: Any = self._source
            if source._of.deleted:
                raise AcknowledgeError("the subscription is gone", code=ErrorCode.EXPIRED)
            await super().nack(message, delay=delay)


@breaks("S3", by=["test_the_last_ten_thousand_are_remembered"])
class RemembersTen(TwistedClient, MemoryClient):
    """Knows ten of the messages that it has settled."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge_messages(self, messages: Iterable[ReceivedMessage | str]) -> None:
            await super().acknowledge_messages(messages)
            self._ledger._older.clear()
            while len(self._ledger._over) > 10:
                del self._ledger._over[next(iter(self._ledger._over))]


@breaks("S4", by=["test_each_failure_of_a_batch_is_an_error_of_settling"])
class TellsTheDriversFailures(TwistedClient, MemoryClient):
    """Lets out what is not an error of this library."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        def _failed(self, failed: dict[str, BrokerError], single: bool) -> Any:
            error: Any = super()._failed(failed, single)
            error.failed = failed
            return error


@breaks("§5")
class NamesNoPlace(TwistedClient, MemoryClient):
    """Does not say where a settlement failed."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def acknowledge(self, message: ReceivedMessage | str) -> None:
            try:
                await super().acknowledge(message)
            except AcknowledgeError as error:
                error.backend = error.topic_name = ""
                raise


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


@breaks("C1", by=["test_what_is_held_at_the_end_goes_back"])
class StaysOnLeaving(TwistedClient, MemoryClient):
    """Waits at the end of ``async with`` for what is held."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def __aexit__(self, *_: object) -> None:
            await self.close()


class _Processing(EngineReceiver):
    """A receiver that settles a message as it likes."""

    async def failed(self, message: ReceivedMessage, error: Exception) -> None:
        """The body has raised."""
        await self.nack(message)
        raise error

    @asynccontextmanager
    async def processing(self, message: ReceivedMessage) -> AsyncIterator[ReceivedMessage]:
        try:
            yield message
        except Exception as error:
            await self.failed(message, error)
        else:
            await self.acknowledge(message)


@breaks("H1", by=["test_what_failed_is_nacked"])
class SwallowsFailures(TwistedClient, MemoryClient):
    """Nacks a message that failed, and swallows the exception."""

    class receiver_class(_Processing):
        """Its receivers."""

        async def failed(self, message: ReceivedMessage, error: Exception) -> None:
            await self.nack(message)


@breaks("H1", by=["test_what_failed_is_nacked"])
class LeavesFailuresHeld(TwistedClient, MemoryClient):
    """Settles what was processed only."""

    class receiver_class(_Processing):
        """Its receivers."""

        async def failed(self, message: ReceivedMessage, error: Exception) -> None:
            raise error


@breaks("H1", harness=PatientHarness, by=["test_what_expired_meanwhile_is_logged"])
class RaisesExpiries(TwistedClient, MemoryClient):
    """Makes an error of what comes again anyway."""

    receiver_class = _Processing


@breaks("H1", "H2", by=["test_what_was_cancelled_is_handed_back", "test_consuming_is_cancelled"])
class CountsWhatIsHandedBack(TwistedClient, MemoryClient):
    """Takes a message that was not processed for one that failed."""

    class receiver_class(EngineReceiver):
        """Its receivers."""

        async def hand_back(self, message: ReceivedMessage) -> None:
            await self.nack(message, delay=0)


@breaks("C2")
class CutsItsClosingShort(MemoryClient):
    """Gives the application no time to settle."""

    async def close(self, timeout: float = 15.0) -> None:
        await super().close(0)


@breaks("C2", harness=CuttingHarness, by=["test_closing_in_an_outage_ends_what_waits"])
class BlamesItself(NetworkClient):
    """Calls it a defect when a send ends with its client."""

    async def send_message(self, message: EventMessage) -> str:
        try:
            return await super().send_message(message)
        except EventRuntimeError as error:
            raise PublishError("the send was given up", code=ErrorCode.INTERNAL) from error


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


@breaks(
    "F1",
    by=["test_a_deleted_subscription_is_made_again", "test_a_deleted_subscription_that_may_not_be_made_is_named"],
)
class WaitsForTheDeleted(MemoryClient):
    """Takes a subscription that is gone for an empty one."""

    class driver_class(MemoryDriver):
        """Its driver."""

        async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
            source = await super().subscribe(subscription, wake)
            fetch = source.fetch

            async def fetch_what_is_there(limit: int) -> Sequence[Delivery]:
                return [] if source._of.deleted else await fetch(limit)

            source.fetch = fetch_what_is_there  # type: ignore[method-assign]
            return source


class ForgetfulSource(SessionSource):
    """A source that knows what it has lost, and does not settle that even if it has come again meanwhile."""

    def __init__(self, inline: Source) -> None:
        super().__init__(inline)
        self.lost_ids: set[str] = set()

    def _lose(self) -> None:
        self.lost_ids |= {item.stored.message_id for item in self._inline._held}  # type: ignore[attr-defined]
        super()._lose()


@breaks("F2", harness=CuttingHarness)
class DeniesItsSessions(SessionClient):
    """Loses with its connection what it declares to be leased."""

    class driver_class(SessionDriver):
        """Its driver."""

        class source_class(ForgetfulSource):
            """Its receivers."""

            async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
                results = await super().settle(settlements)
                lost = BrokerError("lost with its connection", ErrorCode.EXPIRED)
                return [
                    lost if settlement.delivery.message_id in self.lost_ids else result
                    for settlement, result in zip(settlements, results, strict=True)
                ]

    @property
    def capabilities(self) -> Capabilities:
        return attrs.evolve(super().capabilities, redelivery="lease")


@breaks("F2", harness=CuttingHarness)
class ConfirmsWhatItLost(SessionClient):
    """Takes an acknowledgement of what is no longer held."""

    class driver_class(SessionDriver):
        """Its driver."""

        class source_class(ForgetfulSource):
            """Its receivers."""

            async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
                known = [each for each in settlements if each.delivery.message_id not in self.lost_ids]
                returned = [Settlement(each.delivery, Outcome.RETURN) for each in settlements if each not in known]
                await super().settle([*known, *returned])
                self.lost_ids -= {each.delivery.message_id for each in returned}
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


@breaks("T2", by=["test_a_connected_client_refuses_to_work_in_a_forked_child"])
class ClosesAfterAFork(MemoryClient):
    """Does not mind being closed where it was not connected."""

    async def close(self, timeout: float = 15.0) -> None:
        with contextlib.suppress(EventRuntimeError):
            await super().close(timeout)


@breaks("T2", by=["test_a_new_client_in_a_forked_child_stores_what_it_confirms_or_refuses"])
class LosesWhatAChildSends(MemoryClient):
    """Declares itself durable and confirms in a forked child what only that child has."""

    @property
    def capabilities(self) -> Capabilities:
        return attrs.evolve(super().capabilities, durable="process_crash")


@breaks("V1", by=["test_an_observer_is_told_of_each_operation"])
class TellsNobody(MemoryClient):
    """Has an observer and leaves it alone."""

    def _observed(self, *_: object, **__: object) -> AbstractContextManager[Operation | None]:
        return UNOBSERVED


class ReceiverAsBefore(InlineReceiver):
    """Does not tell the observer of the processing of a message."""

    observe_processing = EventReceiver.observe_processing


@breaks("V1")
class TellsAsBefore(MemoryClient):
    """Breaks nothing: its observer learns what the first version of the contract asked for."""

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config)
        self._receiver_class = ReceiverAsBefore

    def _observed(self, name: Any, *, subscription: str = "", messages: int = 0, **_: object) -> Any:
        assert self.observer is not None
        place = {"backend": self._backend, "topic_name": self._topic_name, "subscription": subscription}
        return observed(self.observer, name, **place, messages=messages)


class SecretiveReceiver(InlineReceiver):
    """Tells the observer of the processing of a message when it is over."""

    def observe_processing(self, message: ReceivedMessage) -> AbstractContextManager[object]:
        with super().observe_processing(message):
            return UNOBSERVED


@breaks(
    "V1",
    by=[
        "test_an_observer_sees_the_messages",
        "test_an_observer_is_told_of_processing",
        "test_an_observer_adds_attributes",
        "test_attributes_of_an_observer_never_fail_a_send",
    ],
)
class TellsTooLittle(MemoryClient):
    """Keeps ids from the observer, tells it too early, and lets it overwrite attributes."""

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config)
        self._receiver_class = SecretiveReceiver

    def _extended(self, messages: Sequence[EventMessage], operation: Operation | None) -> Sequence[EventMessage]:
        assert operation is not None
        operation.outgoing = operation.outgoing[:1]
        added = [operation.extended.get(index, message) for index, message in enumerate(messages)]
        return [
            message.with_attributes({"own": "added"}) if "own" in message.attributes else message for message in added
        ]


@breaks("V1", by=["test_nothing_is_printed"])
class Prints(MemoryClient):
    """Prints what it does."""

    async def send_message(self, message: EventMessage) -> str:
        print("sending", message)
        return await super().send_message(message)


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
    """Waits on closing for an event that never comes."""

    async def close(self, timeout: float = 15.0) -> None:
        await asyncio.get_running_loop().create_future()


class ClosesWithAnError(MemoryClient):
    """Is not content with how it ended."""

    async def close(self, timeout: float = 15.0) -> None:
        await super().close(timeout)
        raise OSError("what was sent may be lost")


class HangsElsewhere(MemoryClient):
    """Sends in the event loop of its first send, which may not run any more."""

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
        """The test leaves a task, as a defective backend might."""
        self.task = asyncio.create_task(asyncio.sleep(60))


class ExhaustedHarness(ImpatientHarness):
    """Has no time to lose."""

    give_up_after = 0.0


class TestGivesUp:
    """The first failure is told, and the rest left out."""

    test_first = ConformanceSuite.test_a_nacked_message_comes_again_the_same
    test_second = ConformanceSuite.test_a_timeout_gives_none

    @pytest.fixture
    def harness(self) -> Harness:
        return ExhaustedHarness(f"{__name__}:LosesNacks")


class Complains(MemoryClient):
    """Loses what is nacked, and logs what it does."""

    class driver_class(TwistedDriver):
        """Its driver."""

        def settled(self, settlements: Iterable[Settlement]) -> Iterable[Settlement]:
            logging.getLogger("broken_backends.driver").warning("a settlement\nof two lines")
            return [attrs.evolve(settlement, outcome=Outcome.ACK) for settlement in settlements]


class TestComplains:
    """A backend that knows what is wrong with it."""

    test_nack = ConformanceSuite.test_a_nacked_message_comes_again_the_same

    @pytest.fixture
    def harness(self) -> Harness:
        return ImpatientHarness(f"{__name__}:Complains")


class TestNeverCloses:
    """A backend whose end does not come."""

    @pytest.fixture
    def harness(self) -> Harness:
        return HastyHarness(f"{__name__}:NeverCloses")

    @rule("§3")
    async def test_that_is_over(self, stage: Stage) -> None:
        """The test itself passes; closing follows."""
        stage.client()


class TestClosesWithAnError:
    """A backend whose end is an error."""

    @pytest.fixture
    def harness(self) -> Harness:
        return ImpatientHarness(f"{__name__}:ClosesWithAnError")

    @rule("§3")
    async def test_that_is_over(self, stage: Stage) -> None:
        """The test itself passes; closing follows."""
        stage.client()

    @rule("C2")
    async def test_that_each_client_is_closed(self, stage: Stage) -> None:
        """The stage closes the second client although closing the first one raised."""
        clients = [stage.client(), stage.client()]
        for client in clients:
            await client.ping()
        with pytest.raises(OSError, match="lost"):
            await stage.close()
        assert not any(client.is_connected for client in clients)
