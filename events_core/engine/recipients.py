"""Topics without a subscription, where messages and dead letters would be lost without a word (R12)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from events_core.engine.driver import BrokerError, Driver
from events_core.engine.failure import UNFORESEEN, is_meant
from events_core.errors import ErrorCode

__all__ = ["Recipients"]

_log = logging.getLogger("events_core.engine")

LOOK_UP = 5.0
"""Seconds for which a broker may look for subscriptions of the topic; a client that closes waits for that."""


class Recipients:
    """The subscriptions that receive what one client sends, and what its receivers dead-letter."""

    def __init__(self, driver: Driver[Any]) -> None:
        self._driver = driver
        self._has_warned = False

    async def check(self) -> None:
        """Log a warning if the topic has no subscription; at home.

        A failure to find out is logged at DEBUG, because the send itself was fine.
        """
        topic = self._driver.topic_name
        try:
            found = await self._has_subscription()
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            _log.debug("could not find out whether topic %r has a subscription: %r", topic, error)
        else:
            if found is False:
                _log.warning(
                    "topic %r has no subscription: what is sent now reaches nobody; create a subscription before you "
                    "send, for example with the option 'subscription'",
                    topic,
                )

    async def _has_subscription(self) -> bool | None:
        if self._driver.inline:
            return await self._driver.has_subscription()
        async with asyncio.timeout(LOOK_UP):
            return await self._driver.has_subscription()

    async def keep_dead_letters(self) -> None:
        """Let the dead-letter topic have a subscription, or warn once that it has none; at home."""
        options = self._driver.options
        topic = options.dead_letter_topic
        if topic is None:
            return
        subscription = options.dead_letter_subscription or f"{topic}-letters"
        try:
            kept = await self._driver.keep_dead_letters(subscription)
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            if isinstance(error, BrokerError) and error.code is ErrorCode.PERMISSION_DENIED:
                _log.debug("could not look for a subscription of dead-letter topic %r: %s", topic, error)
            else:
                self._warn("dead letters may be lost: no subscription of topic %r was found or made: %s", topic, error)
        else:
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
