"""SQS keeps the contract, as far as its emulators can show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.testing import ConformanceSuite, Harness, TcpProxy

from .server import KEY, REGION, SECRET, Server

RECORDS = Path(__file__).parents[2] / "docs" / "backends" / "proof"

STORED = "SQS is a service: its clients cannot restart it, and the emulators lose their messages when they are killed"

SINGLE = "with topology=queue a topic has one subscription, which has the name of the topic, and it is the queue itself"


class SQSHarness(Harness):
    """An emulator.  An outage cuts a proxy in front of it."""

    settle_time = 0.5
    patience = 40.0  # longer than the visibility timeout, after which a message comes that could not be handed back
    bound = 300.0  # for a busy machine; 40 are enough on a quiet one
    lease = 6.0  # so long that a busy machine renews it in time
    lease_options = {"visibility_timeout": "6"}
    sdk_modules = ("aiobotocore", "aiohttp", "botocore")
    not_applicable = {"restart": STORED}

    def __init__(self, servers: Sequence[Server], **options: str) -> None:
        self._servers = servers
        self._server = servers[0]
        self._options = options
        self.proxy: TcpProxy | None = None

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        address = self.proxy.address if self.proxy else self._server.address
        given = {
            "region": REGION,
            "endpoint_url": f"http://{address}",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            "create": "all",
            "wait_time": "1",  # a close waits for the request that is out
            # What a request brings whose connection has broken comes again after this time.
            "visibility_timeout": "4" if self.proxy else "20",
        }
        return EventConfig(topic_name, options={**given, **self._options, **options}, backend="sqs")

    def versions(self) -> Mapping[str, str]:
        return {**{each.name: each.version for each in self._servers}, "aiobotocore": version("aiobotocore")}

    def outage(self) -> AbstractContextManager[None]:
        return self._behind_a_proxy().cut()

    def lost_answers(self) -> AbstractContextManager[None]:
        return self._behind_a_proxy().lose_answers()

    def _behind_a_proxy(self) -> TcpProxy:
        self.proxy = self.proxy or TcpProxy(self._server.address)
        return self.proxy


class QueueHarness(SQSHarness):
    """A topic that is one queue.  Its only subscription has the name of the topic."""

    def name(self, topic_name: str, word: str) -> str:
        # The kit asks for subscriptions: of the topic, of its dead letters, of another topic, and of the topic of each
        # run of a test that cancels a call in many places.
        names = {"shared": "", "undertaker": "-dead", "letters": "-dead", "elsewhere": "-other"}
        name = names.get(word, f"-{word.replace('shared-', 'run-')}")
        return f"{topic_name}{name}"


class Kit(ConformanceSuite):
    """The kit on one emulator."""

    record = ""
    options: Mapping[str, str] = {}
    exceptions: Mapping[str, str] = {}
    harness_class: type[SQSHarness] = SQSHarness

    @pytest.fixture
    def emulators(self, server: Server) -> Sequence[Server]:
        """Return the emulator of a test, and others whose versions the record of the suite names too."""
        return [server]

    @pytest.fixture
    def harness(self, emulators: Sequence[Server]) -> Iterator[Harness]:
        harness = self.harness_class(emulators, **self.options)
        harness.exceptions = self.exceptions
        harness.proof = RECORDS / f"{self.record}.json" if all(each.is_ours for each in emulators) else None
        harness.give_up_after = 300.0
        yield harness
        if harness.proxy:
            harness.proxy.close()


class TestSQS(Kit):
    """Standard queues that are subscribed to SNS topics, on MiniStack."""

    record = "sqs"


class TestSQSInOrder(Kit):
    """FIFO queues that are subscribed to SNS FIFO topics, on MiniStack."""

    record = "sqs-in-order"
    options = {"ordering": "true"}


class TestSQSQueue(Kit):
    """Standard queues without SNS, on ElasticMQ."""

    record = "sqs-queue"
    options = {"topology": "queue"}
    harness_class = QueueHarness
    exceptions = dict.fromkeys(
        (
            "test_a_client_tells_its_topic_and_state",
            "test_a_dead_letter_waits_for_its_reader",
            "test_a_missing_subscription_is_named",
            "test_a_process_that_was_stopped_has_lost_its_messages",
            "test_a_new_subscription_begins_with_what_is_sent_next",
            "test_an_ephemeral_subscription_ends_with_its_receiver",
            "test_an_ephemeral_subscription_outlives_an_outage",
            "test_an_unknown_id_is_not_found",
            "test_connecting_is_cancelled_anywhere",
            "test_only_what_is_allowed_is_created",
            "test_subscribing_is_a_coroutine",
            "test_subscriptions_each_get_everything",
            "test_the_class_says_which_operation_failed",
            "test_the_option_names_the_subscription",
            "test_what_one_subscription_settles_another_keeps",
        ),
        SINGLE,
    )

    @pytest.fixture
    def emulators(self, bare_server: Server) -> Sequence[Server]:
        return [bare_server]


class TestSQSQueueInOrder(TestSQSQueue):
    """FIFO queues without SNS: most tests on ElasticMQ, and those that are too much for it on MiniStack.

    For each message of a FIFO queue, ElasticMQ looks at all others.  While a request waits for a message whose group is
    in flight, it asks its queue again without a pause.  Then it answers nobody in time.
    """

    record = "sqs-queue-in-order"
    options = {"topology": "queue", "ordering": "true"}
    too_much = (
        # thousands of messages
        "test_a_large_batch_is_split",
        "test_a_large_send_is_split",
        "test_the_last_ten_thousand_are_remembered",
        # many receivers that wait at the same time
        "test_a_settlement_is_cancelled_anywhere",
        "test_consuming_is_cancelled_anywhere",
    )

    @pytest.fixture
    def emulators(self, request: pytest.FixtureRequest, bare_server: Server, server: Server) -> Sequence[Server]:
        both = [bare_server, server]
        return both[::-1] if request.function.__name__ in self.too_much else both
