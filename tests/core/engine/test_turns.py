"""How many messages a request takes, so that broker and callers need not wait for each other."""

from __future__ import annotations

import pytest

from events_core.engine.turns import LET_PASS, Turns


class Line:
    """A queue before a broker that takes one request at a time, and each takes 2 s."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.queued = 0
        self.now = 10.0

    def request(self, arriving: int = 0) -> int:
        """How many one request takes; *arriving* messages come while it is out."""
        began = self.now
        taken = self.turns.take(self.queued, began)
        self.now += 2.0
        self.queued += arriving - taken
        self.turns.over(taken, began, self.now, waiting=self.queued > 0)
        return taken

    def pause(self, seconds: float, arriving: int) -> None:
        self.now += seconds
        self.queued += arriving


@pytest.fixture
def line() -> Line:
    """64 callers have sent once, and been told."""
    line = Line()
    line.queued = 64
    assert line.request() == 64
    return line


def test_after_a_pause_halves_take_turns(line: Line) -> None:
    """P5: while one is written the other is told."""
    line.pause(2.0, arriving=64)
    assert [line.request(arriving=0), line.request(arriving=32), line.request(arriving=32)] == [32, 32, 32]


@pytest.mark.parametrize(
    ("pause", "taken", "why"),
    [
        (1.3, 64, "a request more would cost more than the pause"),
        (1.4, 32, "while they are told, the broker can work"),
        (7.9, 32, "while they are told, the broker can work"),
        (8.0, 64, "after a long pause nobody goes in a circle"),
    ],
)
def test_only_a_pause_of_some_length_leads_to_halves(line: Line, pause: float, taken: int, why: str) -> None:
    """P5: halving must not make anybody wait for nothing."""
    line.pause(pause, arriving=64)
    assert line.request() == taken, why


def test_few_are_not_halved(line: Line) -> None:
    """P5: a request has its cost."""
    line.pause(2.0, arriving=31)
    assert line.request() == 31


def test_large_and_small_requests_become_even(line: Line) -> None:
    """P5: two requests a round are best when each carries half."""
    line.pause(2.0, arriving=1)
    assert [line.request(arriving=63), line.request(arriving=1), line.request(arriving=63)] == [1, 63, 1]
    assert [line.request(arriving=1), line.request(arriving=32), line.request(arriving=32)] == [32, 32, 32]


def test_a_burst_after_a_small_request_leaves_whole(line: Line) -> None:
    """P5: nobody waits for an even share of what does not come back."""
    line.pause(2.0, arriving=1)
    assert [line.request(arriving=63), line.request()] == [1, 63]


def test_callers_who_wait_for_each_other_are_seldom_halved(line: Line) -> None:
    """P5: whoever sends 64 at once and waits for all gains nothing from halves."""
    rounds = []
    for _ in range(2 * LET_PASS):
        line.pause(2.0, arriving=64)
        requests = 0
        while line.queued:
            line.request()
            requests += 1
        rounds.append(requests)
    assert [index for index, requests in enumerate(rounds) if requests == 2] == [0, LET_PASS + 1]
