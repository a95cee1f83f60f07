"""Tables and texts, laid out by rich, as bytes for standard output."""

from __future__ import annotations

import sys

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment

from events_core.cli.escaping import escaped

__all__ = ["printed"]

_PIPED_WIDTH = 1000
"""Columns if standard output is not a terminal: programs read the lines, so they must not be wrapped."""


class _Escaped:
    """A part with its own styles, and without other characters that control a terminal."""

    def __init__(self, part: RenderableType) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._part, options):
            yield Segment(escaped(segment.text), segment.style)


def printed(*parts: RenderableType) -> bytes:
    """Return *parts*, one below the other, as text in UTF-8."""
    # rich finds the width of a terminal itself; a pipe has none, and rich would take 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)
    with console.capture() as capture:
        console.print(_Escaped(Group(*parts)))
    # Tables pad their last column with spaces.
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines()).encode()
