"""Topics and subscriptions as exchanges and queues.

A topic is a durable exchange, and a subscription is a durable quorum queue that is bound to it.  With
``topology=queue`` a topic is one queue, which is also its only subscription.

What exists is never changed.  Where the options allow creating, this module declares what it wants: the server creates
it, or finds the same, or refuses it with the name of the argument that differs.  Otherwise it only looks, so foreign
exchanges and classic queues are fine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from events_core import ErrorCode
from events_core.engine import BrokerError, Gate
from events_rabbitmq.limits import behaviour
from events_rabbitmq.links import Links
from events_rabbitmq.options import RabbitMQOptions
from events_rabbitmq.scratch import declared

__all__ = ["Place", "Topology", "place_of"]

_log = logging.getLogger("events_rabbitmq")


class Place(NamedTuple):
    """The place to which the messages of a topic are sent."""

    exchange: str
    routing_key: str

    def __str__(self) -> str:
        return f"exchange {self.exchange!r}" if self.exchange else f"queue {self.routing_key!r}"


def place_of(topic: str, options: RabbitMQOptions) -> Place:
    """Return the place of *topic*.  The exchange without a name brings a message to the queue of its routing key."""
    return Place("", topic) if options.topology == "queue" else Place(topic, options.routing_key or "")


def _arguments(version: tuple[int, ...], options: RabbitMQOptions, *, ephemeral: bool) -> Mapping[str, Any]:
    """Return the arguments of a new queue on a server of this *version*."""
    arguments = {"x-queue-type": "quorum", **behaviour(version).queue_arguments}
    if options.ordering:
        arguments["x-single-active-consumer"] = True
    if ephemeral:
        arguments["x-expires"] = round(options.ephemeral_expires * 1000)
    return arguments


class Topology:
    """The exchanges and queues of one client."""

    def __init__(self, links: Links, topic_name: str, options: RabbitMQOptions) -> None:
        self._links = links
        self._topic = topic_name
        self._options = options
        self._create = options.create
        self._joined: dict[str, bool] = {}
        """The queues that this client has bound to the topic, by name, and whether they are ephemeral."""
        self.gate = Gate()
        """The gate in front of the topic, which :meth:`create_again` makes whole."""

    async def create(self) -> None:
        """Create the configured topics and subscription, if they are missing and the options allow it."""
        await self._create_topics()
        if self._options.subscription and self._create != "never":
            await self.join(self._options.queue_of(self._topic, self._options.subscription))

    async def _create_topics(self) -> None:
        for topic in (self._topic, self._options.dead_letter_topic):
            if topic and self._create == "all":
                await self.find_topic(topic)

    async def create_again(self) -> None:
        """Create the topics again, which were deleted, with the queues that this client has joined.

        RabbitMQ deletes the bindings of an exchange with it.
        """
        await self._create_topics()
        for queue, is_ephemeral in [*self._joined.items()]:
            await self._create_queue(self._topic, queue, ephemeral=is_ephemeral)

    async def find_topic(self, topic: str, *, passive: bool = False) -> None:
        """Look for *topic*, or create it if the options allow that and not *passive*.

        :raises BrokerError: ``NOT_FOUND`` if it does not exist.
        """
        passive = passive or self._create != "all"
        asked = f"{'look for' if passive else 'declare'} topic {topic!r}"
        if self._options.topology == "queue":
            await self._declare(asked, topic, passive=passive)
            return
        if not passive:
            declared("exchange", topic)
        kind = self._options.exchange_type
        await self._ask(asked, "exchange_declare", topic, exchange_type=kind, durable=True, passive=passive)

    async def _has_topic(self, topic: str) -> bool:
        try:
            await self.find_topic(topic, passive=True)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
            return False
        return True

    async def join(self, queue: str, *, ephemeral: bool = False) -> None:
        """Look for the topic and *queue*, or create them if the options allow that.

        :raises BrokerError: ``NOT_FOUND`` if one is missing, ``INVALID`` if one has other arguments.
        """
        if self._create == "all" and self._joined and not await self._has_topic(self._topic):
            await self.gate.restore(self.create_again)
        await self.find_topic(self._topic)
        if self._options.topology == "queue":
            return
        if self._create == "never" and not ephemeral:
            await self.find_queue(queue)
        else:
            await self._create_queue(self._topic, queue, ephemeral=ephemeral)
            self._joined[queue] = ephemeral

    async def bind_again(self, queue: str) -> None:
        """Bind *queue*, if this client has bound it before.  If it or the topic was deleted, do nothing.

        :raises BrokerError: if the server cannot be reached.
        """
        if queue not in self._joined:
            return
        try:
            await self._bind(self._topic, queue)
        except BrokerError as error:
            if error.retryable:
                raise

    async def find_queue(self, queue: str) -> None:
        """Look for *queue*.

        :raises BrokerError: ``NOT_FOUND`` if it does not exist.
        """
        await self._declare(f"look for queue {queue!r}", queue, passive=True)

    async def _create_queue(self, topic: str, queue: str, *, ephemeral: bool = False) -> None:
        await self._declare(f"declare queue {queue!r}", queue, ephemeral=ephemeral)
        await self._bind(topic, queue)

    async def _bind(self, topic: str, queue: str) -> None:
        options = self._options
        default = "#" if options.exchange_type == "topic" else options.routing_key or ""
        for key in (options.binding_keys or default).split(","):
            asked = f"bind queue {queue!r} to topic {topic!r}"
            await self._ask(asked, "queue_bind", queue, topic, routing_key=key.strip())

    async def _declare(self, asked: str, queue: str, *, passive: bool = False, ephemeral: bool = False) -> None:
        version = (await self._links.any()).version
        arguments = {} if passive else _arguments(version, self._options, ephemeral=ephemeral)
        if not passive:
            declared("queue", queue)
        try:
            await self._ask(asked, "queue_declare", queue, durable=True, passive=passive, arguments=arguments)
        except BrokerError as error:
            if "x-delivery-limit" not in str(error):
                raise
            # A client created the queue while the server was older than 4.0.
            _log.warning("%s; set a policy with delivery-limit=-1, or messages are dropped after 20 deliveries", error)
            await self.find_queue(queue)

    async def keep_letters(self, topic: str, subscription: str) -> bool | None:
        """Create *subscription* of a dead-letter *topic* that is new; return ``None`` if the topic is older.

        AMQP cannot tell whether a queue is bound to an exchange.  If none is, the first letter comes back, and
        :meth:`add_letters` creates one then.
        """
        queue = self._options.queue_of(topic, subscription)
        if await self._has_topic(topic):
            return None
        await self.find_topic(topic)
        await self._create_queue(topic, queue)
        return True

    async def add_letters(self, topic: str, subscription: str) -> bool:
        """Create *subscription* of a dead-letter *topic* without one; return whether the options allow that.

        :raises BrokerError: ``NOT_FOUND`` if the topic does not exist either, and may not be created.
        """
        if self._create == "never" or self._options.topology == "queue":
            return False
        await self.find_topic(topic)
        await self._create_queue(topic, self._options.queue_of(topic, subscription))
        return True

    async def delete(self, queue: str) -> None:
        """Delete *queue*.

        :raises BrokerError: ``NOT_FOUND`` if it does not exist.
        """
        self._joined.pop(queue, None)
        await self.find_queue(queue)  # deleting what does not exist succeeds
        await self._ask(f"delete queue {queue!r}", "queue_delete", queue)

    async def _ask(self, asked: str, method: str, *arguments: Any, **named: Any) -> None:
        await (await self._links.any()).ask(asked, method, *arguments, **named)
