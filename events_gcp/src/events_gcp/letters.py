"""Dead letters that a receiver moves by itself, where Pub/Sub would lose their order.

A letter is published by a task of its own, apart from settlements: a topic that does not answer must hold up no
acknowledgement.  A settlement that asks before the task has ended is told to ask again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery

__all__ = ["DeadLetters"]


class DeadLetters:
    """The letters of one receiver; each is published once, however often its settlement is repeated."""

    def __init__(self, store: Callable[[Delivery], Awaitable[None]]) -> None:
        """*store* publishes the letter of a delivery, or raises a :class:`BrokerError`."""
        self._store = store
        self._moving: dict[str, asyncio.Task[BrokerError | None]] = {}
        self._moved: set[str] = set()

    def move(self, delivery: Delivery) -> BrokerError | None:
        """Begin to store the letter of *delivery*; return ``None`` if it is stored, otherwise why not yet."""
        name = delivery.message_id
        if name in self._moved:
            return None
        task = self._moving.get(name)
        if task is None:
            task = self._moving[name] = asyncio.ensure_future(self._stored(delivery))
        if not task.done():
            return BrokerError("the dead-letter topic has not answered yet", ErrorCode.UNAVAILABLE, retryable=True)
        del self._moving[name]
        error = task.result()
        if error is None:
            self._moved.add(name)
        return error

    async def _stored(self, delivery: Delivery) -> BrokerError | None:
        try:
            await self._store(delivery)
        except BrokerError as error:
            return error
        return None

    def forget(self, message_ids: Iterable[str]) -> None:
        """Forget letters whose settlements have ended, and are not repeated."""
        self._moved.difference_update(message_ids)

    async def close(self) -> None:
        """Give up what is under way: its message comes again, and may be a letter as well."""
        tasks, self._moving = list(self._moving.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
