"""A Kafka server, found or started once for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from ..servers.requiring import required
from .console import Console
from .finding import find_or_start
from .program import cluster
from .server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server.  Without one, tests are skipped, or fail if EVENTS_TEST_REQUIRE names kafka."""
    with required("kafka"), find_or_start(tmp_path_factory.mktemp("kafka")) as found:
        yield found


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """Yield a server that the test may stop, kill and pause.  Afterwards it runs again."""
    if not server.is_ours:
        pytest.skip(f"the server at {server.address} was not started by the tests")
    yield server
    server.restore()


class StartCluster(Protocol):
    """A function that starts a cluster of *size* brokers, with more lines for the settings of each."""

    def __call__(self, size: int, *extra: str) -> list[Server]: ...


@pytest.fixture
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartCluster]:
    """Return a function that starts a cluster, which ends with the test."""
    with ExitStack() as stack:

        def start(size: int, *extra: str) -> list[Server]:
            with required("kafka"):
                return stack.enter_context(cluster(tmp_path_factory.mktemp("kafka"), size, extra))

        yield start


@pytest.fixture
def console(server: Server) -> Console:
    """Return a new topic and subscription on the server; neither exists there yet."""
    return Console(server)


@pytest.fixture
def own(own_server: Server) -> Console:
    """Return a new topic and subscription on a server that the test may stop, kill and pause."""
    return Console(own_server)
