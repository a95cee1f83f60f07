"""One consumer: a channel on which the server pushes the messages of a queue, and everything that is out on it.

Deliveries belong to their channel.  When the channel ends, the server gives them to others, and their tags mean nothing
any more.  So a consumer lives as long as its channel, and a :class:`~events_rabbitmq.codec.Token` names its consumer.

The server cancels a consumer when its queue is deleted or moves, and from 4.3 on when it has held a message for too
long.  Then this module closes the channel: all that is out on it comes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from itertools import takewhile
from typing import Any

from pika import spec  # type: ignore[import-untyped]

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery
from events_rabbitmq.codec import NAMELESS, Token, decode
from events_rabbitmq.connection import Channel, Connection, resolve
from events_rabbitmq.errors import broker_error
from events_rabbitmq.wire import method_frame

__all__ = ["Consumer"]

_CLOSE_TIMEOUT = 1.0
"""Seconds to wait until the server has closed a channel.  Closing a receiver has 2 s."""


class Consumer:
    """The consumer of one queue.  Make it with :meth:`open`.

    :param prefetch: the most deliveries that are out at once.
    :param ended: called when the channel has ended.  It calls :meth:`forget` for each delivery that the engine drops.
    :param lost: the tokens of what was out when earlier channels ended, by id.  The consumers of a receiver share it.
    """

    def __init__(
        self, channel: Channel, queue: str, prefetch: int, ended: Callable[[Consumer], None], lost: dict[str, Token]
    ) -> None:
        self.connection = channel.connection
        self._channel = channel
        self._queue = queue
        self._prefetch = prefetch
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        """The time of the loop when it began."""
        self._arrived: list[Delivery] = []
        self._wake: asyncio.Future[None] | None = None
        self._out: dict[int, Delivery] = {}
        """The unsettled deliveries, by tag.  Tags rise, so they are in order."""
        self._ids: dict[str, Token] = {}
        """The tokens of what is out, by id.  An id stays until :meth:`forget`, because the engine would take another
        message with that id for a copy.  When the channel ends, the ids that the engine knows move to ``_lost``."""
        self._lost = lost
        self._written = 0
        """The number of writes of settlements."""
        self._confirmed = 0
        """The number of those that the server has handled."""
        self._consumer_tag: str | None = None
        self._error: BrokerError | None = None
        # pika cancels consumers before it closes a channel.  The server would activate the next consumer while this
        # one still holds messages, and that one would get later messages first (measured: 5 to 9 before 0 to 4).
        channel.native.basic_cancel = lambda *_, **__: None
        channel.native.add_on_cancel_callback(lambda _: self.abandon("the server cancelled the consumer"))
        channel.listeners.append(self._on_close)
        channel.receive(self._on_delivery)

    @classmethod
    async def open(
        cls,
        connection: Connection,
        queue: str,
        prefetch: int,
        ended: Callable[[Consumer], None],
        lost: dict[str, Token],
    ) -> Consumer:
        """Consume from *queue*, on a new channel.

        :raises BrokerError: if that failed.
        """
        consumer = cls(await Channel.open(connection), queue, prefetch, ended, lost)
        try:
            await consumer.ask()
            await consumer._consume()
        except BaseException:
            consumer._channel.close()
            raise
        return consumer

    @property
    def is_open(self) -> bool:
        """True while its deliveries can be settled."""
        return self._error is None

    # Receiving

    async def _consume(self) -> None:
        # Never twice on a channel: the prefetch counts for each consumer, so the second one would get a whole prefetch
        # next to what is still out.
        asked = f"consume from queue {self._queue!r}"
        # Its callback is never called, because deliveries do not go through pika.
        answer = await self._channel.call(asked, "basic_consume", self._queue, lambda *_: None)
        self._consumer_tag = answer.consumer_tag

    def stop(self) -> None:
        """Let the server push no more messages.  Unsettled messages, and those on their way, stay here."""
        tag, self._consumer_tag = self._consumer_tag, None
        if tag is not None and self.is_open:
            # Not by pika, which would reject what is on its way.
            self._channel.emit(method_frame(self._channel.number, spec.Basic.Cancel(tag, nowait=True)))

    async def take(self, limit: int) -> list[Delivery]:
        """Wait until messages have arrived, and return at most *limit*.

        :raises BrokerError: if the channel has ended.
        """
        while self._error is None and not self._arrived:
            self._wake = self._loop.create_future()
            await self._wake
        if self._error is not None:
            raise self._error
        taken = self._arrived[:limit]
        del self._arrived[:limit]
        for delivery in taken if self._lost else ():
            self._lost.pop(delivery.message_id, None)  # it is here again
        return taken

    def _on_delivery(self, method: bytes, header: bytes, body: bytes) -> None:
        if self._error is not None:
            return  # it was on its way when the channel ended, and comes again
        delivery = decode(self, method, header, body)
        if "x-stream-offset" in delivery.attributes:
            text = f"queue {self._queue!r} is a stream, which this backend does not read; name a quorum queue"
            self._end(BrokerError(text, ErrorCode.UNSUPPORTED))
            self._channel.close()
            return
        name, tag = delivery.message_id, delivery.token.tag
        while not self._is_free(name, delivery):
            # The server never delivers one message twice on a channel.  So it is another one, whose publisher has
            # chosen the same id (R7).
            name = f"{name}#{tag}"
        delivery.message_id = name
        self._ids[name] = delivery.token
        self._out[tag] = delivery
        self._arrived.append(delivery)
        if self._wake is not None:
            resolve(self._wake)

    def _is_free(self, name: str, delivery: Delivery) -> bool:
        """Return whether *delivery* may have the id *name*, because nothing else that is here has it."""
        if name in self._ids:
            return False
        if name not in self._lost:
            return True
        # Only a message that was out before can be the one that was lost.  The flag is behind the tag.  If the message
        # has no id, it may also be an equal one: the server may have handled the acknowledgement of the lost one.
        method = delivery.token.method
        return bool(method[13 + method[4]]) and not name.startswith(NAMELESS)

    # Settling

    def find(self, message_id: str) -> Delivery | None:
        """Remove a delivery that has arrived, as :meth:`take` does, and return it; ``None`` if it is not there."""
        for delivery in self._arrived:
            if delivery.message_id == message_id:
                self._arrived.remove(delivery)
                self._lost.pop(message_id, None)
                return delivery
        return None

    def acknowledge(self, tags: Collection[int]) -> None:
        """Acknowledge deliveries that are out, in one write."""
        wanted = set(tags)
        # Tags rise.  So one frame acknowledges all up to the first one that is out and not wanted.
        through = max(takewhile(wanted.__contains__, self._out), default=0)
        acks = [spec.Basic.Ack(through, multiple=True)] if through else []
        acks += [spec.Basic.Ack(tag) for tag in wanted if tag > through]
        self._settle(wanted, *acks)

    def reject(self, tag: int) -> None:
        """Let a message come again, and count the attempt."""
        self._put_back(tag, spec.Basic.Reject(tag, requeue=True))

    def give_back(self, tag: int) -> None:
        """Let a message come again.  From 4.3 on that counts no attempt."""
        self._put_back(tag, spec.Basic.Nack(tag, requeue=True))

    def _put_back(self, tag: int, method: Any) -> None:
        delivery = self._out[tag]
        self._settle((tag,), method)
        self.forget(delivery)  # at once, because the message may come again before the server has answered

    def _settle(self, tags: Collection[int], *methods: Any) -> None:
        self._channel.emit(b"".join(method_frame(self._channel.number, method) for method in methods))
        self._written += 1
        for tag in tags:
            del self._out[tag]

    def forget(self, delivery: Delivery) -> None:
        """Let another message have the id of *delivery*, which the engine does not wait for any more."""
        for tokens in (self._ids, self._lost):
            if tokens.get(delivery.message_id) is delivery.token:
                del tokens[delivery.message_id]

    async def confirm(self) -> None:
        """Wait until the server has handled the settlements that were written before.

        A settlement has no answer (AMQP 0-9-1).  But a channel handles its requests in order, so the answer to the next
        one tells that the channel has passed the settlements on to the queue.  A quorum queue may store them later:
        that has no answer.

        :raises BrokerError: if the channel has ended.
        """
        written = self._written
        if self._confirmed < written:
            await self.ask()
            self._confirmed = written  # only now: a caller that was cancelled before asks again

    async def ask(self) -> None:
        """Make a request, and wait for the answer.  It sets the prefetch of later consumers, to what it is.

        :raises BrokerError: if the channel has ended.
        """
        await self._channel.call("set the prefetch", "basic_qos", prefetch_count=self._prefetch)

    # The end

    async def close(self) -> None:
        """Close the channel, and wait for the answer: the server then has all unsettled messages back, in order."""
        if not self.is_open:
            return
        closed = self._loop.create_future()
        self._channel.listeners.append(lambda _: resolve(closed))
        self._channel.close()
        await asyncio.wait([closed], timeout=_CLOSE_TIMEOUT)
        self._end(BrokerError("the consumer was closed", ErrorCode.UNAVAILABLE, retryable=True))

    def abandon(self, why: str) -> None:
        """Close the channel without waiting.  Everything that is out is lost, and comes again."""
        self._end(BrokerError(why, ErrorCode.UNAVAILABLE, retryable=True))
        self._channel.close()

    def _on_close(self, reason: Exception) -> None:
        self._end(broker_error(f"receive from queue {self._queue!r}", reason))

    def _end(self, error: BrokerError) -> None:
        if self._error is not None:
            return
        self._error = error
        for delivery in self._arrived:
            self.forget(delivery)
        self._arrived.clear()
        self._out.clear()
        self._ended(self)
        self._lost.update(self._ids)
        self._ids.clear()
        if self._wake is not None:
            resolve(self._wake)
