"""``docs/driver.rst`` has every method of the door for authors of backends."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from events_core.engine import Driver, Source

PAGE = (Path(__file__).parents[2] / "docs" / "driver.rst").read_text()
METHOD = re.compile(r"^``(\w+)\([^\n]*\)``\n~+\n(.*?)(?=^``\w|\Z)", re.MULTILINE | re.DOTALL)
ROWS = ["is called", "at the same time", "is cancelled", "may raise", "leaves behind"]


@pytest.mark.parametrize(("part", "end"), [(Driver, "Source"), (Source, "What you may call")])
def test_each_method_has_a_heading_and_five_rows(part: type[Driver[Any]] | type[Source], end: str) -> None:
    """The page shows exactly the methods that the engine calls."""
    _, _, rest = PAGE.partition(f"\n{part.__name__}\n---")
    section, _, _ = rest.partition(f"\n{end}\n---")
    shown = {name: re.findall(r"^   \* - (.*)$", text, re.MULTILINE) for name, text in METHOD.findall(section)}
    assert shown.pop("__init__", ROWS) == ROWS
    methods = [name for name, member in vars(part).items() if inspect.isfunction(member) and not name.startswith("_")]
    methods = [name for name in methods if name not in ("lost", "take_back")]  # the driver calls these
    assert shown == dict.fromkeys(methods, ROWS)
