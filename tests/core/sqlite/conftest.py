"""A file for each test, and two ways to use it: a client, and the synchronous store below the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.backends.sqlite import SQLiteClient, SQLiteOptions, subscription
from events_core.backends.sqlite.store import Store
from events_core.options import read_options


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A path without a file."""
    return tmp_path / "events.db"


@pytest.fixture
def client(file: Path) -> Callable[..., SQLiteClient]:
    """A function that makes a client of topic ``orders`` in the file."""

    def make(topic_name: str = "orders", **options: str) -> SQLiteClient:
        return SQLiteClient(EventConfig(topic_name, options={"path": str(file), **options}))

    return make


@pytest.fixture
def store(file: Path) -> Iterator[Callable[..., Store]]:
    """A function that opens a connection to topic ``orders`` in the file; each is closed at the end of the test."""
    opened: list[Store] = []

    def open_store(topic_name: str = "orders", **options: str) -> Store:
        opened.append(Store("", topic_name, read_options(SQLiteOptions, {"path": str(file), **options})))
        return opened[-1]

    yield open_store
    for each in opened:
        each.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let receivers take over from a lapsed session at once, without the wait of a new receiver."""
    monkeypatch.setattr(subscription, "PATIENCE", 0.0)
