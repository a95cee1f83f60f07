"""The last known state of a connection, and the pauses of requests before their next try.

Requests report what they see: :meth:`Link.up` after each answer, :meth:`Link.down` after each failure that is
retryable.  The first answer after an outage wakes all requests that pause.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading

from events_core.engine.backoff import Backoff
from events_core.engine.waiting import WaitingRoom

__all__ = ["Link", "Pauses"]

_log = logging.getLogger("events_core.engine")


class Link:
    """The state of one client's connection; logs each outage once (V1)."""

    def __init__(self, name: str, longest_pause: float = math.inf) -> None:
        """Begin unconnected.

        :param longest_pause: the most seconds between two tries of a request.
        """
        self._name = name
        self._longest_pause = longest_pause
        # Guards the changes: home and callers that ping may report at the same moment, and each outage counts once.
        self._lock = threading.Lock()
        self._pausing = WaitingRoom()
        self._is_told = False
        # Read without the lock, for each answer of the broker.  What was read decides nothing alone: up() looks again.
        self.is_up = False
        self.outages = 0

    def up(self) -> None:
        """Record that the broker has answered."""
        if self.is_up:
            return
        with self._lock:
            was_up, self.is_up = self.is_up, True
        if was_up:
            return
        _log.info("%s: %s", self._name, "reconnected" if self.outages else "connected")
        self.retry()

    def unreachable(self, error: BaseException) -> None:
        """Log, once, that the first connection failed and that the engine tries again."""
        with self._lock:
            is_news, self._is_told = not self._is_told, True
        if is_news:
            _log.warning("%s: cannot connect, trying again: %s", self._name, error)

    def down(self, error: BaseException) -> None:
        """Record that the broker could not be reached."""
        with self._lock:
            was_up, self.is_up = self.is_up, False
            self.outages += was_up
        if was_up:
            _log.warning("%s: connection lost, trying again: %s", self._name, error)

    def retry(self) -> None:
        """End the pauses of all requests, because the next try may succeed; from any thread."""
        self._pausing.wake_all()

    def pauses(self, backoff: Backoff) -> Pauses:
        """Return the pauses between the tries of one request."""
        return Pauses(self._pausing, backoff, self._longest_pause)

    def closed(self) -> None:
        """Record that the client has been closed."""
        self.is_up = False


class Pauses:
    """The pauses between the tries of one request.

    After an outage the first answer ends the pauses of all requests, because the connection works again.  No pause is
    cut short twice in a row.  Otherwise a broker that answers some requests and refuses others would be asked in a hot
    loop.
    """

    def __init__(self, room: WaitingRoom, backoff: Backoff, longest: float = math.inf) -> None:
        self._room = room
        self._backoff = backoff
        self._longest = longest
        self._was_cut_short = False

    def reset(self) -> None:
        """Start again with short pauses, because the last try succeeded."""
        self._backoff.reset()
        self._was_cut_short = False

    async def next(self, longest: float = math.inf) -> None:
        """Wait before the next try, for *longest* seconds at most."""
        seconds = min(next(self._backoff), longest, self._longest)
        if self._was_cut_short:
            self._was_cut_short = False
            await asyncio.sleep(seconds)
            return
        events = self._room.events
        # Another thread may have found the broker back since the line above: then there is no waiter, and no pause.
        waiter = self._room.enter(events)
        if waiter is not None:
            await self._room.wait(waiter, seconds)
        self._was_cut_short = self._room.events != events
