"""One producer of librdkafka and the thread that polls it.

Who does what, and where:

* Home hands the messages of a batch to the producer, which does not block, and waits for the batch.
* The thread polls the producer while messages are out.  There librdkafka calls the reports of a batch, one for each
  message.  When a turn of the thread has finished batches, it wakes home once.
* A thread of the application may hand over a batch too.  The thread that polls then tells the engine that it is stored,
  and home is not woken.  A batch of which a message fails, or that takes longer than a turn, is left to home.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, TypeAlias

from confluent_kafka.cimpl import KafkaError, KafkaException, Message, Producer

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError
from events_kafka.codec import packed, record_size
from events_kafka.errors import broker_error

__all__ = ["Batch", "Sender", "failures", "not_attempted"]

_TURN = 0.1
"""Seconds of one turn of the thread.  ``Producer.poll`` returns after the first event only if this is below 0.2."""
_IDLE_TURN = 5.0
"""Seconds between two turns while nothing is out.  librdkafka keeps its reports until they are fetched."""
_PURGES = 50
"""Turns in which the thread of an ended producer waits for the last reports."""


Report: TypeAlias = Callable[[KafkaError | BrokerError | None, Message | None], None]
"""The function that is called with the outcome of one message: an error, or its record."""
Pair: TypeAlias = tuple[EventMessage, Report]
Take: TypeAlias = "Callable[[list[str] | Batch], None]"
"""The function that is called with the ids of a batch, or with the batch if home must look at it."""


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
        self._take: Take | None = None
        self._prefix = f"{topic}/"
        self._on_done = on_done
        self._reports: list[Report] = []
        self._reported = count(1)

    def begin(self, size: int, done: asyncio.Future[None], take: Take | None) -> Sequence[Report]:
        """Wait for *size* messages; return at least one report for each.

        :param done: the future that home resolves when all are reported.
        :param take: is called in the thread, if a caller has handed the messages over.
        """
        self.results = [None] * size
        self.done = done
        self._take = take
        # The thread that hands over reports what cannot be sent, and the thread that polls all others.  Counting is one
        # step of the interpreter.
        self._reported = count(1)
        self._reports += [partial(self._report, place) for place in range(len(self._reports), size)]
        return self._reports

    def _report(self, place: int, error: KafkaError | BrokerError | None, record: Message) -> None:
        """Take the report of one message.  This runs for each, so it does little."""
        self.results[place] = error or f"{self._prefix}{record.partition()}/{record.offset()}"
        if next(self._reported) == len(self.results):
            self._on_done(self)

    def settle(self) -> bool:
        """Tell the engine that the messages are stored; return False if home must be told.  In the thread."""
        is_told = self._take is not None and not failures(self.results)
        self._give(self.results if is_told else self)
        return is_told

    def leave(self) -> None:
        """Leave messages that a caller has handed over to home; in the thread."""
        self._give(self)

    def _give(self, found: list[str] | Batch) -> None:
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
        self._spare: deque[Batch] = deque()
        """Batches that may be used again."""
        self._finished: deque[Batch] = deque()
        """Batches that are done.  Any thread may add one, and only the thread that polls takes them."""
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
        batch, reports = self._begin(len(messages))
        with self._work:
            self._out.add(batch)
        pairs: Iterator[Pair] = zip(messages, reports, strict=False)
        failed: set[str] = set()
        # The option ``librdkafka`` may bound the queue below the bounds of the client.  Nobody is told of room.
        while (left := self._produce(pairs, limit, failed)) is not None:
            pairs = iter([left, *pairs])  # a chain would grow with each try
            self._wake()
            await asyncio.sleep(_TURN / 10)
            if self._has_ended:
                text = f"send to topic {self._topic!r}: its producer was replaced before the message left"
                replaced = BrokerError(text, ErrorCode.UNAVAILABLE, retryable=True)
                _refuse(pairs, failed, replaced)
                # These were the last, and the thread may have ended.  Not "in", for which a KafkaError raises.
                if all(result is not None for result in batch.results):
                    return batch.results
        # Not before: the thread and this one would compete for the interpreter.
        self._wake()
        await batch.done
        results = batch.results
        self._spare.append(batch)
        return results

    def hand_over(self, messages: Sequence[EventMessage], limit: int, take: Take) -> bool:
        """Hand *messages* to the producer, in any thread; return False if home must send them."""
        batch, reports = self._begin(len(messages), take)
        pairs: Iterator[Pair] = zip(messages, reports, strict=False)
        # Under the lock, because nothing may be handed over once this has ended.
        with self._work:
            if self._has_ended or self.is_down or self.failure is not None:
                return False
            failed: set[str] = set()
            left = self._produce(pairs, limit, failed)
            if left is not None:
                if left[1] is reports[0]:  # nothing is out
                    return False
                text = "not attempted, because the queue of the producer is full"
                no_room = BrokerError(text, ErrorCode.NOT_ATTEMPTED, retryable=True)
                _refuse([left, *pairs], failed, no_room)
            self._out.add(batch)
            self._work.notify()
        return True

    def _begin(self, size: int, take: Take | None = None) -> tuple[Batch, Sequence[Report]]:
        """Return a batch for *size* messages, and their reports; in any thread."""
        try:
            batch = self._spare.pop()
        except IndexError:
            batch = Batch(self._topic, self._finished.append)
        return batch, batch.begin(size, self._loop.create_future(), take)

    def _produce(self, pairs: Iterator[Pair], limit: int, failed: set[str]) -> Pair | None:
        """Hand messages to the producer; return the first one for which its queue has no room.

        A message that cannot be sent is reported, and so are its successors.

        :param failed: the keys of messages that cannot be sent; it grows.
        """
        produce, topic = self._producer.produce, self._topic
        for message, report in pairs:
            key = message.ordering_key
            try:
                if failed and key in failed:
                    raise not_attempted(key)
                value, headers, size = packed(message)
                if size > limit:
                    self._measure(message, limit)
                # By position, because names would cost as much as a header.  -1 is any partition, and 0 is now.
                produce(topic, value, key, -1, report, None, 0, headers)
            except BufferError:
                return message, report
            except (BrokerError, KafkaException) as error:
                report(error if isinstance(error, BrokerError) else error.args[0], None)
                if key is not None:
                    failed.add(key)
        return None

    def _measure(self, message: EventMessage, limit: int) -> None:
        size = record_size(message)
        if size > limit:
            raise BrokerError(
                f"its record has {size} bytes, and topic {self._topic!r} takes {limit}; send less, or raise the "
                "topic's max.message.bytes",
                ErrorCode.INVALID,
            )

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
        left: list[Batch] = []
        for batch in finished:
            (self._spare if batch.settle() else left).append(batch)
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
        for done in [batch.done for batch in batches]:
            if not done.done():
                done.set_exception(broker_error(f"send to topic {self._topic!r}", failure))
                done.exception()  # otherwise asyncio would log it, if the send was cancelled before

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(batches: Sequence[Batch]) -> None:
    for batch in batches:
        _resolve_one(batch.done)


def _resolve_one(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _refuse(pairs: Iterable[Pair], failed: Set[str | None], reason: BrokerError) -> None:
    """Report messages that do not leave: those whose key has *failed*, and the others with *reason*."""
    for message, report in pairs:
        key = message.ordering_key
        report(not_attempted(key) if key in failed else reason, None)


def failures(results: Sequence[Any]) -> Sequence[Any]:
    """Return those of *results* that are no ids."""
    return [result for result in results if result.__class__ is not str]


def not_attempted(key: str | None) -> BrokerError:
    """Return the result of a message of *key* behind one that failed."""
    text = f"not attempted, because an earlier message of ordering key {key!r} failed"
    return BrokerError(text, ErrorCode.NOT_ATTEMPTED, retryable=True)
