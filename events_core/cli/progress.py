"""Progress of long work, on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from events_core.cli.lines import Lines
from events_core.cli.outcome import show

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBar", "Steps"]

_PATIENCE = 1.0
"""Seconds before a bar appears; a bar that is gone at once would only flicker."""


class ProgressBar(ExitStack):
    """A bar that shows how much of *lines* was sent, if sending takes long and standard error is a terminal."""

    def __init__(self, lines: Lines, *, wanted: bool) -> None:
        super().__init__()
        self._lines = lines
        self._wanted = wanted and sys.stderr is not None and sys.stderr.isatty()
        self._due = time.monotonic() + _PATIENCE
        self._bar: tuple[Progress, TaskID] | None = None

    def update(self, sent: int) -> None:
        """Show that *sent* messages are stored."""
        # rich is imported with the first bar; most commands end before.
        if self._wanted and self._bar is None and time.monotonic() >= self._due:
            self._bar = self._show()
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=self._lines.bytes_read, sent=sent)

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[sent]} messages"), TimeRemainingColumn()
        # Standard output carries data, so rich must not send it through the console of the bar.
        progress = Progress(*columns, console=Console(stderr=True), redirect_stdout=False, transient=True)
        self.enter_context(progress)
        return progress, progress.add_task("sending", total=self._lines.total_bytes, sent=0)


class Steps(ExitStack):
    """The progress of a number of steps: a bar if standard error is a terminal, otherwise a line for each step."""

    def __init__(self) -> None:
        super().__init__()
        self._total = self._done = 0
        self._bar: tuple[Progress, TaskID] | None = None

    def expect(self, total: int) -> None:
        """Set the number of steps to *total*."""
        self._total = total
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = self._show()

    def begin(self, name: str) -> None:
        """Show that the step *name* begins."""
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=self._done, name=name, refresh=True)

    def end(self, name: str, outcome: str) -> None:
        """Show that the step *name* ended with *outcome*."""
        self._done += 1
        if self._bar is None:
            show(f"{self._done}/{self._total} {outcome}: {name}")

    def __str__(self) -> str:
        return f"{self._done} of {self._total}"

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[name]}", markup=False)
        # auto_refresh would start a thread.  The kit counts the threads of its process (C3), and this is its process.
        progress = Progress(
            *columns,
            console=Console(stderr=True),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
        )
        self.enter_context(progress)
        return progress, progress.add_task("checking", total=self._total, name="")
