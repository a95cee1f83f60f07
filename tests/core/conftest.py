"""The fixtures that all tests of the core share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .shell import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Return the command line, in a directory that only this test uses."""
    shell = Shell(tmp_path)
    yield shell
    shell.close()
