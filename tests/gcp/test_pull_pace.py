"""The size and the deadline of pulls, without a line."""

from __future__ import annotations

from events_gcp.pull_pace import PullPace


def test_a_fast_line_is_used_after_a_few_answers() -> None:
    """The size of a pull grows from ten messages to a thousand."""
    pace, asked = PullPace(), []
    for _ in range(6):
        asked.append(pace.limit(5000))
        pace.arrived(asked[-1], 0.001)
    assert asked == [10, 40, 160, 640, 1000, 1000]


def test_a_slow_line_is_asked_for_what_it_can_bring() -> None:
    """8 messages of 50 kB take 0.1 s at 32 Mbit/s, so a pull asks for 8."""
    pace = PullPace()
    for _ in range(20):
        pace.arrived(pace.limit(1000), pace.limit(1000) * 50_000 / 4e6)
    assert pace.limit(1000) == 8


def test_a_line_that_becomes_slow_is_asked_for_less() -> None:
    """The next pull asks for less, even if the slow answer was not full."""
    pace = PullPace()
    for _ in range(7):
        pace.arrived(pace.limit(1000), 0.001)
    pace.arrived(100, 1.0)
    assert pace.limit(1000) == 10


def test_answers_that_are_not_full_say_nothing_of_the_line() -> None:
    """A pull that brings all there is does not make the next one larger."""
    pace = PullPace()
    for _ in range(7):
        pace.arrived(1, 0.09)
    assert pace.limit(1000) == 10


def test_nobody_is_asked_for_more_than_there_is_room_for() -> None:
    """R5: a pull asks for no more than there is room for."""
    pace = PullPace()
    for _ in range(7):
        pace.arrived(pace.limit(1000), 0.001)
    assert pace.limit(3) == 3


def test_an_answer_that_was_cut_off_is_given_more_time() -> None:
    """Pulls have more time for ten minutes, even if small messages come fast in between."""
    pace = PullPace()
    assert pace.timeout(0) == 1
    pace.was_cut_off(1)
    assert (pace.limit(1000), pace.timeout(1)) == (1, 64)
    pace.arrived(1, 0.001)
    assert pace.timeout(600) == 64
    pace.was_cut_off(600)
    pace.was_cut_off(600)
    assert pace.timeout(1199) == 256
    assert pace.timeout(1200) == 1
