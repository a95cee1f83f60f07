"""Members of a group join, leave, die and stall while messages run."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import chaos
from .chaos_worker import KEYS
from .server import Server


def test_members_come_and_go_and_nothing_is_lost(server: Server, tmp_path: Path) -> None:
    """R8, R9, F2: all messages are handled in order, and only those come twice that were not committed."""
    report = chaos.run(server.address, tmp_path, messages=8000, seconds=40)
    print(report)
    assert report.faults == []
    assert (report.lost, report.lag) == (0, 0)
    assert report.nacked > 0


@pytest.fixture
def journal(tmp_path: Path) -> chaos.Journal:
    """Return a journal in which one receiver has handled message 1 of partition 0."""
    journal = chaos.Journal(tmp_path)
    _add(journal, "a", 10, "r", 1)
    _add(journal, "a", 11, "d", 1)
    _add(journal, "a", 12, "a", 1)
    return journal


def _add(journal: chaos.Journal, process: str, time: float, kind: str, number: int) -> None:
    journal.events.append(chaos.Event(time, process, kind, number, 0, number))


def _count(journal: chaos.Journal, *disturbances: chaos.Disturbance, committed: int = 0) -> dict[str, int]:
    return dict(chaos.Review(journal, [*disturbances], {0: [chaos.Sample(13, committed, "")]}).counts)


def test_the_review_finds_a_message_that_comes_too_early(journal: chaos.Journal) -> None:
    """A message that is handed out before its predecessor is done counts as misplaced."""
    _add(journal, "a", 10.5, "r", 1 + KEYS)
    assert _count(journal) == {"misplaced": 1}


def test_the_review_finds_a_duplicate_without_a_reason(journal: chaos.Journal) -> None:
    """A message that was acknowledged and comes again is unexplained, if its receiver lives."""
    _add(journal, "b", 20, "r", 1)
    leaves = chaos.Disturbance("leave", "a", 15, 16)
    assert _count(journal, leaves) == {"unexplained": 1}


def test_the_review_finds_a_duplicate_that_was_committed(journal: chaos.Journal) -> None:
    """A message whose acknowledgement was committed may not come again, even if its receiver died."""
    _add(journal, "b", 20, "r", 1)
    dies = chaos.Disturbance("die", "a", 12.5, 12.5)
    assert _count(journal, dies, committed=2) == {"committed": 1}
    assert _count(journal, dies, committed=1) == {"uncommitted": 1}


def test_the_review_knows_a_message_that_moved(journal: chaos.Journal) -> None:
    """A message that was held when a member joined may come again to another one."""
    _add(journal, "a", 14, "r", 2)
    _add(journal, "b", 20, "r", 2)
    assert _count(journal, chaos.Disturbance("join", "b", 15, 16)) == {"held": 1}
    assert _count(journal) == {"unexplained": 1}


def test_the_review_knows_a_hand_over_that_a_stall_interrupted(journal: chaos.Journal) -> None:
    """The first hand-over after a stall may have begun before it; a second one may not."""
    stall = chaos.Disturbance("stall", "b", 20, 40)
    _add(journal, "b", 19, "r", 2)
    _add(journal, "b", 19.5, "n", 2)
    _add(journal, "b", 35, "r", 1)
    assert _count(journal, stall) == {"nacked": 1, "interrupted": 1}
    _add(journal, "b", 36, "r", 1)
    assert _count(journal, stall) == {"nacked": 1, "interrupted": 1, "unexplained": 1}


def test_the_review_expects_a_nacked_message_again(journal: chaos.Journal) -> None:
    """A message that was nacked comes again, and that is no duplicate."""
    _add(journal, "a", 14, "r", 2)
    _add(journal, "a", 15, "n", 2)
    _add(journal, "a", 16, "r", 2)
    assert _count(journal) == {"nacked": 1}
