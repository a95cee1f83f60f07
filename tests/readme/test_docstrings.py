"""The docstrings that ``help()`` and the reference show."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import events_core

ROOT = Path(__file__).parents[2]
DOORS = ["events_core", "events_core.engine", "events_core.testing"]
RULES = re.findall(r"^- \*\*([A-Z]\d+)\*\*", (ROOT / "docs/contract.rst").read_text(), re.MULTILINE)
CODE = re.compile(r"^( *)(?:\S.*)?::(?: python)?\n((?:\1 +.*\n?|\n)+)", re.MULTILINE)
WIDTH = 76
BARE = re.compile(rf"\b({'|'.join(RULES)})\b(?!:\s+\w)")


def public_modules() -> list[Path]:
    """Return the file of each object that a door exports, and of each backend's client."""
    doors = [importlib.import_module(name) for name in DOORS]
    exported = [getattr(door, name) for door in doors for name in door.__all__]
    modules = {each.__module__ for each in exported if inspect.isclass(each) or inspect.isfunction(each)}
    files = {ROOT / f"{name.replace('.', '/')}.py" for name in modules if name.startswith("events_core.")}
    backends = [ROOT / "events_core/backends/memory.py", ROOT / "events_core/backends/sqlite/client.py"]
    return sorted(files.union(backends, ROOT.glob("events_*/src/*/client.py")))


def docstrings(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of *node*, and of all its public members."""
    yield name, ast.get_docstring(node) or ""
    for member, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if member.name.startswith("_"):
                continue
            inner = f"{name}.{member.name}"
            if isinstance(member, ast.ClassDef):
                yield from docstrings(member, inner)
            else:
                yield inner, ast.get_docstring(member) or ""
        elif isinstance(member, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            target = ast.unparse(member.targets[0] if isinstance(member, ast.Assign) else member.target)
            if not target.startswith("_") and isinstance(after.value, ast.Constant):
                yield f"{name}.{target}", inspect.cleandoc(str(after.value.value))


@pytest.mark.parametrize("module", public_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_help_says_a_rule_in_words(module: Path) -> None:
    """A reader of ``help()`` sees 'rule R1: timeouts', because the bare code says nothing without the contract."""
    shown = list(docstrings(ast.parse(module.read_text()), module.stem))
    assert shown[0][1]
    assert [(name, BARE.findall(text)) for name, text in shown if BARE.search(text)] == []


def code(docstring: str) -> list[str]:
    """Return the lines of code in *docstring*, as the page of the reference shows them."""
    return [line for _, block in CODE.findall(docstring) for line in textwrap.dedent(block).splitlines()]


@pytest.mark.parametrize("module", public_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_is_clipped(module: Path) -> None:
    """Each line of code in a docstring fits into the page of the reference."""
    shown = docstrings(ast.parse(module.read_text()), module.stem)
    assert [(name, line) for name, text in shown for line in code(text) if len(line) > WIDTH] == []


def test_code_is_found() -> None:
    """The docstring of ``create_client`` has code."""
    assert 'create_client("orders", file="events.toml")' in code(inspect.getdoc(events_core.create_client) or "")
