"""Pub/Sub keeps the contract, as far as its emulator can show it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.testing import ConformanceSuite, Harness, TcpProxy

from .console import SHORT_LEASE

ABSORBED = "the emulator delivers into the stream of a lost connection, lease after lease"

OVERTAKEN = "the emulator delivers the successors of a message that was given back before it"

HEAPED = "the emulator delivers into the stream of a receiver that has no room, and reads nothing"

LATE = "Pub/Sub takes an acknowledgement after its deadline, unless delivery is exactly once"

RECORDS = Path(__file__).parents[2] / "docs" / "backends" / "proof"

FORKED = (
    "gRPC restarts its own threads in a forked child, where they sometimes crash it; with GRPC_ENABLE_FORK_SUPPORT=0 "
    "they do not"
)


class GcpHarness(Harness):
    """The emulator.  An outage cuts a proxy in front of it."""

    settle_time = 0.5
    patience = 40.0
    bound = 120.0
    lease = 10.0
    lease_options = {"ack_deadline": "10"}
    dead_letter_attempts = 5
    not_applicable = {
        "restart": "the emulator keeps nothing when it ends",
    }
    sdk_modules = ("google.cloud", "google.pubsub_v1", "google.auth", "grpc")
    exceptions = {
        "test_a_receiver_outlives_an_outage": ABSORBED,
        "test_an_ephemeral_subscription_outlives_an_outage": ABSORBED,
        "test_an_outage_is_one_reconnect": ABSORBED,
        "test_sends_outlive_an_outage": ABSORBED,
        "test_sends_of_a_key_keep_their_order_in_an_outage": ABSORBED,
        "test_what_a_dead_process_held_comes_again": ABSORBED,
        "test_an_acknowledgement_whose_answer_is_lost_ends": ABSORBED,
        "test_a_send_whose_answer_is_lost_ends": ABSORBED,
        "test_a_process_that_was_stopped_has_lost_its_messages": ABSORBED,
        "test_settling_after_the_lease_changes_nothing": LATE,
        "test_a_connected_client_refuses_to_work_in_a_forked_child": FORKED,
        "test_a_new_client_in_a_forked_child_stores_what_it_confirms_or_refuses": FORKED,
        "test_what_is_buffered_counts_as_held": "the emulator delivers into a stream beyond the bounds it was told",
        "test_nothing_is_left": "gRPC closes its sockets a moment after its channel",
    }

    def __init__(self, emulator: str, **options: str) -> None:
        self._emulator = emulator
        self._options = options
        self.proxy: TcpProxy | None = None

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        reached = {"emulator_host": self._emulator, **SHORT_LEASE}
        if self.proxy:
            # The emulator keeps the stream of a lost connection, and what it delivers into it comes a lease later.
            reached = {"emulator_host": self.proxy.address, **self.lease_options}
        return EventConfig(topic_name, "events-test", {**reached, **self._options, **options}, "gcp")

    def versions(self) -> Mapping[str, str]:
        return {"google-cloud-pubsub": version("google-cloud-pubsub"), **_emulator_version()}

    def outage(self) -> AbstractContextManager[None]:
        return self._behind_a_proxy().cut()

    def lost_answers(self) -> AbstractContextManager[None]:
        return self._behind_a_proxy().lose_answers()

    def _behind_a_proxy(self) -> TcpProxy:
        self.proxy = self.proxy or TcpProxy(self._emulator)
        return self.proxy


def _emulator_version() -> dict[str, str]:
    """Return the version of gcloud's emulator, if there is one: the name of its archive has it."""
    gcloud = Path(shutil.which("gcloud") or "").resolve()
    archives = [*gcloud.parent.parent.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar")]
    return {"Pub/Sub emulator": archives[0].name.split("-")[3]} if archives else {}


class TestGcp(ConformanceSuite):
    """The kit with default options."""

    record = "gcp"
    options: Mapping[str, str] = {}
    exceptions: Mapping[str, str] = {
        "test_a_close_is_cancelled_anywhere": OVERTAKEN,
        "test_a_wait_for_room_is_cancelled_anywhere": OVERTAKEN,
        "test_extending_after_the_lease_takes_nothing_from_others": HEAPED,
    }

    @pytest.fixture
    def harness(self, emulator: str) -> Iterator[Harness]:
        harness = GcpHarness(emulator, **self.options)
        harness.exceptions = {**harness.exceptions, **self.exceptions}
        harness.proof = RECORDS / f"{self.record}.json"
        yield harness
        if harness.proxy:
            harness.proxy.close()


class TestGcpPull(TestGcp):
    """The kit with one request for each batch."""

    record = "gcp-pull"
    options = {"receive_mode": "pull"}
    exceptions = {
        "test_a_close_is_cancelled_anywhere": OVERTAKEN,
        "test_a_wait_for_room_is_cancelled_anywhere": OVERTAKEN,
        "test_consuming_is_cancelled_anywhere": OVERTAKEN,
    }


class TestGcpExactlyOnce(TestGcp):
    """The kit with exactly-once delivery, and with order only in tests that ask for it."""

    record = "gcp-exactly-once"
    options = {"exactly_once": "true", "ordering": "false"}
    exceptions = {
        "test_settling_after_the_lease_changes_nothing": HEAPED,
        "test_extending_after_the_lease_takes_nothing_from_others": HEAPED,
        "test_acknowledged_successors_may_come_again": "with exactly-once delivery Pub/Sub takes no acknowledgement of "
        "a key before that of a predecessor",
    }
