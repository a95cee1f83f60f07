"""The subscriptions of a topic: if there is none, messages are lost without an error (R12)."""

from __future__ import annotations

import logging
from typing import Any

from events_core.engine.driver import Driver
from events_core.engine.failure import UNFORESEEN, is_meant
from events_core.engine.home import Home

__all__ = ["Recipients"]

_log = logging.getLogger("events_core.engine")

LOOK_UP = 5.0
"""Seconds for which a broker may look for subscriptions of the topic.  A client that closes waits for that."""


class Recipients:
    """The subscriptions that receive what one client sends."""

    def __init__(self, driver: Driver[Any], home: Home) -> None:
        self._driver = driver
        self._home = home

    async def check(self) -> None:
        """Log a warning if the topic has no subscription; at home.

        A failure to find out is logged at DEBUG, because the send itself was successful.
        """
        topic = self._driver.topic_name
        try:
            async with self._home.timeout(LOOK_UP):
                found = await self._driver.has_subscription()
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            _log.debug("could not find out whether topic %r has a subscription: %r", topic, error)
        else:
            # ``None`` means that the broker cannot tell, which is no reason for a warning.
            if found is False:
                _log.warning(
                    "topic %r has no subscription: what is sent now reaches nobody; create a subscription before you "
                    "send, for example with the option 'subscription'",
                    topic,
                )
