"""The room for deliveries between the consumer's thread and the engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from events_core.engine import Delivery

__all__ = ["Room"]


class Room:
    """A count of buffered deliveries and their bytes, which the thread raises and home lowers.

    :param messages: the most deliveries that are buffered.
    :param size: no more is added while the buffer has that many bytes.
    """

    def __init__(self, messages: int, size: int) -> None:
        self._limits = (messages, size)
        self._messages = 0
        self._bytes = 0
        self._changed = threading.Condition()

    def took(self, deliveries: Sequence[Delivery]) -> None:
        """Note that *deliveries* have left the buffer."""
        with self._changed:
            self._messages -= len(deliveries)
            self._bytes -= sum([len(delivery.data) for delivery in deliveries])
            self._changed.notify()

    def fill(self, deliveries: Sequence[Delivery]) -> None:
        """Note that *deliveries* have come into the buffer."""
        with self._changed:
            self._messages += len(deliveries)
            self._bytes += sum([len(delivery.data) for delivery in deliveries])

    def wait(self, seconds: float) -> int:
        """Return the number of messages for which there is room; if there is none, wait a while for it."""
        with self._changed:
            if self._left() <= 0:
                self._changed.wait(seconds)
            return self._left()

    def is_half_empty(self) -> bool:
        """Return whether it is worth to fetch again after a pause."""
        return 2 * self._messages <= self._limits[0] and 2 * self._bytes <= self._limits[1]

    def wake(self) -> None:
        """End :meth:`wait`."""
        with self._changed:
            self._changed.notify()

    def _left(self) -> int:
        return 0 if self._bytes >= self._limits[1] else self._limits[0] - self._messages
