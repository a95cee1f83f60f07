"""Servers of SQS, found or started once for all tests of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from . import finding
from .console import Console
from .server import Missing, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of SQS and SNS.  Without one, tests are skipped, or fail if EVENTS_TEST_REQUIRE names sqs."""
    yield from _found("sqs", finding.ministack(tmp_path_factory.mktemp("ministack")))


@pytest.fixture(scope="session")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of SQS and SNS that checks signatures and policies."""
    yield from _found("sqs", finding.ministack(tmp_path_factory.mktemp("strict"), checks_access=True))


@pytest.fixture(scope="session")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of SQS without SNS.  EVENTS_TEST_REQUIRE calls it elasticmq."""
    yield from _found("elasticmq", finding.elasticmq(tmp_path_factory.mktemp("elasticmq")))


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """Yield a server that the test may stop, kill and pause.  Afterwards it runs again."""
    if not server.is_ours:
        pytest.skip(f"the server at {server.address} was not started by the tests")
    yield server
    server.restore()


@pytest.fixture
def console(server: Server) -> Console:
    """Return a new topic and subscription on the server; neither exists there yet."""
    return Console(server)


@pytest.fixture
def fifo(server: Server) -> Console:
    """Return a new FIFO topic and subscription."""
    return Console(server, ordering="true")


def _found(required: str, finding: AbstractContextManager[Server]) -> Iterator[Server]:
    try:
        with finding as found:
            yield found
    except Missing as reason:
        if required in os.environ.get("EVENTS_TEST_REQUIRE", "").split(","):
            pytest.fail(f"no server of SQS: {reason}")
        pytest.skip(f"no server of SQS: {reason}")
