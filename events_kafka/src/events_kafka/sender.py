"""One producer of librdkafka and the thread that polls it.

Who does what, and where:

* Home hands the messages of a batch to the producer, which does not block, and waits for the batch.
* The thread polls the producer while messages are out.  There librdkafka calls the reports of a batch, one for each
  message.  When a turn of the thread has finished batches, it wakes home once.
* A thread of the application may hand over a message too.  The thread that polls then tells the engine that it is
  stored, and home is not woken.  A message that fails, or takes longer than a turn, is left to home.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

from confluent_kafka.cimpl import KafkaError, KafkaException, Message, Producer

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError
from events_kafka.codec import packed, record_size
from events_kafka.errors import broker_error

__all__ = ["Batch", "Sender", "not_attempted"]

_TURN = 0.1
"""Seconds of one turn of the thread.  ``Producer.poll`` returns after the first event only if this is below 0.2."""
_IDLE_TURN = 5.0
"""Seconds between two turns while nothing is out.  librdkafka keeps its reports until they are fetched."""
_PURGES = 50
"""Turns in which the thread of an ended producer waits for the last reports."""


Report = Callable[[KafkaError | BrokerError | None, Message | None], None]
"""The function that is called with the outcome of one message: an error, or its record."""


class Batch:
    """Messages that were handed to the producer together.

    It is used again for other messages when all of them are reported.  Its reports would be most of what a message
    leaves to the garbage collector.

    :param on_done: is called in the thread that reports the last message.
    """

    def __init__(self, topic: str, on_done: Callable[[Batch], None]) -> None:
        self.results: list[Any] = []
        """The id of each message, or its ``KafkaError`` or ``BrokerError``."""
        self.done: asyncio.Future[None]
        self._take: Callable[[str | Batch], None] | None = None
        """The function that takes the id of the message, or this batch, if a caller has handed it over."""
        self._prefix = f"{topic}/"
        self._on_done = on_done
        self._reports: list[Report] = []
        self._reported = count(1)

    def begin(self, size: int, done: asyncio.Future[None]) -> Sequence[Report]:
        """Wait for *size* messages; return at least one report for each.

        :param done: the future that home resolves when all are reported.
        """
        self.results = [None] * size
        self.done = done
        # Home reports what cannot be sent, and the thread all others.  Counting is one step of the interpreter.
        self._reported = count(1)
        self._reports += [partial(self._report, place) for place in range(len(self._reports), size)]
        return self._reports

    def _report(self, place: int, error: KafkaError | BrokerError | None, record: Message) -> None:
        """Take the report of one message.  This runs for each, so it does little."""
        self.results[place] = error or f"{self._prefix}{record.partition()}/{record.offset()}"
        if next(self._reported) == len(self.results):
            self._on_done(self)

    def begin_alone(self, done: asyncio.Future[None], take: Callable[[str | Batch], None]) -> Report:
        """Wait for one message, which a caller hands over; return its report."""
        self._take = take
        return self.begin(1, done)[0]

    def settle(self) -> bool:
        """Tell the engine that the message is stored; return False if home must be told.  In the thread."""
        is_told = self._take is not None and isinstance(self.results[0], str)
        self._give(self.results[0] if is_told else self)
        return is_told

    def leave(self) -> None:
        """Leave a message that a caller has handed over to home; in the thread."""
        self._give(self)

    def _give(self, found: str | Batch) -> None:
        take, self._take = self._take, None
        if take is not None:
            take(found)


class Sender:
    """A producer and its thread, until a batch is given up."""

    _producer: Producer

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._work = threading.Condition()
        """Guards the next two fields."""
        self._out: set[Batch] = set()
        self._has_ended = False
        self._spare: list[Batch] = []
        """Batches that may be used again; only home touches them."""
        self._finished: deque[Batch] = deque()
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

    async def send(self, messages: Sequence[EventMessage], limit: int) -> list[Any]:
        """Send *messages*; return the id of each, or its ``KafkaError`` or ``BrokerError``.

        A message whose record has more than *limit* bytes fails alone, and its successors are not attempted.
        """
        batch = self._spare.pop() if self._spare else Batch(self._topic, self._finished.append)
        reports = batch.begin(len(messages), self._loop.create_future())
        with self._work:
            self._out.add(batch)
        failed: set[str] = set()
        for message, report in zip(messages, reports, strict=False):
            key = message.ordering_key
            try:
                if failed and key in failed:
                    raise not_attempted(key)
                if not self._produce(message, key, limit, report):
                    await self._produce_later(message, key, limit, report)
            except (BrokerError, KafkaException) as error:
                report(error if isinstance(error, BrokerError) else error.args[0], None)
                if key is not None:
                    failed.add(key)
        # Not before: the thread and this one would compete for the interpreter.
        self._wake()
        await batch.done
        self._spare.append(batch)
        return batch.results

    def hand_over(self, message: EventMessage, limit: int, take: Callable[[str | Batch], None]) -> bool:
        """Hand *message* to the producer, in any thread; return False if home must send it.

        :param take: is called in the thread, with the id of the message or with its batch.
        """
        batch = Batch(self._topic, self._finished.append)
        report = batch.begin_alone(self._loop.create_future(), take)
        # Under the lock, because nothing may be handed over once this has ended.
        with self._work:
            if self._has_ended or self.is_down or self.failure is not None:
                return False
            try:
                is_out = self._produce(message, message.ordering_key, limit, report)
            except (BrokerError, KafkaException):
                return False  # home gets the same error
            if is_out:
                self._out.add(batch)
                self._work.notify()
            return is_out

    def _produce(self, message: EventMessage, key: str | None, limit: int, report: Report) -> bool:
        """Hand *message* to the producer; return False if its queue is full."""
        if self._has_ended:  # while another message waited for room
            raise BrokerError(
                f"send to topic {self._topic!r}: its producer was replaced before the message left",
                ErrorCode.UNAVAILABLE,
                retryable=True,
            )
        value, headers, size = packed(message)
        if size > limit:
            self._measure(message, limit)
        try:
            # By position, because names would cost as much as a header.  -1 is any partition, and 0 is now.
            self._producer.produce(self._topic, value, key, -1, report, None, 0, headers)
        except BufferError:
            return False
        return True

    def _measure(self, message: EventMessage, limit: int) -> None:
        size = record_size(message)
        if size > limit:
            raise BrokerError(
                f"its record has {size} bytes, and topic {self._topic!r} takes {limit}; send less, or raise the "
                "topic's max.message.bytes",
                ErrorCode.INVALID,
            )

    async def _produce_later(self, message: EventMessage, key: str | None, limit: int, report: Report) -> None:
        """Hand *message* to the producer when there is room.

        The option ``librdkafka`` may bound the queue below the bounds of the client.  Nobody is told of room.
        """
        self._wake()
        is_full = True
        while is_full:
            await asyncio.sleep(_TURN / 10)
            is_full = not self._produce(message, key, limit, report)

    def _wake(self) -> None:
        """Let the thread poll."""
        with self._work:
            self._work.notify()

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
            try:
                is_idle = self._producer.poll(turn) == 0
            except KafkaException as error:  # of a fatal error, confluent-kafka tells in this way (2.16, measured)
                self._stop(error.args[0])
                is_idle = True
            if self._finished:
                self._finish()
            elif is_idle:
                self._leave()
        for _ in range(_PURGES):
            with suppress(KafkaException):  # a fatal error
                self._producer.purge()
                left = self._producer.flush(_TURN)
                # Sends that overlap the one that was given up wait for these reports.
                self._finish()
                if not left:
                    # Otherwise its destructor ends it.  This call would wait for the messages.
                    self._producer.close()
                    break
        self._tell(self._fail, KafkaError(KafkaError._PURGE_INFLIGHT))
        self._tell(_resolve_one, self.ended)

    def _finish(self) -> None:
        """Tell home of the batches that are done."""
        finished = [self._finished.popleft() for _ in range(len(self._finished))]
        with self._work:
            self._out.difference_update(finished)
        left = [batch for batch in finished if not batch.settle()]
        if left:
            self._tell(_resolve, left)

    def _leave(self) -> None:
        """Leave what takes longer than a turn to home."""
        with self._work:
            batches = [*self._out]
        for batch in batches:
            batch.leave()

    def on_error(self, error: KafkaError) -> None:
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:
            self.is_down = True
        elif code in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            # librdkafka goes on trying to connect, but the brokers refuse this client.
            self._stop(error)

    def _stop(self, error: KafkaError) -> None:
        self.failure = error
        self._tell(self._fail, error)

    def _fail(self, failure: KafkaError) -> None:
        """Fail what is out; at home."""
        with self._work:
            batches = [*self._out]
        for batch in batches:
            if not batch.done.done():
                batch.done.set_exception(broker_error(f"send to topic {self._topic!r}", failure))
                batch.done.exception()  # otherwise asyncio would log it, if the send was cancelled before

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(batches: Sequence[Batch]) -> None:
    for batch in batches:
        _resolve_one(batch.done)


def _resolve_one(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def not_attempted(key: str | None) -> BrokerError:
    """Return the result of a message of *key* behind one that failed."""
    text = f"not attempted, because an earlier message of ordering key {key!r} failed"
    return BrokerError(text, ErrorCode.NOT_ATTEMPTED, retryable=True)
