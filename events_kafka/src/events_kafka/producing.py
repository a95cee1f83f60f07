"""Publishing: the idempotent producer of one topic.

librdkafka alone retries, because a retry by anyone else would be another message to Kafka.  It also ends a message that
it cannot deliver, a little before the engine would give up the whole batch.  So one partition without a leader does not
hide the outcome of the messages of the others.

If a batch is given up all the same, or the client closes, the whole producer is thrown away.  Then nothing of it is
sent later.  The next batch gets a new producer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import Any, NamedTuple

from confluent_kafka.cimpl import KafkaError, Producer

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError, off_loop
from events_kafka.codec import shortened
from events_kafka.errors import broker_error, making
from events_kafka.options import KafkaOptions
from events_kafka.sender import Batch, Sender, failures, not_attempted
from events_kafka.settings import given, settings

__all__ = ["Publisher"]

_SHARE = 0.9
"""The part of ``send_timeout`` that librdkafka has.  The rest is for the time before a message is handed to it."""


class Begun(NamedTuple):
    """A batch that a caller has handed over, and its sender."""

    sender: Sender
    batch: Batch


class Publisher:
    """A sender of messages to one topic.  Calls may overlap.

    :param probe: asks the brokers for the topic.  It raises ``BrokerError`` if that fails.
    """

    def __init__(self, topic: str, options: KafkaOptions, probe: Callable[[], Awaitable[object]]) -> None:
        self.max_message_bytes = options.max_message_bytes
        """The largest record; the driver sets it to that of the topic."""
        self._topic = topic
        self._options = options
        self._probe = probe
        self._current: Sender | None = None
        self._ending: set[asyncio.Future[None]] = set()
        self._opening = asyncio.Lock()

    def hand_over(self, messages: Sequence[EventMessage], report: Callable[[list[str] | Begun], None]) -> bool:
        """Begin to publish *messages*, in any thread; return False if home must do that.

        :param report: is called with their ids, or with what :meth:`publish` needs.
        """
        sender = self._current
        if sender is None:
            return False

        def take(found: list[str] | Batch) -> None:
            report(found if isinstance(found, list) else Begun(sender, found))

        return sender.hand_over(messages, self.max_message_bytes, take)

    async def publish(
        self, messages: Sequence[EventMessage], begun: Begun | None = None
    ) -> Sequence[str | BrokerError]:
        """Publish *messages* in order; return the id of each, or the reason why it was not stored.

        :param begun: their batch, if they were handed over.
        :raises BrokerError: if none was stored, or that is unknown.
        """
        results = await self._publish(messages, begun)
        if not failures(results):
            return results
        suspects = _suspects(messages, results)
        if len(suspects) > 1:
            # One caller's bad message must not fail another's.  So halve until only the offenders fail (P3).
            middle = len(suspects) // 2
            failed = await self._again(messages, results, suspects[:middle])
            left = []
            for place in suspects[middle:]:
                key = messages[place].ordering_key
                if key in failed:
                    results[place] = not_attempted(key)
                else:
                    left.append(place)
            await self._again(messages, results, left)
        return [self._result(found) for found in results]

    async def _again(
        self, messages: Sequence[EventMessage], results: list[Any], places: Sequence[int]
    ) -> Set[str | None]:
        """Publish the messages at *places* again and replace their results; return the keys that have failed."""
        if not places:
            return set()
        again = await self.publish([messages[place] for place in places])
        for place, result in zip(places, again, strict=True):
            results[place] = result
        return {messages[place].ordering_key for place in places if not isinstance(results[place], str)} - {None}

    async def publish_letter(self, letter: EventMessage) -> str | BrokerError:
        """Publish *letter* as :meth:`publish` does.  If its record is too large, attributes are cut."""
        (result,) = await self.publish([shortened(letter, self.max_message_bytes)])
        return result

    async def _publish(self, messages: Sequence[EventMessage], begun: Begun | None) -> list[Any]:
        sender = begun.sender if begun else await self._ready()
        try:
            if begun:
                await begun.batch.done
                results = begun.batch.results
            else:
                results = await sender.send(messages, self.max_message_bytes)
        except BaseException:  # cancelled, or the brokers refuse this client
            self._abandon(sender)
            raise
        failed = failures(results)
        # A producer that misses a topic does so until its next look at the cluster, some minutes later.  One that has
        # lost all brokers may do so for good (2.16, librdkafka #5301).
        if sender.failure is not None or any(map(_is_missing, failed)) or all(map(_is_late, results)):
            self._abandon(sender)
        return results

    async def _ready(self) -> Sender:
        sender = await self._open()
        if sender.is_down:
            # Ask before messages are handed over: until then the engine may give them up, and knows of the outage.
            await self._probe()
            sender.is_down = False
            sender = await self._open()  # an overlapping call may have ended it meanwhile
        return sender

    async def _open(self) -> Sender:
        async with self._opening:
            if self._current is None:
                sender = Sender(self._topic)
                with making(given(self._options).values()):
                    producer = await off_loop(lambda: Producer(self._config(sender.on_error)))
                sender.start(producer)
                self._current = sender
            return self._current

    def _config(self, on_error: Callable[[KafkaError], None]) -> dict[str, Any]:
        options = self._options
        return {
            # A message leaves at once.  Those that come while a request is out make the next one.
            "linger.ms": 0,
            # While two requests are out, messages gather for the next one.  librdkafka would send five small ones.
            "max.in.flight.requests.per.connection": 2,
            # The engine bounds what is out.  A message that was given up counts until the producer has ended.
            "queue.buffering.max.messages": 2 * options.publish_max_messages + 100_000,
            "queue.buffering.max.kbytes": min(2 * options.publish_max_bytes // 1000 + 1_000_000, 2**31 - 1),
            **settings(options, "producer"),
            "error_cb": on_error,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # that of Kafka's client for Java
            "message.timeout.ms": max(1, round(_SHARE * options.send_timeout * 1000)),
            "message.max.bytes": min(max(self.max_message_bytes, 1000), 1_000_000_000),
            "compression.type": options.compression,
            "topic.metadata.propagation.max.ms": 5000,  # the driver has looked for the topic before
        }

    def _result(self, found: str | BrokerError | KafkaError) -> str | BrokerError:
        if not isinstance(found, KafkaError):
            return found
        asked = f"send to topic {self._topic!r}"
        if found.code() == KafkaError._MSG_TIMED_OUT:
            asked += f" within {_SHARE:.0%} of send_timeout={self._options.send_timeout:g} s"
        return _refusal(asked, found)

    def _abandon(self, sender: Sender) -> None:
        """End *sender*; the next batch gets another one."""
        if self._current is sender:
            self._current = None
            self._ending.add(sender.ended)
            sender.ended.add_done_callback(self._ending.discard)
            sender.end()

    async def close(self) -> None:
        """Throw away what was not sent, and wait until the threads have ended."""
        if self._current is not None:
            self._abandon(self._current)
        if self._ending:
            await asyncio.wait([*self._ending])


def _refusal(asked: str, error: KafkaError) -> BrokerError:
    # To a message that waits, it means that its topic was deleted: librdkafka then destroys the partition.
    if error.code() == KafkaError._DESTROY:
        text = f"{asked}: it was deleted before the message left; create it, or set the option create"
        return BrokerError(text, ErrorCode.NOT_FOUND)
    return broker_error(asked, error)


def _is_missing(result: Any) -> bool:
    return isinstance(result, KafkaError) and _refusal("", result).code is ErrorCode.NOT_FOUND


def _is_late(result: Any) -> bool:
    return isinstance(result, KafkaError) and result.code() == KafkaError._MSG_TIMED_OUT


def _suspects(messages: Sequence[EventMessage], results: Sequence[Any]) -> Sequence[int]:
    """Return the places of messages of which the broker refuses some, for example because a schema does not fit.

    It refuses all records of a partition that came together, and does not say which one is bad.  A message is none of
    them if a later one of its key was stored, because it must not be sent again (P4).
    """
    pairs = [*zip(messages, results, strict=True)]
    stored = {message.ordering_key for message, result in pairs if isinstance(result, str)} - {None}
    return [
        place
        for place, (message, result) in enumerate(pairs)
        if isinstance(result, KafkaError) and result.code() in _UNCLEAR and message.ordering_key not in stored
    ]


_UNCLEAR = (KafkaError.INVALID_RECORD, KafkaError._INVALID_DIFFERENT_RECORD)
