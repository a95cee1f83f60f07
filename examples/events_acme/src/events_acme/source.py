"""A subscription as one receiver uses it.

A message is the file ``<message id>.<attempts>``, and may be taken from its time of modification on.  To take it is to
set that time to the end of the lease, then to rename the file, which counts the attempt.  Of several receivers only one
can rename it, and whoever held it before finds its own file gone.  It is read first: what is taken is sure to be
returned.
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
from events_core.engine import BrokerError, Delivery, Outcome, Settlement, Source, redelivery_delay

if TYPE_CHECKING:
    from events_acme.driver import AcmeDriver

__all__ = ["AcmeSource"]

_log = logging.getLogger("events_acme")
_MESSAGE = re.compile(r"\d+-\w+\.\d+")


class AcmeSource(Source):
    """One receiver."""

    capabilities = CAPABILITIES
    prefetch = 100

    def __init__(self, driver: AcmeDriver, subscription: str, *, ephemeral: bool) -> None:
        self.subscription = subscription
        self.lease: float = driver.options.lease
        self._driver = driver
        self._ephemeral = ephemeral

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        deliveries = self._take(limit)
        if not deliveries:
            await asyncio.sleep(self._driver.options.poll_interval)
        return deliveries  # also none: it tells the engine that the broker answers

    def _take(self, limit: int) -> list[Delivery]:
        folder = self._driver.join(self.subscription)  # anew where it was deleted
        deliveries: list[Delivery] = []
        with translated(f"receive from '{folder}'"):
            os.utime(folder)  # a sign of life, for an ephemeral subscription
            trouble: OSError | None = None
            for name in filter(_MESSAGE.fullmatch, sorted(os.listdir(folder))):  # oldest first
                if len(deliveries) == limit:
                    break
                try:
                    if (folder / name).stat().st_mtime <= time.time():
                        deliveries += self._lend(folder / name)
                except FileNotFoundError:
                    pass  # another receiver took it
                except OSError as error:
                    trouble = error
            if trouble and not deliveries:  # what was taken must be returned, whatever became of the rest
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

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return [delivery for delivery in deliveries if not self._extend(delivery.token)]

    def _extend(self, file: Path) -> bool:
        try:
            _available(file, time.time() + self.lease)
            os.utime(file.parent)
        except FileNotFoundError:
            return False  # another receiver has it
        return True

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        return [self._settle(each.delivery, each.outcome, each.delay) for each in settlements]

    def _settle(self, delivery: Delivery, outcome: Outcome, delay: float | None) -> BrokerError | None:
        file: Path = delivery.token
        try:
            with translated(f"settle '{file}'"):
                if outcome is Outcome.ACK:
                    file.unlink()
                elif outcome is Outcome.RETURN:
                    _available(_counted(file, -1), time.time())
                else:
                    wait = redelivery_delay(delivery.delivery_attempt or 1) if delay is None else delay
                    _available(file, time.time() + wait)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                return error
            return BrokerError("the lease has lapsed; the message comes again", ErrorCode.EXPIRED)
        return None

    async def close(self) -> None:
        if self._ephemeral:
            await self._driver.delete_subscription(self.subscription)


def _read(file: Path) -> Delivery:
    """The message in *file*, as whoever takes it will have it.

    :raises ValueError, TypeError, OverflowError: when there is none.
    """
    message_id, _, attempts = file.name.rpartition(".")
    published = datetime.fromtimestamp(int(message_id.partition("-")[0]) / 1e9, UTC)
    attributes, _, data = file.read_bytes().partition(b"\n")
    message = EventMessage(data, json.loads(attributes))  # which checks the types
    return Delivery(message_id, data, message.attributes, None, published, int(attempts) + 1)


def _available(file: Path, when: float) -> None:
    os.utime(file, (when, when))


def _counted(file: Path, attempts: int) -> Path:
    """Rename *file* to count so many attempts more."""
    message_id, _, before = file.name.rpartition(".")
    return file.rename(file.with_name(f"{message_id}.{int(before) + attempts}"))
