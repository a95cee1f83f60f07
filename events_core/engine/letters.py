"""Dead letters that a receiver publishes itself, where the broker cannot move them.

The source acknowledges a message when its letter is stored.  If the process dies between the two requests, the message
is a letter and also comes again.

A separate task publishes each letter, because a topic that does not answer must not delay acknowledgements.  A
settlement that comes before the task has ended gets a retryable error, so the engine repeats it.

Letters of one key keep their order.  They are published one after the other, and when one fails and may be repeated,
the later ones of its key wait until it is stored or its settlement has ended.

Everything here runs at home, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from events_core.engine.dead_letter import dead_letter_attributes, log_dead_letter
from events_core.engine.driver import BrokerError, Outcome, Settlement
from events_core.errors import ErrorCode
from events_core.message import EventMessage

__all__ = ["Letters"]

# As globals, because reading a member from its class takes ten times as long (CPython 3.11).
_, _NACK, _, _REJECT = Outcome

_LONGEST_WAIT = 10.0
"""Seconds for which letters of a key wait for a failed one.  The engine repeats a settlement about every second.  So
after this time it has given that message up."""


class Letters:
    """The letters of one receiver.  Each is published once, although its settlement may be repeated."""

    def __init__(
        self,
        store: Callable[[EventMessage], Awaitable[object]],
        *,
        topic_name: str,
        subscription: str,
        dead_letter_topic: str | None,
        max_attributes: int | None = None,
        last_attempt: int | None = None,
    ) -> None:
        """Publish letters of messages from *subscription* of *topic_name*.

        :param store: publishes one letter, and raises :class:`BrokerError` if it may not be stored.
        :param dead_letter_topic: the topic of the letters, for the log; ``None`` if there are no letters.
        :param max_attributes: the most attributes of a letter.  One that would have more is stored without its origin.
        :param last_attempt: the attempt whose failure makes a letter; ``None`` if only a rejection makes one.
        """
        self._store_letter = store
        self._topic_name = topic_name
        self._subscription = subscription
        self._dead_letter_topic = dead_letter_topic
        self._max_attributes = max_attributes
        self._last_attempt = last_attempt
        self._moving: dict[str, asyncio.Task[BrokerError | None]] = {}
        # For each key, the newest letter under way.
        self._newest: dict[str, asyncio.Task[BrokerError | None]] = {}
        # For each key of which a letter has failed: the message whose letter must be stored first, and until when.
        self._first: dict[str, tuple[str, float]] = {}
        self._moved: set[str] = set()

    @property
    def is_busy(self) -> bool:
        """True while letters are under way, so that :meth:`forget` must be told of what is settled.

        It may be read in any thread: a message that is settled there has no letter whose way begins at the same time.
        """
        return bool(self._moving or self._moved or self._first)

    def takes(self, settlement: Settlement) -> bool:
        """Return whether the message becomes a letter: it was rejected, or has failed too often."""
        if settlement.outcome is not _NACK:
            return settlement.outcome is _REJECT
        return self._last_attempt is not None and (settlement.delivery.delivery_attempt or 1) >= self._last_attempt

    def move(self, settlement: Settlement) -> BrokerError | None:
        """Begin to publish the letter; return ``None`` when it is stored, otherwise the reason why it is not."""
        delivery = settlement.delivery
        name = delivery.message_id
        if name in self._moved:
            return None
        task = self._moving.get(name)
        if task is None:
            task = self._moving[name] = self._begin(settlement)
        if not task.done():
            return BrokerError("the dead-letter topic has not answered yet", ErrorCode.UNAVAILABLE, retryable=True)
        del self._moving[name]
        error = task.result()
        if error is None:
            # Until the settlement ends: if it is repeated, there must be no second letter.
            self._moved.add(name)
        return error

    def _begin(self, settlement: Settlement) -> asyncio.Task[BrokerError | None]:
        key = settlement.delivery.ordering_key
        if not key:
            return asyncio.ensure_future(self._stored(settlement))
        task = asyncio.ensure_future(self._stored_in_order(settlement, key, self._newest.get(key)))
        self._newest[key] = task
        task.add_done_callback(lambda ended: self._newest.pop(key) if self._newest.get(key) is ended else None)
        return task

    async def _stored_in_order(
        self, settlement: Settlement, key: str, before: asyncio.Task[BrokerError | None] | None
    ) -> BrokerError | None:
        if before is not None:
            await asyncio.wait([before])
        name = settlement.delivery.message_id
        now = asyncio.get_running_loop().time
        first, until = self._first.get(key, (name, 0.0))
        if first != name and now() < until:
            return BrokerError(
                f"the dead letter of message {first}, which has the same key, is not stored yet",
                ErrorCode.UNAVAILABLE,
                retryable=True,
            )
        error = await self._stored(settlement)
        if error is not None and error.retryable:
            self._first[key] = name, now() + _LONGEST_WAIT
        else:
            self._first.pop(key, None)
        return error

    async def _stored(self, settlement: Settlement) -> BrokerError | None:
        """Publish the letter, and return the error if it is not stored."""
        try:
            await self._store(settlement)
        except BrokerError as error:
            return error
        return None

    async def _store(self, settlement: Settlement) -> None:
        delivery = settlement.delivery
        assert self._dead_letter_topic is not None
        attempts = delivery.delivery_attempt or 1
        reason = settlement.reason if settlement.outcome is Outcome.REJECT else None
        attributes = dead_letter_attributes(
            delivery.attributes,
            topic_name=self._topic_name,
            subscription=self._subscription,
            message_id=delivery.message_id,
            attempts=attempts,
            reason=reason,
        )
        if self._max_attributes is not None and len(attributes) > self._max_attributes:
            # The broker would refuse the letter.  A letter without its origin is better than none.
            attributes = dict(delivery.attributes)
        letter = EventMessage(delivery.data, attributes, ordering_key=delivery.ordering_key)
        await self._store_letter(letter)
        log_dead_letter(
            delivery.message_id,
            attempts=attempts,
            subscription=self._subscription,
            dead_letter_topic=self._dead_letter_topic,
            reason=reason,
        )

    def forget(self, message_ids: Iterable[str]) -> None:
        """Forget letters whose settlements have ended, so that nothing repeats them."""
        if self._moved or self._first:  # usually there are no letters, and each settled message passes here
            ended = set(message_ids)
            self._moved -= ended
            self._first = {key: first for key, first in self._first.items() if first[0] not in ended}

    async def close(self) -> None:
        """Cancel unfinished requests.  Their messages come again, and each may also be stored as a letter."""
        tasks, self._moving = list(self._moving.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
