"""Publishing: one idempotent producer of librdkafka, and its delivery reports.

Who does what, and where:

* Home hands the messages of a batch to the producer, which does not block, and waits for the batch.
* One thread polls the producer while messages are out.  There librdkafka calls the reports of a batch, one for each
  message.  When a turn of the thread has finished batches, it wakes home once.

librdkafka alone retries, because a retry by anyone else would be another message to Kafka.  It also ends a message that
it cannot deliver, a little before the engine would give up the whole batch.  So one partition without a leader does not
hide the outcome of the messages of the others.

If a batch is given up all the same, or the client closes, the whole producer is thrown away.  Then nothing of it is
sent later.  The next batch gets a new producer.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

# An instrumentation of confluent-kafka replaces the class in the package, but not in this module.
from confluent_kafka.cimpl import KafkaError, KafkaException, Message, Producer

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError, off_loop
from events_kafka.codec import headers_of, record_size, shortened, value_of
from events_kafka.errors import broker_error, not_made
from events_kafka.options import KafkaOptions
from events_kafka.settings import given, settings

__all__ = ["Publisher"]

_TURN = 0.1
"""Seconds of one turn of the thread.  ``Producer.poll`` returns after the first event only if this is below 0.2."""
_IDLE_TURN = 5.0
"""Seconds between two turns while nothing is out.  librdkafka keeps its reports until they are fetched."""
_SHARE = 0.9
"""The part of ``send_timeout`` that librdkafka has.  The rest is for the time before a message is handed to it."""
_PURGES = 50
"""Turns in which the thread of an ended producer waits for the last reports."""


Report = Callable[[KafkaError | None, Message], None]
"""The function that librdkafka calls with the outcome of one message."""


class _Batch:
    """Messages that were handed to the producer together.

    :param on_done: is called in the thread that reports the last message.
    """

    def __init__(self, topic: str, size: int, on_done: Callable[[_Batch], None]) -> None:
        self.results: list[Any] = [None] * size
        """The id of each message, or its ``KafkaError`` or ``BrokerError``."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._prefix = f"{topic}/"
        self._size = size
        self._on_done = on_done
        # Home reports what cannot be sent, and the thread all others.  Counting is one step of the interpreter.
        self._reported = count(1)

    def report(self, place: int, error: KafkaError | None, record: Message) -> None:
        """Take the report of one message.  This runs for each, so it does little."""
        self.results[place] = error or f"{self._prefix}{record.partition()}/{record.offset()}"
        if next(self._reported) == self._size:
            self._on_done(self)

    def refuse(self, place: int, error: KafkaError | BrokerError) -> None:
        """Take the reason why a message was not handed over."""
        self.results[place] = error
        if next(self._reported) == self._size:
            self._on_done(self)


class _Sender:
    """A producer and its thread, until a batch is given up."""

    _producer: Producer

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._work = threading.Condition()
        """Guards the next two fields."""
        self._out: set[_Batch] = set()
        self._has_ended = False
        self._finished: deque[_Batch] = deque()
        """Batches that are done.  Home may add one, and only the thread takes them."""
        self.is_down = False
        """True since librdkafka has lost all brokers.  The thread sets it; home resets it when the brokers answer."""
        self.failure: KafkaError | None = None
        """The error after which the producer sends nothing more; only the thread sets it."""
        self.ended: asyncio.Future[None] = self._loop.create_future()

    # At home

    def start(self, producer: Producer) -> None:
        """Begin to send with *producer*, whose ``error_cb`` is :meth:`on_error`."""
        self._producer = producer
        threading.Thread(target=self._run, name="events kafka producer", daemon=True).start()

    async def send(self, messages: Sequence[EventMessage], objection: Callable[[EventMessage], str]) -> _Batch:
        """Hand *messages* to the producer, except those that there is an *objection* to, and their successors."""
        batch = _Batch(self._topic, len(messages), self._finished.append)
        failed: set[str | None] = set()
        with self._work:
            self._out.add(batch)
            self._work.notify()
        for place, message in enumerate(messages):
            key = message.ordering_key
            if key in failed:
                text = f"not attempted, because an earlier message of ordering key {key!r} failed"
                batch.refuse(place, BrokerError(text, ErrorCode.NOT_ATTEMPTED, retryable=True))
                continue
            try:
                reason = objection(message)
                if reason:
                    raise BrokerError(reason, ErrorCode.INVALID)
                report = partial(batch.report, place)
                if not self._produce(message, report):
                    await self._produce_later(message, report)
            except (BrokerError, KafkaException) as error:
                batch.refuse(place, error if isinstance(error, BrokerError) else error.args[0])
                if key is not None:
                    failed.add(key)
        return batch

    def _produce(self, message: EventMessage, report: Report) -> bool:
        """Hand *message* to the producer; return False if its queue is full."""
        attributes = message.attributes
        try:
            if attributes:
                self._producer.produce(
                    self._topic, value_of(message), message.ordering_key, -1, report, headers=headers_of(message)
                )
            else:
                self._producer.produce(self._topic, message.data, message.ordering_key, -1, report)
        except BufferError:
            return False
        return True

    async def _produce_later(self, message: EventMessage, report: Report) -> None:
        """Hand *message* to the producer when there is room.

        The option ``librdkafka`` may bound the queue below the bounds of the client.  Nobody is told of room.
        """
        is_full = True
        while is_full:
            await asyncio.sleep(_TURN / 10)
            is_full = not self._produce(message, report)

    def end(self) -> None:
        """Throw away what is out.  The producer ends soon after."""
        with self._work:
            self._has_ended = True
            is_busy = bool(self._out)
            self._work.notify()
        if is_busy:
            # At once, so that nothing leaves after its time.  The reports of this wake the thread.
            self._producer.purge(blocking=False)

    # In the thread

    def _run(self) -> None:
        # After a turn with reports there is one more, because the next batch often comes soon.  Then home need not wake
        # the thread, and the two do not compete for the interpreter while home is busy.
        is_idle = True
        while True:
            with self._work:
                if is_idle and not self._out and not self._has_ended:
                    self._work.wait(_IDLE_TURN)
                if self._has_ended:
                    break
                turn = _TURN if self._out or not is_idle else 0.0
            is_idle = self._producer.poll(turn) == 0
            if self._finished:
                self._finish()
        for _ in range(_PURGES):
            self._producer.purge()
            if not self._producer.flush(_TURN):
                # Otherwise its destructor ends it.  This call would wait for the messages.
                self._producer.close()
                break
        self._tell(_resolve_one, self.ended)

    def _finish(self) -> None:
        """Tell home of the batches that are done."""
        finished = [self._finished.popleft() for _ in range(len(self._finished))]
        with self._work:
            self._out.difference_update(finished)
        self._tell(_resolve, finished)

    def on_error(self, error: KafkaError) -> None:
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:
            self.is_down = True
        elif error.fatal() or code in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            # librdkafka goes on trying to connect, but the brokers refuse this client.
            self.failure = error
            self._tell(self._fail)

    def _fail(self) -> None:
        """Fail what is out; at home."""
        with self._work:
            batches = [*self._out]
        failure = self.failure
        assert failure is not None
        for batch in batches:
            if not batch.done.done():
                batch.done.set_exception(broker_error(f"send to topic {self._topic!r}", failure))

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(batches: Sequence[_Batch]) -> None:
    for batch in batches:
        _resolve_one(batch.done)


def _resolve_one(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


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
        self._current: _Sender | None = None
        self._ending: set[asyncio.Future[None]] = set()
        self._opening = asyncio.Lock()

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        """Publish *messages* in order; return the id of each, or the reason why it was not stored.

        :raises BrokerError: if none was stored, or that is unknown.
        """
        results = await self._publish(messages)
        suspects = _suspects(messages, results)
        if len(suspects) > 1:
            # One caller's bad message must not fail another's.  So halve until only the offenders fail (P3).
            middle = len(suspects) // 2
            for places in (suspects[:middle], suspects[middle:]):
                again = await self.publish([messages[place] for place in places])
                for place, result in zip(places, again, strict=True):
                    results[place] = result
        return [self._result(found) for found in results]

    async def publish_letter(self, letter: EventMessage) -> str | BrokerError:
        """Publish *letter* as :meth:`publish` does.  If its record is too large, attributes are cut."""
        (result,) = await self.publish([shortened(letter, self.max_message_bytes)])
        return result

    async def _publish(self, messages: Sequence[EventMessage]) -> list[Any]:
        sender = await self._open()
        if sender.is_down:
            # Ask before messages are handed over: until then the engine may give them up, and knows of the outage.
            await self._probe()
            sender.is_down = False
        try:
            batch = await sender.send(messages, self._objection)
            await batch.done
        except BaseException:  # cancelled, or the brokers refuse this client
            self._abandon(sender)
            raise
        if sender.failure is not None or any(map(_is_missing, batch.results)):
            # A producer that misses a topic does so until its next look at the cluster, some minutes later.
            self._abandon(sender)
        return batch.results

    async def _open(self) -> _Sender:
        async with self._opening:
            if self._current is None:
                sender = _Sender(self._topic)
                try:
                    producer = await off_loop(lambda: Producer(self._config(sender.on_error)))
                except (KafkaException, TypeError, ValueError) as error:
                    raise not_made(error, given(self._options).values()) from error
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

    def _objection(self, message: EventMessage) -> str:
        limit = self.max_message_bytes
        size = record_size(message, limit)
        if size <= limit:
            return ""
        return (
            f"its record has {size} bytes, and topic {self._topic!r} takes {limit}; send less, or raise the topic's "
            "max.message.bytes"
        )

    def _result(self, found: str | BrokerError | KafkaError) -> str | BrokerError:
        if not isinstance(found, KafkaError):
            return found
        asked = f"send to topic {self._topic!r}"
        if found.code() == KafkaError._MSG_TIMED_OUT:
            asked += f" within {_SHARE:.0%} of send_timeout={self._options.send_timeout:g} s"
        return broker_error(asked, found)

    def _abandon(self, sender: _Sender) -> None:
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


def _is_missing(result: Any) -> bool:
    return isinstance(result, KafkaError) and broker_error("", result).code is ErrorCode.NOT_FOUND


def _suspects(messages: Sequence[EventMessage], results: Sequence[Any]) -> Sequence[int]:
    """Return the places of messages of which the broker refuses some, for example because a schema does not fit.

    It refuses all records of a partition that came together, and does not say which one is bad.  A message is none of
    them if a later one of its key was stored, because it must not be sent again (P4).
    """
    if all(result.__class__ is str for result in results):
        return ()
    pairs = [*zip(messages, results, strict=True)]
    stored = {message.ordering_key for message, result in pairs if isinstance(result, str)} - {None}
    return [
        place
        for place, (message, result) in enumerate(pairs)
        if isinstance(result, KafkaError) and result.code() in _UNCLEAR and message.ordering_key not in stored
    ]


_UNCLEAR = (KafkaError.INVALID_RECORD, KafkaError._INVALID_DIFFERENT_RECORD)
