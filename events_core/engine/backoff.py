"""How long to wait before trying again; pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

__all__ = ["Backoff", "redelivery_delay"]


def redelivery_delay(attempt: int) -> float:
    """Seconds before a message that failed *attempt* times is delivered again (R11): 0.1 s doubling to 60 s."""
    return min(60.0, 0.1 * 2.0 ** min(attempt - 1, 10)) if attempt > 0 else 0.0


class Backoff:
    """Full-jitter exponential delays, in seconds: each is anywhere up to a ceiling that doubles.

    Full jitter spreads clients that lost the same broker at the same instant
    (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).
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
        """Start over: the last try succeeded."""
        self._ceiling = self._initial

    def __next__(self) -> float:
        delay = self._uniform(self._initial / 2, self._ceiling)
        self._ceiling = min(self._maximum, self._ceiling * 2)
        return delay

    def __iter__(self) -> Iterator[float]:
        return self
