"""Sending: bounds, batches, retries, and an end for every send (P1 to P8)."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from events_core.engine.backoff import Backoff
from events_core.engine.batching import AnyCall, Batch, Batcher, Call, Entry, Line, SingleCall, not_attempted
from events_core.engine.driver import BrokerError, Driver
from events_core.engine.failure import UNFORESEEN, internal
from events_core.engine.home import Home, step
from events_core.engine.limits import measure
from events_core.engine.link import Link, Pauses
from events_core.engine.loop_order import LoopOrder
from events_core.engine.pace import Pace
from events_core.engine.recipients import Recipients
from events_core.engine.waiting import Waiter
from events_core.errors import ErrorCode, EventRuntimeError, PublishError
from events_core.message import EventMessage
from events_core.options import CommonOptions

__all__ = ["AT_ONCE", "Publisher"]

T = TypeVar("T")

AT_ONCE = 1000
"""Messages that are checked, queued or stored before other tasks of the loop have their turn (P6), which takes a few
milliseconds."""

_ENDED_AT_ONCE = 1000
"""Calls that are ended at their deadline before the home turns to other things."""


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


def _failed_keys(messages: Iterable[EventMessage], results: Iterable[str | BrokerError]) -> Iterator[str]:
    for message, result in zip(messages, results, strict=True):
        if isinstance(result, BrokerError) and message.ordering_key is not None:
            yield message.ordering_key


def _unconfirmed() -> BrokerError:
    return BrokerError("the client was closed before the broker confirmed", ErrorCode.CLOSED, retryable=True)


class Publisher:
    """The sending side of one client.

    A call is checked and queued in the thread that makes it, before anything is awaited: that fixes its place among
    the sends of its key (P4).  A large call, of more than :data:`AT_ONCE` messages, gives way to other tasks meanwhile,
    and what follows it in the same loop waits its turn (``loop_order.py``).

    Every call ends at its deadline, twice (P7).  The home ends it there, and sends nothing of it afterwards, since the
    caller's loop may be blocked or closed.  The caller keeps a timer of its own and never waits for the home, since a
    home may hang.  The first of them decides; the other one finds nothing left to end.
    """

    def __init__(self, driver: Driver[Any], home: Home, link: Link, recipients: Recipients) -> None:
        self._driver = driver
        self._options: CommonOptions = driver.options
        self._max_messages = self._options.publish_max_messages
        self._max_bytes = self._options.publish_max_bytes
        self._is_strict = self._options.publish_on_limit == "error"
        self._home = home
        self._link = link
        self._recipients = recipients
        self._limits = driver.capabilities.limits
        self._keeps_order = driver.capabilities.ordering != "none"
        self._lock = threading.Lock()
        paced = not (driver.inline or driver.blocking)
        self._batcher = Batcher(
            max_messages=driver.max_batch_messages,
            max_bytes=driver.max_batch_bytes,
            max_inflight=driver.publish_max_inflight,
            mixed_keys=driver.mixed_keys,
            max_keys=driver.publish_max_keys,
            pace=Pace(1 if driver.mixed_keys else driver.publish_max_inflight) if paced else None,
        )
        self._arriving = Line()
        self.order = LoopOrder()
        self._calls: dict[AnyCall[Waiter], None] = {}
        """Calls without an outcome, as they were accepted: nearly the order of their deadlines."""
        self._messages = 0
        self._bytes = 0
        self._drained: Waiter | None = None
        self._flush_by = math.inf
        self._opened = False
        self.unreached: BrokerError | None = None
        """Why there is no connection yet."""
        self._pumping = False
        self._watching = False
        self._has_looked = self._is_looking = False  # for the recipients of what was sent first
        self._storing: set[object] = set()
        """One for each send that :meth:`send_inline_gently` has begun; adding and discarding are atomic."""
        self._flushed = False
        self.closed = False

    def open(self) -> None:
        """The driver is open: what was submitted may leave."""
        self._opened = True
        self.pump()

    # In the caller's thread

    def submit(self, messages: Sequence[EventMessage]) -> AnyCall[Waiter]:
        """Check *messages* and take their place in the queue.

        :raises PublishError: ``INVALID`` for the first message that is refused; ``EXHAUSTED`` past the bounds.
        :raises EventRuntimeError: ``UNSUPPORTED`` for a key where there is no order; ``CLOSED``.
        """
        call = self._call(messages)
        with self._lock:
            self._accept(call)
            self._queue(call.entries)
        return call

    def must_wait(self, messages: Sequence[EventMessage]) -> bool:
        """Return whether *messages* would overtake a large send that is being queued in the running loop (P4)."""
        return self.order.is_here and any(getattr(message, "ordering_key", None) is not None for message in messages)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Return a context to enter once the sends that began earlier in the running loop are queued."""
        return self.order.turn()

    async def submit_gently(self, messages: Sequence[EventMessage]) -> AnyCall[Waiter]:
        """Do what :meth:`submit` does, in its :meth:`turn`, and give way to other tasks meanwhile."""
        sizes = await self._sizes(messages)
        call = Call(time.monotonic() + self._options.send_timeout, Waiter())
        for index, message in enumerate(messages):
            if index % AT_ONCE == 0:
                await asyncio.sleep(0)
            call.add(message, sizes[index])
        with self._lock:
            self._accept(call)
        try:
            for part in _parts(call.entries):
                with self._lock:
                    if not call.pending:
                        break  # its time is up, or the client was closed
                    self._queue(part)
                self.pump()
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.abandon(call, self._timed_out(None))
            raise
        return call

    def send_inline(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        """Check and send *messages* at once: an inline driver has nothing to gather, retry or wait for."""
        sizes = [self._measured(index, message) for index, message in enumerate(messages)]
        if self.closed or self._is_strict:
            self._refuse_unacceptable(sizes)
        return self._send_checked(messages)

    def _send_checked(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        try:
            results = step(self._driver.publish(messages))
        except BrokerError as error:
            return [error] * len(messages)
        self._look_once()
        return results

    async def send_inline_gently(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        """Do what :meth:`send_inline` does, in its :meth:`turn`, and give way to other tasks meanwhile."""
        sizes = await self._sizes(messages)
        loop, storing = asyncio.get_running_loop(), object()
        with self._lock:
            self._refuse_unacceptable(sizes)
            self._storing.add(storing)
        try:
            return await self._store(messages)
        finally:
            self._storing.discard(storing)
            if not loop.is_closed():  # otherwise this is the garbage collector, which must not take the lock
                with self._lock:
                    self._wake_drained()

    async def _store(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        results: list[str | BrokerError] = []
        failed_keys: set[str] = set()
        for part in _parts(messages):
            if self._flushed:
                results += [_unconfirmed()] * len(part)
            elif failed_keys:
                results += [self._store_unless_hindered(message, failed_keys) for message in part]
            else:
                stored = self._send_checked(part)
                results += stored
                failed_keys.update(_failed_keys(part, stored))
            await asyncio.sleep(0)
        return results

    def _store_unless_hindered(self, message: EventMessage, failed_keys: set[str]) -> str | BrokerError:
        """Store one message after a failure, as P3 has it."""
        key = message.ordering_key
        if key in failed_keys:
            return not_attempted(key)
        stored = self._send_checked([message])
        failed_keys.update(_failed_keys([message], stored))
        return stored[0]

    async def outcome(self, call: AnyCall[Waiter], *, has_waited: bool = False) -> Sequence[str | BrokerError]:
        """Wait until the fate of every message of *call* is known: at the latest when its time is up.

        :param has_waited: whether some of its time has gone since it was submitted.
        """
        self.pump()
        try:
            if has_waited:
                await call.waiter.wait(call.deadline - time.monotonic())
            else:
                await call.waiter.wait_within(self._options.send_timeout)
        except asyncio.CancelledError:
            self.abandon(call, self._timed_out(call.last_error))
            raise
        # Not in a clause ``finally``: where a loop was closed, the garbage collector may run it, in a thread that holds
        # the lock.  Then the home ends the call.
        if call.pending:
            self.abandon(call, self._timed_out(call.last_error))
        return call.take_results()

    def abandon(self, call: AnyCall[Waiter], error: BrokerError) -> None:
        """End *call* with *error*: nobody waits for it any more.

        What has not left does not leave; what has left may be stored.
        """
        with self._lock:
            for entry in call.entries:
                self._finish(entry, error)
                if entry.admitted:
                    self._batcher.forget(entry)
                else:
                    self._arriving.forget_given_up()

    def pump(self) -> None:
        """Let leave what may leave."""
        # Not where nothing can leave: whatever ends then looks again.  Nor where somebody is about to pump anyway.
        if not self._pumping and self._opened and self._batcher.is_ready:
            self._pumping = True
            self._home.wake(self._pump)

    def _call(self, messages: Sequence[EventMessage]) -> AnyCall[Waiter]:
        deadline = time.monotonic() + self._options.send_timeout
        if len(messages) == 1:
            return SingleCall(messages[0], self._measured(0, messages[0]), deadline, Waiter())
        call = Call(deadline, Waiter())
        for index, message in enumerate(messages):
            call.add(message, self._measured(index, message))
        return call

    async def _sizes(self, messages: Sequence[EventMessage]) -> list[int]:
        """Check *messages*, giving way to other tasks meanwhile; return their sizes."""
        sizes = []
        for index, message in enumerate(messages):
            if index % AT_ONCE == 0:
                await asyncio.sleep(0)
            sizes.append(self._measured(index, message))
        return sizes

    def _measured(self, index: int, message: EventMessage) -> int:
        if not isinstance(message, EventMessage):
            raise TypeError(f"message {index} is a {type(message).__name__}, not an EventMessage")
        if message.ordering_key is not None and not self._keeps_order:
            raise EventRuntimeError(
                f"message {index} has ordering key {message.ordering_key!r}, and this configuration keeps no order; "
                "send it without, or set the option ordering=true where the backend can",
                code=ErrorCode.UNSUPPORTED,
            )
        try:
            size = measure(message, self._limits)
        except ValueError as error:
            raise PublishError(f"message {index} cannot be sent: {error}", code=ErrorCode.INVALID) from None
        objection = self._driver.objection(message)
        if objection:
            raise PublishError(f"message {index} cannot be sent: {objection}", code=ErrorCode.INVALID)
        return size

    def _refuse_unacceptable(self, sizes: Sequence[int]) -> None:
        if self.closed:
            raise EventRuntimeError("the client is closed", code=ErrorCode.CLOSED)
        if self._is_strict:
            self._refuse_beyond_bounds(len(sizes), sum(sizes))

    def _refuse_beyond_bounds(self, messages: int, size: int) -> None:
        fits = self._messages + messages <= self._max_messages and self._bytes + size <= self._max_bytes
        alone = messages == 1 and not self._messages
        if self._arriving or not (fits or alone):
            raise PublishError(
                f"{self._messages} messages of {self._bytes} bytes are in flight, and {messages} more of {size} bytes "
                f"pass publish_max_messages={self._max_messages} or "
                f"publish_max_bytes={self._max_bytes}; send fewer at once, raise the bound, or set "
                "publish_on_limit=wait",
                code=ErrorCode.EXHAUSTED,
                retryable=True,
            )

    # Under the lock

    def _accept(self, call: AnyCall[Waiter]) -> None:
        """Take in a call that has been checked; its entries can be queued."""
        if self.closed or self._is_strict:
            self._refuse_unacceptable([entry.size for entry in call.entries])
        self._calls[call] = None

    def _queue(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if self._arriving or not self._admit(entry):
                self._arriving.append(entry)

    def _admit(self, entry: Entry) -> bool:
        """Let a message in, if there is room; one that is larger than the bound is admitted alone."""
        if self._messages and (self._messages >= self._max_messages or self._bytes + entry.size > self._max_bytes):
            return False
        entry.admitted = True
        self._messages += 1
        self._bytes += entry.size
        self._batcher.add(entry)
        return True

    def _admit_arriving(self) -> None:
        """Let messages in, in the order in which their calls began, while there is room (P6)."""
        arriving = self._arriving
        while arriving and (arriving[0].result is not None or self._admit(arriving[0])):
            arriving.popleft()

    def _finish(self, entry: Entry, result: str | BrokerError) -> None:
        if entry.result is not None:
            return
        if entry.admitted:
            self._messages -= 1
            self._bytes -= entry.size
        if entry.complete(result):
            self._calls.pop(entry.call, None)
            entry.call.waiter.wake()
            if self._drained is not None and not self._calls:
                self._drained.wake()
        if self._arriving:
            self._admit_arriving()
            self.pump()

    def _unsent(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        """Return those of *entries* that may be sent *now*; the others have their outcome."""
        unsent = []
        for entry in entries:
            if entry.result is not None:
                continue
            if entry.deadline <= now:
                self._finish(entry, self._timed_out(entry.call.last_error))
            elif (hindrance := entry.hindrance()) is not None:
                self._finish(entry, hindrance)
            else:
                unsent.append(entry)
        return unsent

    # At home

    def _pump(self) -> None:
        self._pumping = False  # before looking: what comes from now on pumps again
        self.watch()
        while batch := self._next():
            self._home.spawn(self._run(batch))

    def watch(self) -> None:
        """See that every call ends at its deadline, until none is left."""
        if not self._watching and not self._home.inline:
            self._watching = True
            self._home.spawn(self._watch())

    async def _watch(self) -> None:
        try:
            while self._calls:
                deadline = self._end_overdue()
                await asyncio.sleep(deadline - time.monotonic())
        finally:
            self._watching = False

    def _end_overdue(self) -> float:
        """End calls whose time is up, a few at a time; return when to look again."""
        with self._lock:
            oldest = [*itertools.islice(self._calls, _ENDED_AT_ONCE)]
        now = time.monotonic()
        for call in oldest:
            if call.deadline > now:
                return call.deadline
            self.abandon(call, self._timed_out(call.last_error))
        return now

    def _next(self) -> Batch | None:
        with self._lock:
            return self._batcher.next(time.monotonic())

    async def _run(self, batch: Batch) -> None:
        """Send *batch*, and whatever may leave when it is over: at once, so that the broker works while callers run."""
        following: Batch | None = batch
        try:
            while following is not None:
                batch = following
                try:
                    await self._publish(batch, batch.entries)
                finally:
                    with self._lock:
                        self._batcher.release(batch, time.monotonic())
                following = self._next()
                self.pump()  # a large request that is over makes room for several
        finally:
            self._pump()

    async def _publish(self, batch: Batch, entries: Iterable[Entry]) -> None:
        """Send *entries* of *batch* until each has its outcome, or nobody waits for it."""
        pauses = self._link.pauses(Backoff(maximum=10.0))
        while sendable := self._sendable(batch, entries):
            try:
                results = await self._request(sendable)
            except BrokerError as error:
                if error.retryable:
                    self._link.down(error)
                    await self._pause(batch, pauses, sendable, error)
                elif error.code is ErrorCode.INVALID and len(sendable) > 1:
                    # One caller's bad message must not fail another's: halve until only the offenders fail (P3).
                    await self._publish(batch, sendable[: len(sendable) // 2])
                    await self._publish(batch, sendable[len(sendable) // 2 :])
                else:
                    self._complete(sendable, [error] * len(sendable))
            else:
                self._link.up()
                self._look_once()
                self._complete(sendable, results, batch)

    async def _request(self, entries: Sequence[Entry]) -> Sequence[str | BrokerError]:
        try:
            async with asyncio.timeout(entries[-1].deadline - time.monotonic()):  # the last one's is the latest
                results = await self._driver.publish([entry.message for entry in entries])
        except TimeoutError as error:
            raise self._timed_out(error) from error
        except BrokerError:
            raise
        except UNFORESEEN as error:
            raise internal(error) from error
        if len(results) != len(entries):
            raise BrokerError(
                f"the backend answered for {len(results)} of {len(entries)} messages; they may be stored or not",
                ErrorCode.INTERNAL,
            )
        return results

    def _look_once(self) -> None:
        if not self._has_looked:
            self._has_looked = self._is_looking = True
            self._home.spawn(self._look())

    async def _look(self) -> None:
        """Warn if nobody receives what was sent; a close waits for that."""
        try:
            await self._recipients.check()
        finally:
            with self._lock:
                self._is_looking = False
                self._wake_drained()

    def _sendable(self, batch: Batch, entries: Iterable[Entry]) -> list[Entry]:
        """Return those of *entries* that leave in the next request; the others have their outcome, or follow."""
        now = time.monotonic()
        with self._lock:
            sendable = self._unsent(entries, now)
            return self._batcher.depart(batch, sendable, now) if sendable else sendable

    def _complete(
        self, entries: Sequence[Entry], results: Sequence[str | BrokerError], confirmed: Batch | None = None
    ) -> None:
        with self._lock:
            if confirmed is not None:
                self._batcher.confirm(confirmed, time.monotonic())
            for entry, result in zip(entries, results, strict=True):
                self._finish(entry, result)

    async def _pause(self, batch: Batch, pauses: Pauses, entries: Sequence[Entry], error: BrokerError) -> None:
        """Wait before the next try, for as long as anybody waits for its outcome."""
        for entry in entries:
            entry.call.last_error = error
        with self._lock:
            self._batcher.pause(batch, time.monotonic(), timed_out=error.code is ErrorCode.TIMEOUT)
        self._pump()
        patience = max(entry.deadline for entry in entries) - time.monotonic()
        await pauses.next(max(0.0, patience))
        place = Waiter()
        with self._lock:
            self._batcher.resume(batch, place)
        await place.wait()

    def _timed_out(self, last: BaseException | None) -> BrokerError:
        within = f"within send_timeout={self._options.send_timeout:g} s; the message"
        if self._opened:
            text = f"no confirmation {within} may be stored or not"
        else:
            text = f"no connection {within} was not sent"
            last = self.unreached
        if last and str(last):
            text = f"{text}; last: {last}"
        error = BrokerError(text, ErrorCode.TIMEOUT, retryable=True)
        error.__cause__ = last.__cause__ if isinstance(last, BrokerError) else last
        return error

    # Closing

    async def flush(self, timeout: float) -> None:
        """Accept nothing more and wait for what was accepted; what is unfinished then fails with ``CLOSED``."""
        with self._lock:
            self.closed = True
        self.hasten_flush(timeout)
        try:
            while (drained := self._undrained()) is not None:
                await drained.wait(self._flush_by - time.monotonic())
        finally:
            self._flushed = True
            closed = _unconfirmed()
            for call in list(self._calls):
                self.abandon(call, closed)

    def hasten_flush(self, timeout: float) -> None:
        """Let a flush that is under way wait for *timeout* seconds more at most: the least patient caller decides."""
        with self._lock:
            self._flush_by = min(self._flush_by, time.monotonic() + timeout)
            self._wake_drained()

    def _wake_drained(self) -> None:
        if self._drained is not None:
            self._drained.wake()

    def _undrained(self) -> Waiter | None:
        """Who is woken when nothing is pending; ``None`` where nothing is, or the time is up."""
        with self._lock:
            over = not (self._calls or self._storing or self._is_looking) or time.monotonic() >= self._flush_by
            self._drained = None if over else Waiter()
            return self._drained
