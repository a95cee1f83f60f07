"""``docs/tutorial.rst`` works as a reader would type it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .reader import Reader

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "dist")
ALONE, ON_PUBSUB = (ROOT / "docs" / "tutorial.rst").read_text().split("\nOn Google Pub/Sub\n")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Return a reader with a fresh checkout, in which nothing was ever run."""
    checkout = shutil.copytree(ROOT, tmp_path / "checkout", ignore=NOT_COPIED)
    with Reader(files=checkout / "shop", terminals=checkout) as reader:
        yield reader


def test_the_tutorial(reader: Reader) -> None:
    """Its files and commands, copied in turn, print what the page shows."""
    reader.follow(ALONE)


def test_the_tutorial_on_pubsub(reader: Reader, emulator: str) -> None:
    """Its last part moves the same programs to Pub/Sub's emulator."""
    reader.follow(ALONE)
    reader.follow(ON_PUBSUB.replace("localhost:8085", emulator))
