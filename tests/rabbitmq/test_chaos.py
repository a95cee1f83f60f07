"""The server is killed twice while processes send and receive."""

from __future__ import annotations

from pathlib import Path

from . import chaos
from .server import Server


def test_nothing_confirmed_is_lost_when_the_server_is_killed(own_server: Server, tmp_path: Path) -> None:
    """P1, F1, F3: every confirmed message comes, twice only if it was unsettled at a kill, and receivers resume."""
    report = chaos.run(own_server, tmp_path, messages=3000)
    print(report)
    assert report.lost == 0
    assert report.unexplained == 0
