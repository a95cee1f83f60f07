"""Brokers that each break a promise which no single receiver can see: it takes a pause, a crash, a restart or a loss.

Each is a mutant of the broker in ``file_broker``, with a suite of the kit's tests of the rule that it breaks, as in
``broken_backends``.  The script ``tests/benchmarks/kit_mutants.py`` tries the whole kit on each.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from file_broker import Broker, Entry, FileClient, FileDriver, FileSource

from events_core import EventClient, EventConfig, EventMessage
from events_core.engine import BrokerError, Delivery, Outcome, Settlement
from events_core.testing import ConformanceSuite, Harness

MUTANTS: dict[str, Collection[str]] = {}
"""The name of each class below, with the rules on which the kit must find it out."""


class FileHarness(Harness):
    """A broker in a file, as its author would try it."""

    settle_time = 0.3
    patience = 30.0
    bound = 300.0
    lease = 3.0  # so long that a busy machine extends it in time
    lease_options = {"lease": "3"}

    def __init__(self, backend: str, path: Path) -> None:
        self._backend = backend
        self._path = path
        self._broker = Broker(str(path))

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        return EventConfig(topic_name, options={"path": str(self._path), **options}, backend=self._backend)

    def outage(self) -> AbstractContextManager[None]:
        return self._broker.while_fault("cut")

    def lost_answers(self) -> AbstractContextManager[None]:
        return self._broker.while_fault("deaf")

    def restart(self) -> bool:
        self._broker.restart()
        return True


class HastyHarness(FileHarness):
    """The same with little patience, because most messages here never come."""

    patience = 10.0
    bound = 20.0


class SilentHarness(FileHarness):
    """The same without lost answers, restarts and a known lease."""

    lease = 0.0

    def outage(self) -> None:  # type: ignore[override]
        return None

    def lost_answers(self) -> None:  # type: ignore[override]
        return None

    def restart(self) -> bool:
        return False


def suite(name: str, tests: Collection[str] = (), harness: type[FileHarness] = FileHarness) -> type[ConformanceSuite]:
    """Return a suite of *tests*, or of all tests, for the client class called *name*."""

    def make(self: object, tmp_path: Path) -> Harness:
        return harness(f"{__name__}:{name}", tmp_path / "broker")

    every = {test for test in dir(ConformanceSuite) if test.startswith("test_")}
    others = dict.fromkeys(every.difference(tests) if tests else ())
    fixture = pytest.fixture(make, name="harness")
    return type(f"Test{name}", (ConformanceSuite,), {"make_harness": fixture, **others})


def breaks(*rules: str, by: Collection[str]) -> Callable[[type[EventClient]], type[EventClient]]:
    """Make a suite of the tests *by* for the client class decorated."""

    def decorate(client: type[EventClient]) -> type[EventClient]:
        MUTANTS[client.__name__] = rules
        globals()[f"Test{client.__name__}"] = suite(client.__name__, by, HastyHarness)
        return client

    return decorate


class Sound(FileClient):
    """Breaks nothing."""


@breaks("F3", by=["test_a_confirmed_message_survives_the_broker"])
class LosesItsMemory(FileClient):
    """Confirms what it has not written, which a crash of the application does not show."""

    class driver_class(FileDriver):
        """Its driver."""

        def entry(self, message: EventMessage, message_id: str) -> Entry:
            return {**super().entry(message, message_id), "in memory": True}


@breaks("S1", by=["test_a_confirmed_acknowledgement_survives_the_broker"])
class ForgetsWhatItConfirmed(FileClient):
    """Keeps acknowledgements in its memory only: it is not exactly once."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            def settle_one(self, entries: list[Entry], settlement: Settlement) -> BrokerError | None:
                entry = self.owned(entries, settlement.delivery)
                if entry is not None and settlement.outcome is Outcome.ACK:
                    entry.update({"owner": "", "until": 0.0, "acknowledged in memory": True})
                    return None
                return super().settle_one(entries, settlement)

            def queue(self, entries: list[Entry], now: float) -> list[Entry]:
                return [entry for entry in entries if not entry.get("acknowledged in memory")]


@breaks("P7", by=["test_a_retried_send_is_stored_once"])
class StoresAgain(FileClient):
    """Declares that a repeated request is known, and does not look."""

    class driver_class(FileDriver):
        """Its driver."""

        def store(self, state: Any, message: EventMessage, number: str) -> str:
            return super().store(state, message, uuid.uuid4().hex)


@breaks("S3", by=["test_settling_after_the_lease_changes_nothing"])
class SettlesForOthers(FileClient):
    """Settles a message although another receiver holds it now."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            def settle_one(self, entries: list[Entry], settlement: Settlement) -> BrokerError | None:
                for entry in entries:
                    if entry["id"] == settlement.delivery.message_id:
                        entry["owner"] = settlement.delivery.token
                return super().settle_one(entries, settlement)


@breaks("S1", by=["test_settling_after_the_lease_changes_nothing"])
class ConfirmsTooLate(FileClient):
    """Confirms what it does not do, when the lease is over: it is not exactly once."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            def settle_one(self, entries: list[Entry], settlement: Settlement) -> BrokerError | None:
                super().settle_one(entries, settlement)
                return None


@breaks("R6", by=["test_extending_after_the_lease_takes_nothing_from_others"])
class StealsByExtending(FileClient):
    """Extends a message for any receiver that asks."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
                asked = {delivery.message_id: delivery.token for delivery in deliveries}
                with self.driver.broker.changed() as state:
                    for entry in self.driver.join(state, self.subscription, ephemeral=self.ephemeral):
                        if entry["id"] in asked:
                            entry.update(owner=asked[entry["id"]], until=time.time() + self.lease)
                return ()


@breaks("R6", by=["test_extending_after_the_lease_takes_nothing_from_others"])
class HidesByExtending(FileClient):
    """Keeps a message from all receivers while its former receiver still extends it."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
                asked = {delivery.message_id for delivery in deliveries}
                with self.driver.broker.changed() as state:
                    for entry in self.driver.join(state, self.subscription, ephemeral=self.ephemeral):
                        if entry["id"] in asked:
                            entry.update(until=time.time() + self.lease)
                return ()


@breaks("R10", by=["test_a_run_of_a_dead_process_comes_again_in_order"])
class PutsLapsedRunsBehind(FileClient):
    """Puts the messages of a dead receiver behind all others."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            def queue(self, entries: list[Entry], now: float) -> list[Entry]:
                return sorted(entries, key=lambda entry: 0 < entry["until"] <= now)


@breaks("R10", by=["test_a_run_of_a_dead_process_comes_again_in_order"])
class ForgetsKeysOfTheDead(FileClient):
    """Frees the keys of a receiver that gave no sign of life a moment before it frees the messages."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            def queue(self, entries: list[Entry], now: float) -> list[Entry]:
                lapsed = [entry for entry in entries if 0 < entry["until"] <= now and not entry.get("noticed")]
                for entry in lapsed:
                    entry["noticed"] = True
                return [entry for entry in entries if entry not in lapsed]


@breaks("Q3", by=["test_what_is_older_than_its_retention_is_gone"])
class KeepsEverything(FileClient):
    """Has an option for how long it keeps messages, and does not read it."""

    class driver_class(FileDriver):
        """Its driver."""

        def prune(self, topic: Any, now: float) -> None:
            pass


@breaks("C1", by=["test_what_was_never_handed_out_goes_back_at_once"])
class GivesNothingBack(FileClient):
    """Fetches more than was asked for, and forgets it on closing."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            prefetch = 1
            _more: Sequence[Delivery] = ()

            def take(self, limit: int) -> list[Delivery]:
                ahead = [*self._more, *super().take(limit + 10)]
                self._more = ahead[limit:]
                return ahead[:limit]

            def lend(self, entry: Entry, now: float) -> Delivery:
                delivery = super().lend(entry, now)
                entry["until"] = now + 3600
                return delivery


@breaks("P5", "R9", by=["test_concurrent_sends_lose_nothing"])
class TrimsWhatNobodyHas(FileClient):
    """Keeps ten messages, acknowledged or not."""

    class driver_class(FileDriver):
        """Its driver."""

        def store(self, state: Any, message: EventMessage, number: str) -> str:
            message_id = super().store(state, message, number)
            for entries in self.topic(state)["subscriptions"].values():
                del entries[:-10]
            return message_id


@breaks("C2", "C1", by=["test_closing_a_client_closes_its_receivers"])
class ClosesBeforeItSettles(FileClient):
    """Closes its session when it fetches no more, so that later settlements wait endlessly."""

    class driver_class(FileDriver):
        """Its driver."""

        class source_class(FileSource):
            """Its receivers."""

            _closed = False

            async def fetch(self, limit: int) -> Sequence[Delivery]:
                try:
                    return await super().fetch(limit)
                finally:
                    self._closed = asyncio.current_task().cancelling() > 0  # type: ignore[union-attr]

            async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
                if self._closed:
                    await asyncio.Event().wait()
                return await super().settle(settlements)


PROVING = [name for name in dir(ConformanceSuite) if getattr(getattr(ConformanceSuite, name), "proves", ())]
"""The tests that prove a declared capability."""

TestProvable = suite("Sound", PROVING)
TestUnprovable = suite("Sound", PROVING, SilentHarness)
