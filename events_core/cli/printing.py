"""What rich lays out, as bytes for standard output."""

from __future__ import annotations

import sys

from rich.console import Console, Group, RenderableType

__all__ = ["printed"]

_PIPED_WIDTH = 1000
"""Columns where standard output is no terminal: lines that programs read are not wrapped."""


def printed(*parts: RenderableType) -> bytes:
    """*parts* one below the other."""
    console = Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)
    with console.capture() as capture:
        console.print(Group(*parts))
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines()).encode()
