"""Servers of SQS, found or started once for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from events_sqs.source import SQSSource

from ..receiving import PATIENCE
from ..servers.requiring import required
from . import finding
from .console import Console
from .server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of SQS and SNS.  Without one, tests are skipped, or fail if EVENTS_TEST_REQUIRE names sqs."""
    with required("sqs"), finding.ministack(tmp_path_factory.mktemp("ministack")) as found:
        yield found


@pytest.fixture(scope="session")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of SQS and SNS that checks signatures and policies."""
    with required("sqs"), finding.ministack(tmp_path_factory.mktemp("strict"), checks_access=True) as found:
        yield found


@pytest.fixture(scope="session")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of SQS without SNS.  EVENTS_TEST_REQUIRE calls it elasticmq."""
    with required("elasticmq"), finding.elasticmq(tmp_path_factory.mktemp("elasticmq")) as found:
        yield found


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


@pytest.fixture
def patient_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a patient close of a receiver delete its ephemeral queue also on a busy machine."""
    monkeypatch.setattr(SQSSource, "close_time", PATIENCE)
