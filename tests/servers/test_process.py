"""A server lives as long as the process that has started it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from .process import Process

PATIENCE = 60.0
"""Seconds that something may take on a busy machine."""


def test_a_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """A killed process cannot clean up, and its server ends all the same, even a paused one."""
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.lonely_parent", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with parent:
        assert parent.stdout is not None
        server = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert select.select([server], [], [], PATIENCE)[0], "the server goes on"
        finally:
            os.close(server)


def test_a_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """Tests start servers in threads of asyncio, which end before the server."""
    process = Process(["sh", "-c", "sleep 1; exit 7"], tmp_path / "log")
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    try:
        ends = time.monotonic() + PATIENCE
        while process.is_running() and time.monotonic() < ends:
            time.sleep(0.01)
        assert process.exit_code() == 7  # it was not killed before
    finally:
        process.kill()
