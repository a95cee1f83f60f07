"""Publishing: batches of messages, and the confirms of the server.

One channel in confirm mode carries all batches of a client.  The server numbers the messages of a channel from 1, and
confirms them by number, one by one or all up to a number.  This module counts along.  A batch is done when each of its
messages is confirmed, so it needs one future and not one for each message.

A message that no queue gets comes back before it is confirmed (``mandatory``), and is known by its id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import count, takewhile
from secrets import token_hex
from typing import Any

from pika import spec  # type: ignore[import-untyped]

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError
from events_rabbitmq.connection import Channel, Connection, resolve
from events_rabbitmq.errors import broker_error
from events_rabbitmq.topology import Place
from events_rabbitmq.wire import method_frame, publishing

__all__ = ["Publisher"]

_log = logging.getLogger("events_rabbitmq")

_TRIES_AGAIN = 5
"""Tries with which a message that the server refuses is published again."""
_OTHER_BYTES = 2048
"""Bytes to leave for the ordering key and the properties in the header of a letter."""


def _shortened(message: EventMessage, room: int) -> EventMessage:
    """Return *message* with at most *room* bytes of attributes: the longest values are cut or left out."""
    attributes: dict[str, str] = {}
    for name, value in sorted(message.attributes.items(), key=lambda item: len(item[1])):
        room -= len(name.encode()) + 6
        data = value.encode()[: max(room, 0)]
        room -= len(data)
        if room >= 0:
            attributes[name] = data.decode(errors="ignore")
    return EventMessage(message.data, attributes, ordering_key=message.ordering_key)


class _Batch:
    """Messages that were written together."""

    def __init__(self, first: int, ids: Sequence[str]) -> None:
        self.first = first
        self.ids = ids
        self.left = len(ids)
        """The number of messages that are not confirmed."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refused: set[str] = set()
        """Ids of messages that the server refuses."""
        self.returned: set[str] = set()
        """Ids of messages that no queue gets."""
        self.unfit: set[str] = set()
        """Ids of messages that were not written, because their header needs more than one frame."""


class _Confirms:
    """One channel in confirm mode to one place."""

    def __init__(self, channel: Channel, place: Place) -> None:
        self.channel = channel
        self._place = place
        self._publish = method_frame(
            channel.number, spec.Basic.Publish(exchange=place.exchange, routing_key=place.routing_key, mandatory=True)
        )
        self._numbers = count(1)
        self._waiting: dict[int, _Batch] = {}
        """The batch of each message that is not confirmed, by number.  Numbers rise, so they are in order."""
        self._returned: set[str] = set()
        """Ids of messages that came back and are not confirmed yet."""
        channel.native.add_on_return_callback(lambda *found: self._returned.add(found[2].message_id))
        channel.listeners.append(self._on_close)

    @classmethod
    async def open(cls, connection: Connection, place: Place) -> _Confirms:
        """Open a channel in confirm mode.

        :raises BrokerError: if that failed.
        """
        channel = await Channel.open(connection)
        confirms = cls(channel, place)
        try:
            await channel.call("ask for confirms", "confirm_delivery", confirms._on_confirm)
        except BaseException:  # also when cancelled
            channel.close()
            raise
        return confirms

    async def send(self, ids: Sequence[str], messages: Sequence[EventMessage]) -> _Batch:
        """Publish *messages*, and return when the server has confirmed or refused each of them."""
        frame_max = self.channel.connection.frame_max
        data, written = publishing(self.channel.number, self._publish, ids, messages, int(time.time()), frame_max)
        numbers = [next(self._numbers) for _ in written]
        batch = _Batch(numbers[0] if numbers else 0, written)
        if len(written) < len(ids):
            batch.unfit.update(set(ids).difference(written))
        if written:
            self.channel.emit(data)
            self._waiting.update(dict.fromkeys(numbers, batch))
            await batch.done
        return batch

    def _on_confirm(self, found: Any) -> None:
        method = found.method
        last = method.delivery_tag
        numbers = list(takewhile(lambda number: number <= last, self._waiting)) if method.multiple else [last]
        for number in numbers:
            batch = self._waiting.pop(number)
            batch.left -= 1
            name = batch.ids[number - batch.first]
            if isinstance(method, spec.Basic.Nack):
                batch.refused.add(name)
            if name in self._returned:
                self._returned.remove(name)
                batch.returned.add(name)
            if not batch.left:
                resolve(batch.done)

    def _on_close(self, reason: Exception) -> None:
        for batch in set(self._waiting.values()):
            if not batch.done.done():  # otherwise its send was cancelled
                batch.done.set_exception(broker_error(f"publish to {self._place}", reason))


def _last_refused(messages: Sequence[EventMessage], results: Sequence[str | BrokerError]) -> list[int]:
    """Return the places of the refused messages that no later message of their key has passed (P4)."""
    places: list[int] = []
    if all(result.__class__ is str for result in results):
        return places
    passed: set[str] = set()
    for place in reversed(range(len(messages))):
        key, result = messages[place].ordering_key, results[place]
        if isinstance(result, BrokerError) and result.code is ErrorCode.EXHAUSTED:
            if key not in passed:
                places.append(place)
        elif key is not None:
            passed.add(key)
    return places[::-1]


class Publisher:
    """A sender of messages to one exchange or queue.  Calls may overlap.

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
        results = [*await self._publish(messages)]
        # The server also refuses a message if one of its queues is deleted at that moment.  So try again at once: the
        # other queues may get it twice.  A queue that is full refuses it each time.
        for _ in range(_TRIES_AGAIN):
            refused = _last_refused(messages, results)
            if not refused:
                break
            again = await self._publish([messages[place] for place in refused])
            for place, result in zip(refused, again, strict=True):
                results[place] = result
        return results

    async def _publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        confirms = await self._open()
        await confirms.channel.connection.room()
        ids = [next(self._ids) for _ in messages]
        batch = await confirms.send(ids, messages)
        if batch.returned and not self._strict:
            self._warn()
        if batch.refused or batch.unfit or (batch.returned and self._strict):
            return [self._result(batch, name) for name in ids]
        return ids

    async def publish_letter(self, letter: EventMessage) -> str | BrokerError:
        """Publish *letter* as :meth:`publish` does.  If its header is too large, attributes are cut."""
        (result,) = await self.publish([letter])
        if isinstance(result, BrokerError) and result.code is ErrorCode.INVALID:
            frame_max = (await self._connect()).frame_max
            (result,) = await self.publish([_shortened(letter, frame_max - _OTHER_BYTES)])
        return result

    async def _open(self) -> _Confirms:
        confirms = self._confirms
        if confirms is None or confirms.channel.reason is not None:
            async with self._opening:
                confirms = self._confirms
                if confirms is None or confirms.channel.reason is not None:
                    confirms = self._confirms = await _Confirms.open(await self._connect(), self._place)
        return confirms

    def _result(self, batch: _Batch, name: str) -> str | BrokerError:
        if name in batch.unfit:
            text = (
                "the attributes and the ordering key are too large: they travel in one frame (frame_max of the server)"
            )
            return BrokerError(text, ErrorCode.INVALID)
        if name in batch.refused:
            return BrokerError("RabbitMQ refuses the message: a queue of the topic is full", ErrorCode.EXHAUSTED)
        if name in batch.returned and self._strict:
            return BrokerError(f"no queue gets messages of {self._place}", ErrorCode.NOT_FOUND)
        return name

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("%s: no subscription gets a message that was sent; it is lost", self._place)
