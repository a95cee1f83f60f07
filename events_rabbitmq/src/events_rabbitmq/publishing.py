"""Publishing: batches of messages, and the confirms of the server.

One channel in confirm mode carries all batches of a client.  The server numbers the messages of a channel from 1, and
confirms them by number, one by one or all up to a number.  This module counts along.  A batch is done when all numbers
up to its last one are confirmed, so it needs one future and not one for each message.

A message that no queue gets comes back before it is confirmed (``mandatory``), and is known by its id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from secrets import token_hex
from typing import Any

from pika import spec  # type: ignore[import-untyped]

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError
from events_rabbitmq.connection import Channel, Connection
from events_rabbitmq.errors import broker_error
from events_rabbitmq.topology import Place
from events_rabbitmq.wire import method_frame, publishing

__all__ = ["Publisher"]

_log = logging.getLogger("events_rabbitmq")


class _Batch:
    """Messages that were written together."""

    def __init__(self, first: int, ids: Sequence[str]) -> None:
        self.first = first
        self.last = first + len(ids) - 1
        self.ids = ids
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refused: set[int] = set()
        """Numbers of messages that the server refuses."""
        self.returned: set[str] = set()
        """Ids of messages that no queue gets."""


class _Confirms:
    """One channel in confirm mode to one place."""

    def __init__(self, channel: Channel, place: Place) -> None:
        self._channel = channel
        self._place = place
        self._publish = method_frame(
            channel.number, spec.Basic.Publish(exchange=place.exchange, routing_key=place.routing_key, mandatory=True)
        )
        self._next = 1
        """The number of the next message."""
        self._low = 1
        """The lowest number that is not confirmed."""
        self._early: set[int] = set()
        """Numbers above ``_low`` that are confirmed."""
        self._batches: deque[_Batch] = deque()
        channel.native.add_on_return_callback(self._on_return)
        channel.listeners.append(self._on_close)

    @classmethod
    async def open(cls, connection: Connection, place: Place) -> _Confirms:
        """Open a channel in confirm mode.

        :raises BrokerError: if that failed.
        """
        channel = await Channel.open(connection)
        confirms = cls(channel, place)
        await channel.call("ask for confirms", "confirm_delivery", confirms._on_confirm)
        return confirms

    @property
    def is_open(self) -> bool:
        return self._channel.reason is None

    @property
    def connection(self) -> Connection:
        return self._channel.connection

    async def send(self, ids: Sequence[str], messages: Sequence[EventMessage]) -> _Batch:
        """Publish *messages*, and return when the server has confirmed or refused each of them."""
        frame_max = self.connection.native.params.frame_max
        data = publishing(self._channel.number, self._publish, ids, messages, int(time.time()), frame_max)
        self._channel.emit(data)
        batch = _Batch(self._next, ids)
        self._next = batch.last + 1
        self._batches.append(batch)
        await batch.done
        return batch

    def _on_confirm(self, found: Any) -> None:
        method = found.method
        tag, multiple = method.delivery_tag, method.multiple
        if isinstance(method, spec.Basic.Nack):
            self._refuse(range(self._low, tag + 1) if multiple else (tag,))
        if multiple:
            self._low = max(self._low, tag + 1)
            self._early = {each for each in self._early if each > tag}
        else:
            self._early.add(tag)
        while self._low in self._early:
            self._early.remove(self._low)
            self._low += 1
        while self._batches and self._batches[0].last < self._low:
            done = self._batches.popleft().done
            if not done.done():  # otherwise its send was cancelled
                done.set_result(None)

    def _refuse(self, tags: Sequence[int]) -> None:
        for tag in tags:
            for batch in self._batches:
                if batch.first <= tag <= batch.last and tag not in self._early:
                    batch.refused.add(tag)

    def _on_return(self, _: Any, __: Any, properties: Any, ___: bytes) -> None:
        for batch in self._batches:
            batch.returned.add(properties.message_id)

    def _on_close(self, reason: Exception) -> None:
        batches, self._batches = self._batches, deque()
        for batch in batches:
            if not batch.done.done():
                batch.done.set_exception(broker_error(f"publish to {self._place}", reason))


class Publisher:
    """The way of messages to one place.  Calls may overlap.

    :param connect: returns the connection for messages.
    :param strict: fail a message that no queue gets.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], place: Place, *, strict: bool) -> None:
        self._connect = connect
        self._place = place
        self._strict = strict
        self._confirms: _Confirms | None = None
        self._opening = asyncio.Lock()
        # Unique, and cheaper than a UUID for each message.
        self._ids = map(f"{token_hex(8)}-{{}}".format, count(1))
        self._has_warned = False

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        """Publish *messages*; return the id of each, or the reason why it was refused.

        If the server refuses a message, later ones of its key may be stored: they were on their way (P3).

        :raises BrokerError: if it is unknown what was stored.
        """
        confirms = self._confirms
        if confirms is None or not confirms.is_open:
            confirms = await self._open()
        await confirms.connection.room()
        ids = [next(self._ids) for _ in messages]
        batch = await confirms.send(ids, messages)
        return self._results(batch) if batch.refused or batch.returned else ids

    async def _open(self) -> _Confirms:
        async with self._opening:
            confirms = self._confirms
            if confirms is None or not confirms.is_open:
                confirms = self._confirms = await _Confirms.open(await self._connect(), self._place)
            return confirms

    def _results(self, batch: _Batch) -> Sequence[str | BrokerError]:
        if batch.returned.isdisjoint(batch.ids) and not batch.refused:
            return batch.ids
        return [self._result(batch, number, name) for number, name in enumerate(batch.ids, batch.first)]

    def _result(self, batch: _Batch, number: int, name: str) -> str | BrokerError:
        if number in batch.refused:
            return BrokerError("RabbitMQ refuses the message: a queue of the topic is full", ErrorCode.EXHAUSTED)
        if name not in batch.returned:
            return name
        if self._strict:
            return BrokerError(f"no queue gets messages of {self._place}", ErrorCode.NOT_FOUND)
        self._warn()
        return name

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("%s: no subscription gets a message that was sent; it is lost", self._place)
