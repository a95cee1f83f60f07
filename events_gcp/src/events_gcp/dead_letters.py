"""Dead letters that the receiver publishes itself, because Pub/Sub would lose the order of the key.

Only then does the receiver acknowledge the message.  If the process dies between the two requests, the message is a
letter and also comes again.

A separate task publishes each letter, because a topic that does not answer must not delay acknowledgements.  A
settlement that comes before the task has ended gets a retryable error, so the engine repeats it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery, dead_letter_attributes, log_dead_letter
from events_gcp.limits import MAX_ATTRIBUTES

if TYPE_CHECKING:
    from events_gcp.api import Api
    from events_gcp.subscription import JoinedSubscription

__all__ = ["DeadLetters"]


class DeadLetters:
    """The letters of one receiver.  Each is published once, although its settlement may be repeated."""

    def __init__(self, api: Api, source_topic: str, joined: JoinedSubscription) -> None:
        """Publish letters of messages from *joined*, a subscription of *source_topic* (the short name)."""
        self._api = api
        self._source_topic = source_topic
        self._joined = joined
        self._moving: dict[str, asyncio.Task[BrokerError | None]] = {}
        self._moved: set[str] = set()

    def move(self, delivery: Delivery) -> BrokerError | None:
        """Begin to publish the letter of *delivery*; return ``None`` when it is stored, otherwise why it is not."""
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

    async def _store(self, delivery: Delivery) -> None:
        topic = self._joined.dead_letter_topic
        assert topic is not None
        attempts = delivery.delivery_attempt or 1
        attributes = dead_letter_attributes(
            delivery.attributes,
            topic_name=self._source_topic,
            subscription=self._joined.name,
            message_id=delivery.message_id,
            attempts=attempts,
        )
        if len(attributes) > MAX_ATTRIBUTES:
            # Pub/Sub would refuse the letter.  A letter without its origin is better than none.
            attributes = dict(delivery.attributes)
        letter = EventMessage(delivery.data, attributes, ordering_key=delivery.ordering_key)
        await self._api.publish(topic, [letter])
        log_dead_letter(
            delivery.message_id,
            attempts=attempts,
            subscription=self._joined.name,
            dead_letter_topic=topic.rpartition("/")[2],
        )

    def forget(self, message_ids: Iterable[str]) -> None:
        """Forget letters whose settlements have ended, so that nothing repeats them."""
        self._moved.difference_update(message_ids)

    async def close(self) -> None:
        """Cancel unfinished requests.  Their messages come again, and each may also be stored as a letter."""
        tasks, self._moving = list(self._moving.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
