"""The check of each message before anything is sent (P2)."""

from __future__ import annotations

import logging
from typing import Any

from events_core.engine.driver import Driver
from events_core.engine.limits import measure
from events_core.errors import ErrorCode, EventRuntimeError, PublishError
from events_core.message import EventMessage

__all__ = ["MessageCheck"]

_log = logging.getLogger("events_core.observing")


class MessageCheck:
    """The check of messages for one driver; it keeps no state, so any thread may use it at any time."""

    def __init__(self, driver: Driver[Any]) -> None:
        self._driver = driver
        self._limits = driver.capabilities.limits
        self._keeps_order = driver.capabilities.ordering != "none"

    def size(self, index: int, message: EventMessage) -> int:
        """Return the bytes of *message*, the one with number *index* of its send.

        :raises TypeError: if it is no :class:`EventMessage`.
        :raises EventRuntimeError: ``UNSUPPORTED`` for an ordering key if the configuration keeps no order.
        :raises PublishError: ``INVALID`` if it is beyond a limit, or the driver objects to it.
        """
        if not isinstance(message, EventMessage):
            raise TypeError(
                f"message {index} is a {type(message).__name__}, not an EventMessage; make one with "
                "EventMessage.from_string(text) or EventMessage.from_json(value)"
            )
        if message.ordering_key is not None and not self._keeps_order:
            raise EventRuntimeError(
                f"message {index} has ordering key {message.ordering_key!r}, and this configuration keeps no order; "
                "send it without, or set the option ordering=true where the backend can",
                code=ErrorCode.UNSUPPORTED,
            )
        try:
            size = measure(message, self._limits)
        except ValueError as error:
            raise PublishError(f"message {index} cannot be sent: {error}", code=ErrorCode.INVALID) from None
        # Last, so that a driver may rely on the limits.
        objection = self._driver.objection(message)
        if objection:
            raise PublishError(f"message {index} cannot be sent: {objection}", code=ErrorCode.INVALID)
        return size

    def fits(self, message: EventMessage) -> bool:
        """Return whether *message*, with attributes of an observer, keeps the limits and the driver takes it."""
        try:
            measure(message, self._limits)
        except ValueError as error:
            _log.debug("a message is sent without the attributes of the observer: with them, %s", error)
            return False
        objection = self._driver.objection(message)
        if objection:
            _log.debug("a message is sent without the attributes of the observer: with them, %s", objection)
        return not objection
