"""Kafka keeps the contract."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import pytest

from events_core import EventConfig, EventMessage
from events_core.testing import ConformanceSuite, Harness
from events_core.testing.ordering import Ordering
from events_core.testing.redelivering import Redelivering

from .server import Server

RECORDS = Path(__file__).parents[2] / "docs" / "backends" / "proof"

ALONE = "a partition belongs to one receiver, and the next one gets messages of it only when the first has left"
MEMBERS = "Kafka does not delete a consumer group that has members"


class KafkaHarness(Harness):
    """A broker of the tests.  An outage cuts the proxy that its clients come through."""

    patience = 30.0
    bound = 120.0  # a broker that was killed may take a minute to start on a busy machine
    sdk_modules = ("confluent_kafka",)
    # The limit counts an attribute by its name and value.  In Kafka, the lengths of these take two bytes more.
    refused_message = EventMessage(bytes(845_000), {f"{number:05}": "" for number in range(30_000)})
    not_applicable = {"lease": "a delivery belongs to the receiver's session in its group, and has no lease"}

    def __init__(self, server: Server, **options: str) -> None:
        self._server = server
        self._options = {"session_timeout": "6", **options}
        self._address = server.address

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        given = {"bootstrap_servers": self._address, "create": "all", **self._options, **options}
        return EventConfig(topic_name, options=given, backend="kafka")

    def versions(self) -> Mapping[str, str]:
        return {"Kafka": self._server.version, "confluent-kafka": version("confluent-kafka")}

    def outage(self) -> AbstractContextManager[None] | None:
        if self._server.proxy is None:
            return None
        self._address = self._server.proxy.address
        return self._server.proxy.cut()

    def lost_answers(self) -> AbstractContextManager[None] | None:
        if self._server.proxy is None:
            return None
        self._address = self._server.proxy.address
        return self._server.proxy.lose_answers()

    def restart(self) -> bool:
        return self._server.restart()


class TestKafka(ConformanceSuite):
    """The kit with the defaults: a topic has one partition, which one receiver of a subscription gets."""

    record = "kafka"
    options: Mapping[str, str] = {}
    exceptions: Mapping[str, str] = {
        "test_what_is_buffered_counts_as_held": ALONE,
        "test_what_was_never_handed_out_goes_back_at_once": ALONE,
        "test_a_deleted_subscription_is_made_again": MEMBERS,
        "test_a_deleted_subscription_that_may_not_be_made_is_named": MEMBERS,
        "test_nacking_what_is_gone_with_its_subscription_is_a_no_op": MEMBERS,
    }

    @pytest.fixture
    def harness(self, server: Server) -> Harness:
        harness = KafkaHarness(server, **self.options)
        harness.exceptions = self.exceptions
        # A broker of somebody else is not restarted, so less is shown on it than the record says.
        harness.proof = RECORDS / f"{self.record}.json" if server.is_ours else None
        harness.give_up_after = 300.0
        return harness


class TestSeveralPartitions(Ordering, Redelivering):
    """The tests of order, with three partitions, which the receivers of a subscription share."""

    @pytest.fixture
    def harness(self, server: Server) -> Harness:
        harness = KafkaHarness(server, partitions="3")
        harness.give_up_after = 300.0
        return harness
