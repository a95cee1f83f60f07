"""Backoff: how long to wait before the next try.  This module does no I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

__all__ = ["Backoff", "redelivery_delay"]


def redelivery_delay(attempt: int) -> float:
    """Return the seconds before a message that failed *attempt* times is delivered again (rule R11: delays).

    They begin with 0.1 s and double with each attempt, up to 60 s.
    """
    # The exponent is bounded, because 2.0 ** 1024 is more than a float can hold.
    return min(60.0, 0.1 * 2.0 ** min(attempt - 1, 10)) if attempt > 0 else 0.0


class Backoff:
    """Random delays, in seconds, below a ceiling that doubles with each of them.

    The wide range spreads the clients that lost the same broker at the same moment
    (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).  The least delay is half of *initial*, so that no
    client asks in a hot loop.

    :param initial: the first ceiling.
    :param maximum: the last ceiling.
    """

    def __init__(
        self,
        initial: float = 0.1,
        maximum: float = 30.0,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._initial = initial
        self._maximum = maximum
        self._uniform = uniform
        self._ceiling = initial

    def reset(self) -> None:
        """Start again with the first ceiling, because the last try succeeded."""
        self._ceiling = self._initial

    def __next__(self) -> float:
        delay = self._uniform(self._initial / 2, self._ceiling)
        self._ceiling = min(self._maximum, self._ceiling * 2)
        return delay

    def __iter__(self) -> Iterator[float]:
        return self
