"""How a pull adapts to its line, without one."""

from __future__ import annotations

from events_gcp.pull_pace import PullPace


def test_a_fast_line_is_used_after_a_few_answers() -> None:
    """From ten messages to a thousand."""
    pace, asked = PullPace(), []
    for _ in range(6):
        asked.append(pace.limit(5000))
        pace.arrived(asked[-1], 0.001)
    assert asked == [10, 40, 160, 640, 1000, 1000]


def test_a_slow_line_is_asked_for_what_it_can_bring() -> None:
    """Messages of 50 kB at 32 Mbit/s: 8 of them take 0.1 s."""
    pace = PullPace()
    for _ in range(20):
        pace.arrived(pace.limit(1000), pace.limit(1000) * 50_000 / 4e6)
    assert pace.limit(1000) == 8


def test_a_line_that_becomes_slow_is_asked_for_less() -> None:
    """At once, also if the answer was not full."""
    pace = PullPace()
    for _ in range(7):
        pace.arrived(pace.limit(1000), 0.001)
    pace.arrived(100, 1.0)
    assert pace.limit(1000) == 10


def test_answers_that_are_not_full_say_nothing_of_the_line() -> None:
    """A pull brought what there was, not what it might have brought."""
    pace = PullPace()
    for _ in range(7):
        pace.arrived(1, 0.09)
    assert pace.limit(1000) == 10


def test_nobody_is_asked_for_more_than_there_is_room_for() -> None:
    """R5."""
    pace = PullPace()
    for _ in range(7):
        pace.arrived(pace.limit(1000), 0.001)
    assert pace.limit(3) == 3


def test_an_answer_that_was_cut_off_is_given_more_time() -> None:
    """For ten minutes, since what it brought comes again when its lease is over; smaller messages change nothing."""
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
