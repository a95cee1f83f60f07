"""A RabbitMQ server, found or started once for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..servers.requiring import required
from .console import Console
from .server import Server, find_or_start


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server.  Without one, tests are skipped, or fail if EVENTS_TEST_REQUIRE names rabbitmq."""
    with required("rabbitmq"), find_or_start(tmp_path_factory.mktemp("rabbitmq")) as found:
        yield found


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """Yield a server that the test may stop and administer.  Afterwards it runs again, without an alarm."""
    if not server.is_ours:
        pytest.skip(f"the server at {server.address} was not started by the tests")
    yield server
    server.restore()


@pytest.fixture
def console(server: Server) -> Console:
    """Return a new topic and subscription on the server; neither exists there yet."""
    return Console(server)


@pytest.fixture
def own(own_server: Server) -> Console:
    """Return a new topic and subscription on a server that the test may stop and administer."""
    return Console(own_server)
