"""The pages of the documentation: they have room for 76 columns of code, and link to the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "extensions"))
from repository import footer_icons, page_of  # noqa: E402

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


@pytest.mark.parametrize(
    ("remote", "page"),
    [
        ("https://code.example/acme/events.git", "https://code.example/acme/events"),
        ("https://user:secret@code.example/acme/events", "https://code.example/acme/events"),
        ("git@code.example:acme/events.git", "https://code.example/acme/events"),
        ("ssh://git@code.example:22/acme/events.git", "https://code.example/acme/events"),
        ("/srv/git/events", None),
        ("", None),
    ],
)
def test_address_of_a_repository_becomes_the_address_of_its_page(remote: str, page: str | None) -> None:
    """Each kind of address leads to the page, and no password is shown."""
    assert page_of(remote) == page


def test_pages_link_to_the_repository_of_the_checkout(tmp_path: Path) -> None:
    """A checkout links to where it was cloned from; one without an origin has no link."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert footer_icons(tmp_path) == []
    subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", "git@code.example:acme/events.git"], check=True)
    (icon,) = footer_icons(tmp_path)
    assert icon["url"] == "https://code.example/acme/events"
