"""The command line as processes, for tests."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

EVENTS = [sys.executable, "-m", "events_core.cli"]
URL = "sqlite:events.db/orders?subscription=billing"
BOUND = 30.0


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

    def received(self, *arguments: str) -> list[dict[str, Any]]:
        """Return all messages that are still in the subscription."""
        done = self.run("receive", URL, "--json", "--timeout", "0.5", *arguments)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def is_empty(self) -> bool:
        """Return whether the subscription is empty."""
        return self.run("receive", URL, "--timeout", "0.5", code=3).stdout == b""

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
