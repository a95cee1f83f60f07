"""Members of a group join, leave, die and stall while messages run."""

from __future__ import annotations

from pathlib import Path

from . import chaos
from .server import Server


def test_members_come_and_go_and_nothing_is_lost(server: Server, tmp_path: Path) -> None:
    """R8, R9, F2: all messages are handled in order, and only those come twice that were not committed."""
    report = chaos.run(server.address, tmp_path, messages=8000, seconds=40)
    print(report)
    assert report.faults == []
    assert (report.lost, report.lag) == (0, 0)
    assert report.nacked > 0
