"""A Kafka server, found or started once for all tests of a process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

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


@pytest.fixture
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], list[Program]]]:
    """Return a function that starts a cluster of so many brokers.  They end with the test."""
    with ExitStack() as stack:

        def start(size: int) -> list[Program]:
            try:
                return stack.enter_context(cluster(tmp_path_factory.mktemp("kafka"), size))
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
