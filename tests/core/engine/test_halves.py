"""The size of requests: the broker and the senders must not wait for each other."""

from __future__ import annotations

import pytest

from events_core.engine.halves import LET_PASS, Halves


class Line:
    """A queue before a broker that takes one request at a time, and each takes 2 s."""

    def __init__(self) -> None:
        self.halves = Halves()
        self.queued = 0
        self.now = 10.0

    def request(self, arriving: int = 0) -> int:
        """Send one request while *arriving* messages come; return how many messages it took."""
        began = self.now
        taken = self.halves.take(self.queued, began)
        self.now += 2.0
        self.queued += arriving - taken
        self.halves.over(taken, began, self.now, waiting=self.queued > 0)
        return taken

    def pause(self, seconds: float, arriving: int) -> None:
        self.now += seconds
        self.queued += arriving


@pytest.fixture
def line() -> Line:
    """Return a line of which 64 senders have sent once, and have their answers."""
    line = Line()
    line.queued = 64
    assert line.request() == 64
    return line


def test_after_a_pause_halves_take_turns(line: Line) -> None:
    """P5: while one half is written, the senders of the other half wake up."""
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
    """P5: no sender must wait for a half that brings no gain."""
    line.pause(pause, arriving=64)
    assert line.request() == taken, why


def test_few_are_not_halved(line: Line) -> None:
    """P5: for a few messages, one more request costs more than it gains."""
    line.pause(2.0, arriving=31)
    assert line.request() == 31


def test_large_and_small_requests_become_even(line: Line) -> None:
    """P5: two requests in each round are fastest if each carries half of the messages."""
    line.pause(2.0, arriving=1)
    assert [line.request(arriving=63), line.request(arriving=1), line.request(arriving=63)] == [1, 63, 1]
    assert [line.request(arriving=1), line.request(arriving=32), line.request(arriving=32)] == [32, 32, 32]


def test_a_burst_after_a_small_request_leaves_whole(line: Line) -> None:
    """P5: a burst is not halved if the senders of the request before it do not come back."""
    line.pause(2.0, arriving=1)
    assert [line.request(arriving=63), line.request()] == [1, 63]


def test_callers_who_wait_for_each_other_are_seldom_halved(line: Line) -> None:
    """P5: a sender that sends 64 messages at once and waits for all of them gains nothing from halves."""
    rounds = []
    for _ in range(2 * LET_PASS):
        line.pause(2.0, arriving=64)
        requests = 0
        while line.queued:
            line.request()
            requests += 1
        rounds.append(requests)
    assert [index for index, requests in enumerate(rounds) if requests == 2] == [0, LET_PASS + 1]
