"""Fixtures for the tests of an application.  Name this module in the topmost ``conftest.py``.

::

    pytest_plugins = ["events_core.testing.fixtures"]

A test then asks for a broker of its own, and puts the clients of the application on it, by their names in the
configuration::

    def test_an_order_is_billed(memory_broker):
        memory_broker.client("orders", file="events.toml")
        with TestClient(app) as http:
            http.post("/orders", json={"order": 42})
        assert memory_broker.sent("orders") == [EventMessage.from_json({"order": 42})]
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from events_core.testing.memory_broker import MemoryBroker

__all__ = ["MemoryBroker", "memory_broker"]


@pytest.fixture
def memory_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBroker]:
    """Return a broker for one test, in this process: :class:`~events_core.testing.fixtures.MemoryBroker`."""
    with MemoryBroker(monkeypatch) as broker:
        yield broker
