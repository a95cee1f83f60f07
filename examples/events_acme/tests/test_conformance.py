"""Folders keep the contract."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.testing import ConformanceSuite, Harness


class AcmeHarness(Harness):
    """A folder for each test."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lease, self.lease_options = 1.0, {"lease": "1"}

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        return EventConfig(topic_name, options={"path": str(self._path), **options}, backend="acme")

    def restart(self) -> bool:
        return True  # there is no process but those that use the folders


class TestAcme(ConformanceSuite):
    """The kit."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return AcmeHarness(tmp_path)
