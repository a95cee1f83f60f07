"""RabbitMQ keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.testing import ConformanceSuite, Harness, TcpProxy

from .server import Server

RECORDS = Path(__file__).parents[2] / "docs" / "backends" / "proof"

ALONE = "a single active consumer gets all messages, and the next one gets some only when all that was out is back"


class RabbitMQHarness(Harness):
    """A server of the tests.  An outage cuts a proxy in front of it."""

    patience = 20.0
    bound = 120.0  # a restart of the server is part of some tests
    sdk_modules = ("pika",)
    not_applicable = {"lease": "a delivery belongs to its connection, and has no lease"}

    def __init__(self, server: Server, **options: str) -> None:
        self._server = server
        self._options = options
        self.proxy: TcpProxy | None = None

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        url = self._server.url_for(address=self.proxy.address) if self.proxy else self._server.url
        return EventConfig(
            topic_name, options={"url": url, "create": "all", **self._options, **options}, backend="rabbitmq"
        )

    def versions(self) -> Mapping[str, str]:
        return {"RabbitMQ": self._server.command("version").strip(), "pika": version("pika")}

    def outage(self) -> AbstractContextManager[None]:
        return self._behind_a_proxy().cut()

    def lost_answers(self) -> AbstractContextManager[None]:
        return self._behind_a_proxy().lose_answers()

    def restart(self) -> bool:
        return self._server.restart()

    def _behind_a_proxy(self) -> TcpProxy:
        self.proxy = self.proxy or TcpProxy(self._server.address)
        return self.proxy


class TestRabbitMQ(ConformanceSuite):
    """The kit with the defaults: no order."""

    record = "rabbitmq"
    options: Mapping[str, str] = {}
    exceptions: Mapping[str, str] = {}

    @pytest.fixture
    def harness(self, server: Server) -> Iterator[Harness]:
        harness = RabbitMQHarness(server, **self.options)
        harness.exceptions = self.exceptions
        # A server of somebody else is not restarted, so less is shown on it than the record says.
        harness.proof = RECORDS / f"{self.record}.json" if server.is_ours else None
        harness.give_up_after = 300.0
        yield harness
        if harness.proxy:
            harness.proxy.close()


class TestRabbitMQInOrder(TestRabbitMQ):
    """The kit with a single active consumer."""

    record = "rabbitmq-in-order"
    options = {"ordering": "true"}
    exceptions = {
        "test_what_is_buffered_counts_as_held": ALONE,
        "test_what_was_never_handed_out_goes_back_at_once": ALONE,
    }
