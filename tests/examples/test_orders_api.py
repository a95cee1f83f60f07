"""``examples/orders_api`` does what its README says: orders are taken, billed or kept, and its tests pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ..servers.ports import reserved_address
from .reader import Reader

FOLDER = Path(__file__).parents[2] / "examples" / "orders_api"


@pytest.mark.skipif(not shutil.which("curl"), reason="the README sends its orders with curl, which is not installed")
def test_the_readme(tmp_path: Path) -> None:
    """A reader who does all that the README says sees what it shows."""
    folder = shutil.copytree(FOLDER, tmp_path / "orders_api", ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    with reserved_address() as address, Reader(files=folder, terminals=folder) as reader:
        port = address.rpartition(":")[2]
        reader.follow((FOLDER / "README.rst").read_text().replace("8000", port))
