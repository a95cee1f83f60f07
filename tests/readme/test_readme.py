"""README.rst does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from events_core import EventConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.rst").read_text()
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "dist")


def blocks(marker: str) -> list[str]:
    """Return the indented blocks that follow *marker*, a regular expression for the end of a line."""
    found = re.findall(rf"{marker}\n\n((?:(?: {{4}}.*)?\n)+)", README)
    return [textwrap.dedent(block).strip() for block in found]


SHELL = [command for block in blocks(r"(?<!\.)\w.*::") for command in block.splitlines()]
(PYTHON,) = blocks(r"\.\. code-block:: python")
(TOML,) = blocks(r"\.\. code-block:: toml")
(INSTALL, TEST) = (command for command in SHELL if command.startswith("python3 -m venv"))
EVENTS = [command for command in SHELL if command.startswith(".venv/bin/events ")]
URLS = {backend: url for url, backend in re.findall(r"``((\w+)://\S+)``", README)}


def run(command: list[str], folder: Path, **environ: str) -> str:
    """Run a command, which must succeed.  Return its standard output."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **environ},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the repository in which nothing was ever run."""
    return shutil.copytree(ROOT, tmp_path / "checkout", ignore=NOT_COPIED)


def test_the_first_command_installs_and_runs_the_example(checkout: Path) -> None:
    """It needs only Python and its venv module."""
    output = run(["bash", "-c", INSTALL], checkout)
    assert re.search(r"^sent \S+\nreceived \S+ \{'order': 42.*\nacknowledged \S+$", output, re.MULTILINE)


def test_the_second_command_is_the_one_that_ci_runs() -> None:
    """A contributor runs the same command that decides whether a change is good."""
    assert TEST in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_program_runs_with_its_configuration(tmp_path: Path) -> None:
    """It uses the backend of the file, or that of the URL in the environment, which takes precedence."""
    (tmp_path / "events.toml").write_text(TOML)
    assert run([sys.executable, "-c", PYTHON], tmp_path) == "received {'order': 42}\n"
    (tmp_path / "events.db").unlink()
    output = run([sys.executable, "-c", PYTHON], tmp_path, EVENTS_ORDERS_URL=URLS["memory"])
    assert output == "received {'order': 42}\n"
    assert not (tmp_path / "events.db").exists()


def test_the_configuration_is_read(tmp_path: Path) -> None:
    """The table gives the backend, the topic and the options that the text names."""
    (tmp_path / "events.toml").write_text(TOML)
    config = EventConfig.from_file(tmp_path / "events.toml", "orders", environ={})
    assert (config.backend, config.topic_name) == ("sqlite", "orders")
    assert config.options == {"path": "events.db", "subscription": "billing"}


def test_the_shell_commands_run_in_turn(tmp_path: Path) -> None:
    """The second command receives the message that the first one sends."""
    assert len(EVENTS) == 2
    output = [run(["bash", "-c", command.removeprefix(".venv/bin/")], tmp_path) for command in EVENTS]
    assert '{"order": 42}' in output[-1]


def test_the_table_is_that_of_the_documentation() -> None:
    """The promises are those in the records of what the kit proved; the script prints the table."""
    table = run([sys.executable, str(ROOT / "docs" / "extensions" / "guarantees.py")], ROOT)
    assert table in README
