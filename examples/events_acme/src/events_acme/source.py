"""A subscription, as one receiver uses it.

A message is the file ``<message id>.<attempts>``.  A receiver may take it
when the file's time of modification has passed.

To take a message, a receiver does three things, in this order:

1. It reads the file, so that it can certainly return what it takes.
2. It sets the time to the end of the lease, so that others wait.
3. It renames the file, to count the attempt.  Only one of several
   receivers can do that: the others no longer find the file.

A receiver whose lease is over does not find its file either, if another
one has taken the message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from events_acme.errors import translated
from events_acme.options import CAPABILITIES
from events_core import ErrorCode, EventMessage
from events_core.engine import (
    BrokerError,
    Delivery,
    Outcome,
    Settlement,
    Source,
    redelivery_delay,
)

if TYPE_CHECKING:
    from events_acme.driver import AcmeDriver

__all__ = ["AcmeSource"]

_log = logging.getLogger("events_acme")
_MESSAGE = re.compile(r"\d+-\w+\.\d+")


class AcmeSource(Source):
    """One receiver."""

    capabilities = CAPABILITIES
    prefetch = 100

    def __init__(
        self, driver: AcmeDriver, subscription: str, *, ephemeral: bool
    ) -> None:
        self.subscription = subscription
        self.lease: float = driver.options.lease
        self._driver = driver
        self._ephemeral = ephemeral

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        deliveries = self._take(limit)
        if not deliveries:
            await asyncio.sleep(self._driver.options.poll_interval)
        # An empty list tells the engine that the broker answers.
        return deliveries

    def _take(self, limit: int) -> list[Delivery]:
        # Another program may have deleted the folder: make it again (F1).
        folder = self._driver.join(self.subscription)
        deliveries: list[Delivery] = []
        trouble: OSError | None = None
        with translated(f"receive from '{folder}'"):
            # This shows that an ephemeral subscription is in use.
            os.utime(folder)
            oldest_first = sorted(os.listdir(folder))
            for name in filter(_MESSAGE.fullmatch, oldest_first):
                if len(deliveries) == limit:
                    break
                try:
                    if (folder / name).stat().st_mtime <= time.time():
                        deliveries += self._lend(folder / name)
                except FileNotFoundError:
                    pass  # another receiver took it
                except OSError as error:
                    trouble = error
            # Return the messages that were taken, although one file failed.
            if trouble and not deliveries:
                raise trouble
        return deliveries

    def _lend(self, file: Path) -> Iterator[Delivery]:
        try:
            delivery = _read(file)
        except (ValueError, TypeError, OverflowError) as error:
            aside = file.rename(f"{file}.damaged")
            _log.warning("no message, set aside as '%s': %s", aside, error)
            return
        _available(file, time.time() + self.lease)
        delivery.token = _counted(file, 1)
        yield delivery

    async def extend(
        self, deliveries: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        return [each for each in deliveries if not self._extend(each.token)]

    def _extend(self, file: Path) -> bool:
        try:
            _available(file, time.time() + self.lease)
            os.utime(file.parent)
        except FileNotFoundError:
            return False  # another receiver has it
        return True

    async def settle(
        self, settlements: Sequence[Settlement]
    ) -> Sequence[BrokerError | None]:
        return [self._settle(settlement) for settlement in settlements]

    def _settle(self, settlement: Settlement) -> BrokerError | None:
        file: Path = settlement.delivery.token
        try:
            with translated(f"settle '{file}'"):
                if settlement.outcome is Outcome.ACK:
                    file.unlink()
                elif settlement.outcome is Outcome.RETURN:
                    _available(_counted(file, -1), time.time())
                else:
                    _available(file, time.time() + _delay(settlement))
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                return error
            return BrokerError(
                "the lease is over; another receiver may have the message",
                ErrorCode.EXPIRED,
            )
        return None

    async def close(self) -> None:
        if self._ephemeral:
            await self._driver.delete_subscription(self.subscription)


def _read(file: Path) -> Delivery:
    """Return the message in *file*, with the number of its next attempt.

    :raises ValueError, TypeError, OverflowError: if it is no message.
    """
    message_id, _, attempts = file.name.rpartition(".")
    nanoseconds = int(message_id.partition("-")[0])
    attributes, _, data = file.read_bytes().partition(b"\n")
    # The constructor checks the types of what the file has.
    message = EventMessage(data, json.loads(attributes))
    return Delivery(
        message_id,
        data,
        message.attributes,
        publish_time=datetime.fromtimestamp(nanoseconds / 1e9, UTC),
        delivery_attempt=int(attempts) + 1,
    )


def _delay(settlement: Settlement) -> float:
    if settlement.delay is not None:
        return settlement.delay
    return redelivery_delay(settlement.delivery.delivery_attempt or 1)


def _available(file: Path, when: float) -> None:
    """Let receivers take *file* from the time *when* on."""
    os.utime(file, (when, when))


def _counted(file: Path, attempts: int) -> Path:
    """Rename *file* to count so many attempts more."""
    message_id, _, before = file.name.rpartition(".")
    name = f"{message_id}.{int(before) + attempts}"
    return file.rename(file.with_name(name))
