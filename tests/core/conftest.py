"""The fixtures that all tests of the core share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from .shell import Shell

# On a busy machine, one example may take seconds.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Return the command line, in a directory that only this test uses."""
    shell = Shell(tmp_path)
    yield shell
    shell.close()
