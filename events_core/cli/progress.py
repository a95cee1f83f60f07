"""A progress bar on standard error, for work that takes long."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from events_core.cli.lines import Lines

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBar"]

_PATIENCE = 1.0
"""Seconds before a bar is worth showing."""


class ProgressBar(ExitStack):
    """Shows how much of *lines* has been sent, once that takes a while; nothing unless standard error is a terminal."""

    def __init__(self, lines: Lines, *, wanted: bool) -> None:
        super().__init__()
        self._lines = lines
        self._wanted = wanted and sys.stderr is not None and sys.stderr.isatty()
        self._due = time.monotonic() + _PATIENCE
        self._bar: tuple[Progress, TaskID] | None = None

    def update(self, sent: int) -> None:
        """*sent* messages are stored."""
        if self._wanted and self._bar is None and time.monotonic() >= self._due:
            self._bar = self._show()
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=self._lines.bytes_read, sent=sent)

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[sent]} messages"), TimeRemainingColumn()
        # Standard output carries data: rich must not reroute it through the bar's console.
        progress = Progress(*columns, console=Console(stderr=True), redirect_stdout=False, transient=True)
        self.enter_context(progress)
        return progress, progress.add_task("sending", total=self._lines.total_bytes, sent=0)
