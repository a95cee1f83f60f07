"""``docs/index.rst`` shows a program, and what it prints."""

from __future__ import annotations

import re
from pathlib import Path

from .reader import Reader

PAGE = (Path(__file__).parents[2] / "docs" / "index.rst").read_text()


def test_the_program_prints_what_the_page_shows(tmp_path: Path) -> None:
    """A reader copies the program and runs it."""
    section = re.search(r"^Ten lines\n-+\n(.+?)^-{3,}\n", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None
    program = section[1].partition(".. code-block:: console")[0]
    assert len(re.findall(r"^   +[^ :].*\S$", program, re.MULTILINE)) == 10
    with Reader(files=tmp_path, terminals=tmp_path) as reader:
        reader.follow(section[1])
