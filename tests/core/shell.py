"""The command line as processes, for tests."""

from __future__ import annotations

import json
import os
import select
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

EVENTS = [sys.executable, "-m", "events_core.cli"]
URL = "sqlite:events.db/orders?subscription=billing"
BOUND = 120.0
"""Seconds within which everything that must happen does happen, also on a busy machine."""


class Shell:
    """The command line, run in its own directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        self._environ = {**os.environ, "PYTHONPATH": path, "TERM": "xterm"}
        self._started: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end.  Its exit code must be *code*."""
        command = [*EVENTS, *arguments]
        done = subprocess.run(
            command, input=stdin, capture_output=True, cwd=self.folder, env=self._environ, timeout=BOUND, check=False
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.returncode == code, done
        return done

    def fail(self, *arguments: str, stdin: bytes = b"", code: int = 1) -> str:
        """Run a command that fails.  Return its one error line."""
        done = self.run(*arguments, stdin=stdin, code=code)
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("events: error: ")
        return lines[0]

    def start(
        self, *arguments: str, environ: Mapping[str, str] = MappingProxyType({}), **streams: Any
    ) -> subprocess.Popen[bytes]:
        """Start a command that runs during the test; :meth:`close` kills it."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        environ = {**self._environ, **environ}
        process = subprocess.Popen([*EVENTS, *arguments], cwd=self.folder, env=environ, bufsize=0, **pipes)
        self._started.append(process)
        return process

    def stored(self) -> int:
        """Return the number of messages of the topic that its only subscription has not acknowledged."""
        query = "SELECT count(*) FROM messages AS m JOIN topics AS t ON m.topic_id = t.id WHERE t.name = 'orders'"
        with closing(sqlite3.connect(self.folder / "events.db", timeout=BOUND)) as connection:
            count: int = connection.execute(query).fetchone()[0]
            return count

    def rest(self, *arguments: str) -> bytes:
        """Receive all messages that are still in the subscription, and return the output."""
        # As many as the file has: a busy machine would find no message within any short timeout.
        limit = str(self.stored())
        return self.run("receive", URL, "--limit", limit, "--timeout", str(BOUND / 2), *arguments).stdout

    def received(self) -> list[dict[str, Any]]:
        """Receive all messages that are still in the subscription, and return them."""
        return [json.loads(line) for line in self.rest("--json").splitlines()]

    def is_empty(self) -> bool:
        """Return whether the subscription is empty."""
        return not self.stored() and self.run("receive", URL, "--timeout", "0.5", code=3).stdout == b""

    def close(self) -> None:
        """Kill the commands that still run."""
        for process in self._started:
            with process:
                process.kill()


def output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def wait_for_output(process: subprocess.Popen[bytes]) -> None:
    assert select.select([output(process)], [], [], BOUND)[0]
