"""A process that obeys a test, and that the test can stop and kill."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from events_core import EventConfig

__all__ = ["Child", "environment", "order"]


def environment() -> Mapping[str, str]:
    """Return the environment of an interpreter that can import the same modules as this one."""
    # Without ``""``, the current directory: tests and their children need not run in the same one.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def order(config: EventConfig) -> str:
    """Return the line that tells :mod:`events_core.testing.child` which configuration to use."""
    names = ("topic_name", "project_id", "backend")
    return json.dumps({**{name: getattr(config, name) for name in names}, "options": dict(config.options)}) + "\n"


class Child:
    """A process that runs an action of :mod:`events_core.testing.child` until :meth:`end`.

    :param bound: seconds within which it must answer.
    """

    def __init__(self, action: str, config: EventConfig, patience: float, bound: float) -> None:
        self._bound = bound
        # Into a file: a pipe that is not read would fill up and stop the process.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process lives
        self._process = subprocess.Popen(
            [sys.executable, "-m", "events_core.testing.child", action, str(patience)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            # Without a buffer of Python's, in which a report could lie while ``select`` sees nothing.
            bufsize=0,
        )
        self._write(order(config))

    async def report(self) -> dict[str, Any]:
        """Wait for the next report of the process."""
        return await asyncio.to_thread(self._read)

    async def tell(self, word: str) -> dict[str, Any]:
        """Tell the process to do something, and wait for its report."""
        self._write(f"{word}\n")
        return await self.report()

    def stop(self) -> None:
        """Stop all threads of the process, until :meth:`go_on`."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the threads of the process run again."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill the process, stopped or not."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    def _read(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], self._bound)
        line = stdout.readline() if ready else b""
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")
            raise AssertionError(f"the process reported nothing within {self._bound:g} s, {self._process}: {said}")
        report: dict[str, Any] = json.loads(line)
        return report
