"""The regular work of a driver, for which no operation of the application asks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from events_core.engine.driver import Driver
from events_core.engine.failure import UNFORESEEN, is_meant
from events_core.engine.home import Home

__all__ = ["maintain"]

_log = logging.getLogger("events_core.engine")


async def maintain(driver: Driver[Any], home: Home, is_used: Callable[[], object]) -> None:
    """Call :meth:`Driver.maintain` from time to time; at home, until the task is cancelled.

    :param is_used: returns a false value when the client is gone.  It was not closed then, so nobody cancels this.
    """
    interval = driver.maintenance_interval
    assert interval is not None
    while True:
        # Clients that start together must not ask the broker together.
        await asyncio.sleep(interval * random.uniform(0.5, 1.5))
        if not is_used():
            return
        try:
            async with home.timeout(driver.options.connect_timeout):
                await driver.maintain()
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            # Nobody waits for it, the next time may succeed, and the broker may forbid it.
            _log.debug("maintenance of topic %r failed: %r", driver.topic_name, error)
