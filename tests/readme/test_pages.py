"""The pages of the documentation have room for 76 columns of code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.rst"))
BLOCK = re.compile(r"^( *)\.\. code-block::.*\n(?:\1 +:.*\n)*\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
WIDTH = 76


def code(page: Path) -> list[str]:
    """Return the lines of code of a page.  Ruff checks the programs that it includes."""
    blocks = BLOCK.findall(page.read_text())
    return [line[len(indent) + 3 :] for indent, block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_no_code_is_clipped(page: Path) -> None:
    """Each line of code fits into the page."""
    assert [line for line in code(page) if len(line) > WIDTH] == []
