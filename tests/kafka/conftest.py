"""A Kafka server, found or started once for all tests of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from .console import Console
from .finding import find_or_start
from .program import Program, cluster
from .server import Missing, Server


def _without(reason: Missing) -> None:
    if "kafka" in os.environ.get("EVENTS_TEST_REQUIRE", "").split(","):
        pytest.fail(f"no Kafka server: {reason}")
    pytest.skip(f"no Kafka server: {reason}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server.  Without one, tests are skipped, or fail if EVENTS_TEST_REQUIRE names kafka."""
    try:
        with find_or_start(tmp_path_factory.mktemp("kafka")) as found:
            yield found
    except Missing as reason:
        _without(reason)


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """Yield a server that the test may stop, kill and pause.  Afterwards it runs again."""
    if not server.is_ours:
        pytest.skip(f"the server at {server.address} was not started by the tests")
    yield server
    server.restore()


class StartCluster(Protocol):
    """A function that starts a cluster of *size* brokers, with more lines for the settings of each."""

    def __call__(self, size: int, *extra: str) -> list[Program]: ...


@pytest.fixture
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartCluster]:
    """Return a function that starts a cluster, which ends with the test."""
    with ExitStack() as stack:

        def start(size: int, *extra: str) -> list[Program]:
            try:
                return stack.enter_context(cluster(tmp_path_factory.mktemp("kafka"), size, extra))
            except Missing as reason:
                _without(reason)
                raise

        yield start


@pytest.fixture
def console(server: Server) -> Console:
    """Return a new topic and subscription on the server; neither exists there yet."""
    return Console(server)


@pytest.fixture
def own(own_server: Server) -> Console:
    """Return a new topic and subscription on a server that the test may stop, kill and pause."""
    return Console(own_server)
