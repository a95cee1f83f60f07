"""The embedded backends keep the contract, and the engine keeps it over a network."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from events_core import EventConfig, EventMessage
from events_core.testing import ConformanceSuite, Harness
from events_core.testing.closing import Closing
from events_core.testing.outages import Outages

RECORDS = Path(__file__).parents[2] / "docs" / "backends" / "proof"


class PatientHarness(Harness):
    """Bounds for a busy machine.  A wait ends as soon as its message is there; only a failure lasts so long."""

    patience = 30.0
    bound = 300.0


class MemoryHarness(PatientHarness):
    """Topics of this process."""

    settle_time = 0.15
    proof = RECORDS / "memory.json"
    not_applicable = {
        "lease": "a delivery belongs to its receiver until it is settled or the receiver closes",
        "lost_answers": "there is no connection on which an answer could be lost",
        "outage": "there is no connection that could be cut",
        "refused_message": "the backend takes each message that its limits permit",
        "sdk_modules": "the backend uses no SDK",
    }

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        return EventConfig(topic_name, options=options, backend="memory")


class TestMemory(ConformanceSuite):
    """The memory backend, inline."""

    @pytest.fixture
    def harness(self) -> Harness:
        return MemoryHarness()


class NetworkHarness(MemoryHarness):
    """The same topics, behind a network that can be cut."""

    proof = None
    not_applicable = {}
    refused_message = EventMessage(b"x", {"refused": ""})

    backend = "network_memory:NetworkClient"

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        return EventConfig(topic_name, options=options, backend=self.backend)

    def outage(self) -> AbstractContextManager[None]:
        from network_memory import outage

        return outage()

    def lost_answers(self) -> AbstractContextManager[None]:
        from network_memory import lost_answers

        return lost_answers()


class TestNetwork(ConformanceSuite):
    """The engine on its own thread: buffering, renewing, reconnecting."""

    @pytest.fixture
    def harness(self, monkeypatch: pytest.MonkeyPatch) -> Harness:
        # By path, so that the kit's child processes find it too.
        monkeypatch.syspath_prepend(Path(__file__).parent)
        return NetworkHarness()


class SessionHarness(NetworkHarness):
    """The same over a broker whose deliveries end with the connection."""

    backend = "network_memory:SessionClient"


class TestSessions(Outages):
    """The engine when a lost connection takes its deliveries with it."""

    @pytest.fixture
    def harness(self, monkeypatch: pytest.MonkeyPatch) -> Harness:
        monkeypatch.syspath_prepend(Path(__file__).parent)
        return SessionHarness()


class SwallowingHarness(NetworkHarness):
    """The same over a library that swallows a cancellation."""

    backend = "network_memory:SwallowingClient"


class TestSwallowing(Closing):
    """The engine when a fetch goes on although it was cancelled."""

    @pytest.fixture
    def harness(self, monkeypatch: pytest.MonkeyPatch) -> Harness:
        monkeypatch.syspath_prepend(Path(__file__).parent)
        return SwallowingHarness()


class SQLiteHarness(PatientHarness):
    """One file for each test."""

    settle_time = 0.2
    lease = 3.0  # so long that a busy machine renews it in time
    lease_options = {"session_timeout": "3"}
    proof = RECORDS / "sqlite.json"
    not_applicable = {
        "lost_answers": "there is no connection on which an answer could be lost",
        "outage": "there is no connection that could be cut; tests of this backend lock, delete and spoil its file",
        "refused_message": "the backend takes each message that its limits permit",
        "sdk_modules": "sqlite3 is a part of Python",
    }

    def __init__(self, path: Path) -> None:
        self._path = path

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        return EventConfig(topic_name, options={"path": str(self._path), **options}, backend="sqlite")

    def versions(self) -> Mapping[str, str]:
        return {"SQLite": sqlite3.sqlite_version}

    def restart(self) -> bool:
        return True  # it runs in those processes alone that use it


class TestSQLite(ConformanceSuite):
    """A file, and the processes that share it."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return SQLiteHarness(tmp_path / "events.db")
