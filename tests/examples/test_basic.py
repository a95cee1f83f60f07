"""``examples/basic.py`` runs on every backend, and only its configuration differs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(client: str, folder: Path, **environ: str) -> None:
    """Run the program, and check that one message is sent, received and acknowledged."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "basic.py", client],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    line = r"sent (\S+)\nreceived \1 {'order': 42, 'total': '19.90'} {'kind': 'created'}\nacknowledged \1\n"
    assert re.fullmatch(line, done.stdout)


@pytest.mark.parametrize("client", ["memory", "sqlite"])
def test_it_runs_on_the_embedded_backends(client: str, tmp_path: Path) -> None:
    """On the memory and the SQLite backend the program needs no broker."""
    run(client, tmp_path)


def test_it_runs_on_google_pubsub(emulator: str, tmp_path: Path) -> None:
    """On Google Pub/Sub the program uses the emulator that the environment names."""
    run("gcp", tmp_path, PUBSUB_EMULATOR_HOST=emulator)
