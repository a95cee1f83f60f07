"""Whether the broker can be reached, as far as anybody knows."""

from __future__ import annotations

import logging
import threading

__all__ = ["Link"]

_log = logging.getLogger("events_core.engine")


class Link:
    """The state of one client's connection; logs each outage once (V1)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self.is_up = False
        self.outages = 0

    def up(self) -> None:
        """The broker has answered."""
        if self.is_up:
            return
        with self._lock:
            self.is_up = True
        _log.info("%s: %s", self._name, "reconnected" if self.outages else "connected")

    def down(self, error: BaseException) -> None:
        """The broker could not be reached."""
        with self._lock:
            was_up, self.is_up = self.is_up, False
            self.outages += was_up
        if was_up:
            _log.warning("%s: connection lost, trying again: %s", self._name, error)

    def closed(self) -> None:
        """The client has been closed."""
        self.is_up = False
