"""Receiving from an inline driver: each call does the work of the engine's tasks itself, in its own thread."""

from __future__ import annotations

from events_core.engine.driver import Source
from events_core.engine.feed import Feed, InlineFeed
from events_core.engine.receiver import EngineReceiver
from events_core.engine.settler import InlineSettler
from events_core.engine.surroundings import Surroundings

__all__ = ["InlineReceiver"]


class InlineReceiver(EngineReceiver):
    """A receiver of a client whose driver is inline."""

    _settler_class = InlineSettler

    def _begin_feed(self, source: Source, surroundings: Surroundings) -> Feed:
        return InlineFeed(source, self._inbox)

    async def _until_closed(self) -> None:
        # The task that closes runs in the loop of another caller, which may stand still.
        pass
