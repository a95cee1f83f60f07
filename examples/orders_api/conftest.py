"""The fixtures that the tests share."""

from collections.abc import Iterator

import pytest
from api import app
from fastapi.testclient import TestClient

from events_core import EventClient
from events_core.testing.fixtures import MemoryBroker

pytest_plugins = ["events_core.testing.fixtures"]


@pytest.fixture
def orders(memory_broker: MemoryBroker) -> EventClient:
    """Put the application on a broker of this test, and return a client of its topic."""
    return memory_broker.client("orders", file="events.toml", options={"send_timeout": 1})


@pytest.fixture
def http(orders: EventClient) -> Iterator[TestClient]:
    """Return a client of the web application, which runs on the broker of this test."""
    with TestClient(app) as http:
        yield http
