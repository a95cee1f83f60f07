"""Folders keep the contract."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.testing import ConformanceSuite, Harness


class AcmeHarness(Harness):
    """A folder for each test."""

    patience, bound = 30.0, 120.0  # for a machine that is busy

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lease, self.lease_options = 5.0, {"lease": "5"}

    def config(
        self,
        topic_name: str,
        options: Mapping[str, str],
    ) -> EventConfig:
        own = {"path": str(self._path), **options}
        return EventConfig(topic_name, options=own, backend="acme")

    def restart(self) -> bool:
        # The broker has no process of its own: there is nothing to do.
        return True


class TestAcme(ConformanceSuite):
    """The kit."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return AcmeHarness(tmp_path)
