"""A synchronous program and one with an event loop work together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("exchange.py")


def test_ten_thousand_messages_go_there_and_back(tmp_path: Path) -> None:
    """Each program gets every message of the other one, once and in order, from one file of SQLite."""
    programs = [
        subprocess.Popen([sys.executable, PROGRAM, kind, tmp_path / "events.db"], stderr=subprocess.PIPE, text=True)
        for kind in ("sync", "asyncio")
    ]
    try:
        ends = [(*program.communicate(timeout=300), program.returncode) for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert ends == [(None, "", 0)] * 2
