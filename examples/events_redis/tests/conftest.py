"""A Redis server, found or started once for all tests of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .servers import Missing, Server, find_or_start


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server.  Without one, tests are skipped, or fail if EVENTS_TEST_REQUIRE names redis."""
    try:
        with find_or_start(tmp_path_factory.mktemp("redis")) as found:
            yield found
    except Missing as reason:
        if "redis" in os.environ.get("EVENTS_TEST_REQUIRE", "").split(","):
            pytest.fail(f"no Redis server: {reason}")
        pytest.skip(f"no Redis server: {reason}")
