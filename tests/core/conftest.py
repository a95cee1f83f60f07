"""What the tests of the core rely on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .shell import Shell


@pytest.fixture(scope="session", autouse=True)
def signals_as_at_a_terminal() -> None:
    """Let programs that tests start be interrupted, also where this run itself is in the background.

    There SIGINT and SIGHUP are ignored, and a program inherits that; a handler, even one that does nothing, it does
    not inherit.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """The command line, in a directory of this test's own."""
    shell = Shell(tmp_path)
    yield shell
    shell.close()
