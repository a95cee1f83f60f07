"""The fixtures that all tests share."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def signals_as_at_a_terminal() -> None:
    """Let signals interrupt the programs that tests start, even if this run itself is in the background.

    A run in the background ignores SIGINT and SIGHUP, and the programs that it starts inherit that.  They do not
    inherit a handler, even one that does nothing.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
