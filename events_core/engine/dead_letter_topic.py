"""The topic of dead letters: a subscription must keep them, or they are lost without an error (R12)."""

from __future__ import annotations

import logging
from typing import Any

from events_core.engine.driver import BrokerError, Driver
from events_core.engine.failure import UNFORESEEN, is_meant
from events_core.errors import ErrorCode

__all__ = ["DeadLetterTopic"]

_log = logging.getLogger("events_core.engine")


class DeadLetterTopic:
    """The topic to which one client's receivers move messages that failed too often."""

    def __init__(self, driver: Driver[Any]) -> None:
        self._driver = driver
        self._has_warned = False

    async def ensure_subscribed(self) -> None:
        """Let the topic have a durable subscription, or warn once that it has none; at home.

        It does nothing for a client without such a topic.  A failure does not keep the receiver from receiving: it is
        logged.
        """
        options = self._driver.options
        topic = options.dead_letter_topic
        if topic is None:
            return
        subscription = options.letters_subscription
        try:
            kept = await self._driver.keep_dead_letters(subscription)
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            if isinstance(error, BrokerError) and error.code is ErrorCode.PERMISSION_DENIED:
                # An application that may only receive cannot do anything about it, and must not be warned each time.
                _log.debug("could not look for a subscription of dead-letter topic %r: %s", topic, error)
            else:
                self._warn("dead letters may be lost: no subscription of topic %r was found or made: %s", topic, error)
        else:
            # ``None`` means that the broker cannot tell, which is no reason for a warning.
            if kept is False:
                self._warn(
                    "dead letters are lost: topic %r has no durable subscription, and create=never forbids to create "
                    "%r; create it, or set create=subscription",
                    topic,
                    subscription,
                )

    def _warn(self, text: str, *values: object) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(text, *values)
