"""A reader of a page: copies its files, types its commands into terminals, and compares what they print.

A page shows three kinds of code blocks:

* A block whose caption names a file, such as ``bill.py``: the reader writes the file.
* A ``console`` block: lines that begin with ``$`` are commands, and the lines below are their output.  A command
  without output must succeed, and may print anything.  A caption names the terminal, and ``^C`` presses Ctrl-C.  In a
  terminal with a name, the last command of a block goes on running.
* Any other block: the reader only reads it.

In expected output, ``…`` stands for any text, and a line ``…`` for any number of lines.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

BOUND = 600.0
"""Seconds that a command may take, on a busy machine.  Installing takes longest."""

PROMPT = re.compile(r"<ready (\d+)>\Z")
"""What the shell prints when it waits for a command, with the exit status of the last one."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")

BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n((?: +:.*\n)*)\n((?:(?: +.*)?\n)+)", re.MULTILINE)

FILE = re.compile(r"[\w.]+\.(py|toml)")


class Block(NamedTuple):
    """One code block of a page."""

    language: str
    caption: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield the code blocks of *page*."""
    for language, options, text in BLOCK.findall(page):
        caption = re.search(r":caption: (.+)", options)
        yield Block(language, caption[1] if caption else "", textwrap.dedent(text).strip("\n"))


class Terminal:
    """A shell in a pseudo-terminal, so that programs behave as they do in front of a person."""

    def __init__(self, folder: Path) -> None:
        self._hands, screen = os.openpty()
        try:
            termios.tcsetwinsize(screen, (50, 400))
            quiet = termios.tcgetattr(screen)
            quiet[3] &= ~termios.ECHO  # typed text must not look like output
            termios.tcsetattr(screen, termios.TCSANOW, quiet)
            self._shell = subprocess.Popen(
                # setsid makes the terminal the shell's own, so that Ctrl-C reaches what the shell runs.
                ["setsid", "--ctty", "--wait", "bash", "--norc", "--noprofile", "--noediting", "-i"],
                cwd=folder,
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "PS1": "<ready $?>",
                    # tox sets it; a reader's programs import the files next to them.
                    "PYTHONSAFEPATH": "",
                    "TERM": "dumb",
                    "VIRTUAL_ENV_DISABLE_PROMPT": "1",
                },
                stdin=screen,
                stdout=screen,
                stderr=screen,
            )
        finally:
            os.close(screen)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._hands, selectors.EVENT_READ)
        self._seen = ""
        self.end()

    def close(self) -> None:
        """Hang up, which ends the shell and its programs."""
        self._selector.close()
        os.close(self._hands)
        self._shell.wait(BOUND)

    def type(self, command: str) -> None:
        """Type a line."""
        os.write(self._hands, f"{command}\n".encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._hands, b"\x03")

    def end(self, expected: str = "") -> None:
        """Wait until the command has ended.  It must succeed and print *expected*, unless that is empty."""
        deadline = time.monotonic() + BOUND
        while not (prompt := PROMPT.search(self._seen)):
            self._look(deadline)
        output, self._seen = self._seen[: prompt.start()], ""
        assert prompt[1] == "0", output
        assert not expected or re.fullmatch(_pattern(expected), output), f"not as on the page:\n{output}"

    def print(self, expected: str) -> None:
        """Wait until the running command has printed *expected*."""
        deadline = time.monotonic() + BOUND
        while not (match := re.match(_pattern(expected), self._seen)):
            assert not PROMPT.search(self._seen), f"ended with:\n{self._seen}"
            self._look(deadline)
        self._seen = self._seen[match.end() :]

    def _look(self, deadline: float) -> None:
        patience = max(0.0, deadline - time.monotonic())
        assert self._selector.select(patience), f"nothing more came after:\n{self._seen}"
        self._seen += COLOUR.sub("", os.read(self._hands, 65536).decode()).replace("\r\n", "\n")


def _pattern(expected: str) -> str:
    """Return the regular expression of lines with ``…`` in them."""
    lines = expected.splitlines()
    return "".join(r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in lines)


class Reader:
    """A person in front of a page, with a folder for its files and with terminals in another."""

    def __init__(self, files: Path, terminals: Path) -> None:
        self._files = files
        self._started_in = terminals
        self._terminals: dict[str, Terminal] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def follow(self, page: str) -> None:
        """Do all that *page* says, from top to bottom."""
        for block in blocks(page):
            if block.language == "console":
                self._type(block)
            elif FILE.fullmatch(block.caption):
                (self._files / block.caption).write_text(f"{block.text}\n")

    def _terminal(self, name: str) -> Terminal:
        if name not in self._terminals:
            self._terminals[name] = Terminal(self._started_in)
            self._closing.callback(self._terminals[name].close)
        return self._terminals[name]

    def _type(self, block: Block) -> None:
        terminal = self._terminal(block.caption)
        *ending, last = re.split(r"^(?=\$ )", block.text, flags=re.MULTILINE)
        for part in ending:
            if part:
                terminal.end(_typed(terminal, part))
        output = _typed(terminal, last)
        if "^C" in output.splitlines():
            before, _, output = f"{output}\n".partition("^C\n")
            terminal.print(before)
            terminal.interrupt()
            terminal.end(output)
        elif block.caption:
            terminal.print(output)
        else:
            terminal.end(output)


def _typed(terminal: Terminal, part: str) -> str:
    """Type the command that *part* begins with, if it does; return the output that the page shows."""
    if not part.startswith("$ "):
        return part
    command, _, output = part[2:].partition("\n")
    terminal.type(command)
    return output
