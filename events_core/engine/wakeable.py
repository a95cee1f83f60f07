"""Something that waits, as the pure parts of the engine see it: they may end the wait, and know no loop or thread."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Wakeable"]


class Wakeable(Protocol):
    """Something that waits to be woken."""

    def wake(self) -> None:
        """End the wait."""
