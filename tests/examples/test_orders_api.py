"""``examples/orders_api`` does what its README says: orders are taken, billed or kept, and its tests pass."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from .reader import Reader

FOLDER = Path(__file__).parents[2] / "examples" / "orders_api"


@pytest.mark.skipif(not shutil.which("curl"), reason="the README sends its orders with curl, which is not installed")
def test_the_readme(tmp_path: Path) -> None:
    """A reader who does all that the README says sees what it shows."""
    with socket.create_server(("localhost", 0)) as unused:
        port = str(unused.getsockname()[1])
    folder = shutil.copytree(FOLDER, tmp_path / "orders_api", ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    with Reader(files=folder, terminals=folder) as reader:
        reader.follow((FOLDER / "README.rst").read_text().replace("8000", port))
