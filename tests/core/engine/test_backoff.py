"""The length of pauses."""

from __future__ import annotations

import itertools

import pytest

from events_core.engine.backoff import Backoff, redelivery_delay


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(0, 0.0), (1, 0.1), (2, 0.2), (4, 0.8), (10, 51.2), (11, 60.0), (10_000, 60.0)]
)
def test_redelivery_doubles_from_a_tenth_to_a_minute(attempt: int, seconds: float) -> None:
    """R11: the delay begins with 0.1 s and doubles with each attempt, up to 60 s."""
    assert redelivery_delay(attempt) == pytest.approx(seconds)


def test_ceilings_double_up_to_the_maximum() -> None:
    """The longest possible delay doubles each time, up to the maximum."""
    backoff = Backoff(0.1, 1.0, uniform=lambda low, high: high)
    assert list(itertools.islice(backoff, 6)) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_delays_are_never_a_hot_loop() -> None:
    """The shortest possible delay is half of the first ceiling."""
    backoff = Backoff(0.1, 1.0, uniform=lambda low, high: low)
    assert list(itertools.islice(backoff, 3)) == pytest.approx([0.05, 0.05, 0.05])


def test_success_starts_over() -> None:
    """After a reset the first ceiling holds again."""
    backoff = Backoff(0.1, 1.0, uniform=lambda low, high: high)
    list(itertools.islice(backoff, 4))
    backoff.reset()
    assert next(backoff) == pytest.approx(0.1)
