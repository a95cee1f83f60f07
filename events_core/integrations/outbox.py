"""A bounded queue in front of a client, for programs that must not wait for the broker.

A caller puts a message in and goes on.  One task takes the messages out, in order, and sends them in batches.  The next
batch leaves when the broker has answered for the last one, so the order of each key is kept also over retries.

Every message ends in exactly one counter of :class:`OutboxStats`:

* The broker stored it: ``sent``.
* There was no room for it: ``dropped``.  The policy says which message that is.
* The broker refused it for good: ``refused``.
* The time of :meth:`Outbox.close` was over first: ``unconfirmed`` if it was on its way, otherwise ``unsent``.

A failure that may pass does not end a message: the outbox sends it again until the broker takes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from types import TracebackType
from typing import Literal, Self, TypeAlias, get_args

import attrs

from events_core import ErrorCode, EventClient, EventError, EventMessage, PublishError

__all__ = ["Outbox", "OutboxStats", "Policy"]

_log = logging.getLogger("events_core.outbox")

Policy: TypeAlias = Literal["wait", "drop_newest", "drop_oldest"]
"""The reaction of a full outbox: let the caller wait, drop the message that comes, or drop the one that waits
longest."""

_BATCH_MESSAGES = 500
"""Largest number of messages of one send.  Checking so many takes the event loop a few milliseconds."""

_BATCH_BYTES = 4 * 2**20
"""Largest number of bytes of one send, unless a single message has more."""

_GATHERING = 0.002
"""Seconds for which the first message waits for others.  No caller waits for it, and sending many together takes less
than half of the CPU."""

_PAUSE = 0.5
"""Seconds before a batch is sent again.  The client has tried for ``send_timeout`` already, with growing pauses."""

_RECORD_PAUSE = 60.0
"""Least number of seconds between two log records about refused messages."""

_CANCELLING = 1.0
"""Seconds that :meth:`Outbox.close` waits for a send that it has cancelled."""

_CLOSE_TIMEOUT_AFTER_ERROR = 2.0
"""Seconds in which an outbox closes after the body of its ``async with`` has raised."""


@attrs.frozen(kw_only=True)
class OutboxStats:
    """The state of an outbox at one instant."""

    waiting: int
    """Number of messages that wait for their first try."""
    sending: int
    """Number of messages on their way, or between two tries."""
    sent: int
    """Number of messages that the broker has stored."""
    dropped: int
    """Number of messages that were dropped because the outbox was full.  The broker has seen none of them."""
    refused: int
    """Number of messages that the broker, or the client's own check, refused for good."""
    unsent: int
    """Number of messages that were never tried: left over when the outbox closed, or put in later."""
    unconfirmed: int
    """Number of messages that were on their way when the time of :meth:`Outbox.close` was over; stored or not."""

    @property
    def offered(self) -> int:
        """Number of messages that were put in: the sum of all the others."""
        return self.waiting + self.sending + self.sent + self.dropped + self.refused + self.unsent + self.unconfirmed


class Outbox:
    """A bounded queue of messages, which a task sends through *client* in order.

    Use it in one event loop.  It starts no task until the first message comes, and has none while it is empty.  It does
    not close the client: close the outbox first, and then the client.

    :param client: sends the messages.  Its options decide how long it tries; the outbox tries again after that.
    :param policy: for a full outbox.  ``drop_newest`` and ``drop_oldest`` never make a caller wait.  With ``wait``,
        callers wait for room.  After a wait of *max_wait* seconds without room, no caller waits any more and the
        newest message is dropped, until the outbox is empty again.
    :param max_messages: number of messages that may wait, in addition to the at most 500 on their way.
    :param max_bytes: number of bytes of their data that may wait.  A larger message is taken if no other waits.
    :param max_wait: longest wait for room, in seconds; only the policy ``wait`` uses it.
    :param prepare: is called with each message that is put in, and returns the message to send in its place.  It runs
        in the context of the caller, so it can add what belongs to the caller, such as its trace.  It must return soon.
        If it raises, the log has the exception, and the message is sent as it was.
    :raises ValueError: for an unknown policy, or a limit that is less than 1.
    """

    def __init__(
        self,
        client: EventClient,
        *,
        policy: Policy = "drop_newest",
        max_messages: int = 10_000,
        max_bytes: int = 64 * 2**20,
        max_wait: float = 30.0,
        prepare: Callable[[EventMessage], EventMessage] | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}, not {policy!r}")
        if max_messages < 1 or max_bytes < 1:
            raise ValueError("max_messages and max_bytes must be at least 1")
        self._client = client
        self._policy = policy
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_wait = max_wait
        self._prepare = prepare
        self._waiting: deque[EventMessage] = deque()
        self._waiting_bytes = 0
        # What the broker may have seen.  It stays here between two tries, where no policy drops it: so each message in
        # ``dropped`` is one that the broker never got.
        self._sending: list[EventMessage] = []
        self._sent = self._dropped = self._refused = self._unsent = self._unconfirmed = 0
        self._task: asyncio.Task[None] | None = None
        self._room_waiters: deque[asyncio.Future[None]] = deque()
        self._is_closing = False
        self._is_closed = False
        # One log record for each time that the outbox is full.
        self._is_dropping = False
        self._has_waited_in_vain = False
        self._next_record = 0.0

    def __repr__(self) -> str:
        return f"<Outbox {self._client.topic_name!r}: {len(self._waiting)} waiting, {len(self._sending)} on their way>"

    @property
    def client(self) -> EventClient:
        """The client that sends the messages."""
        return self._client

    @property
    def stats(self) -> OutboxStats:
        """The counters now, without I/O."""
        return OutboxStats(
            waiting=len(self._waiting),
            sending=len(self._sending),
            sent=self._sent,
            dropped=self._dropped,
            refused=self._refused,
            unsent=self._unsent,
            unconfirmed=self._unconfirmed,
        )

    # Putting in

    def put_nowait(self, message: EventMessage) -> bool:
        """Put *message* in, without waiting; it must be called in the event loop.

        With the policy ``wait``, the message is taken also if the outbox is full.  So a caller that may put in many
        must await :meth:`room` between them.  Then the outbox exceeds its limit by one message for each caller at most.

        :returns: False if *message* was dropped, or came after :meth:`close`.
        """
        if self._is_closing:
            self._unsent += 1
            return False
        if self._prepare is not None:
            message = self._prepared(message, self._prepare)
        self._ensure_running()  # also if there is no room: the loop that sent before may be closed
        if not self._has_room_for(len(message.data)):
            if self._policy == "drop_oldest":
                self._make_room(len(message.data))
            elif self._policy == "drop_newest" or self._has_waited_in_vain:
                self._drop()
                return False
        self._waiting.append(message)
        self._waiting_bytes += len(message.data)
        return True

    def _prepared(self, message: EventMessage, prepare: Callable[[EventMessage], EventMessage]) -> EventMessage:
        try:
            return prepare(message)
        except Exception:
            _log.exception("%r: a message could not be prepared, so it is sent as it is", self)
            return message

    async def put(self, message: EventMessage) -> bool:
        """Wait for room if the policy says so, then put *message* in.

        If the call is cancelled while it waits, the message is not in the outbox and is not counted.

        :returns: False if *message* was dropped, or came after :meth:`close`.
        """
        await self.room()
        return self.put_nowait(message)

    async def room(self) -> None:
        """Wait until the outbox is not full, if the policy is ``wait``; otherwise return at once.

        The wait ends after ``max_wait`` seconds, and when the outbox closes.  Callers that wait go on in the order in
        which they came.
        """
        if self._policy != "wait" or (self._has_room_for(0) and not self._room_waiters):
            return
        self._ensure_running()
        ends = time.monotonic() + self._max_wait
        while not (self._is_closing or self._has_waited_in_vain or self._has_room_for(0)):
            await self._wait_for_room(ends)

    async def _wait_for_room(self, ends: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._room_waiters.append(waiter)
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                await waiter
        except TimeoutError:
            self._wait_no_more()
        finally:
            if waiter in self._room_waiters:
                self._room_waiters.remove(waiter)

    def _wait_no_more(self) -> None:
        if not self._has_waited_in_vain:
            self._has_waited_in_vain = self._is_dropping = True
            _log.warning(
                "%r: there was no room for %g s, so no caller waits now; it drops new messages until it is empty",
                self,
                self._max_wait,
            )
            self._let_in()

    def _has_room_for(self, size: int) -> bool:
        # Otherwise a message that is larger than the bound would find no room in an empty outbox.
        if not self._waiting:
            return True
        return len(self._waiting) < self._max_messages and self._waiting_bytes + size <= self._max_bytes

    def _make_room(self, size: int) -> None:
        while not self._has_room_for(size):
            self._waiting_bytes -= len(self._waiting.popleft().data)
            self._drop()

    def _drop(self) -> None:
        self._dropped += 1
        if not self._is_dropping:
            self._is_dropping = True
            _log.warning("%r is full, so it drops messages (%s) until it is empty", self, self._policy)

    def _let_in(self) -> None:
        """Wake the callers that wait for room."""
        # All of them: each looks again, and waits again if others have taken the room.
        while self._room_waiters:
            waiter = self._room_waiters.popleft()
            if not (waiter.done() or waiter.get_loop().is_closed()):
                waiter.set_result(None)

    # Sending

    def _ensure_running(self) -> None:
        loop = asyncio.get_running_loop()
        task = self._task
        # A task of a loop that was closed never goes on: a test may serve each request in a loop of its own.
        if task is None or task.done() or task.get_loop() is not loop:
            # Without the caller's context: the batch has messages of many callers, and belongs to no trace of one.
            self._task = loop.create_task(self._run(), name=f"outbox of {self._client.topic_name}", context=Context())

    async def _run(self) -> None:
        """Send until nothing is left."""
        await asyncio.sleep(_GATHERING)
        while self._sending or self._waiting:
            if not self._sending:
                self._take()
            if await self._send():
                await asyncio.sleep(_PAUSE)
        self._emptied()

    def _take(self) -> None:
        size = 0
        while self._waiting and len(self._sending) < _BATCH_MESSAGES:
            size += len(self._waiting[0].data)
            if self._sending and size > _BATCH_BYTES:
                break
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message.data)
            self._sending.append(message)
        self._let_in()

    def _emptied(self) -> None:
        self._has_waited_in_vain = False
        if self._is_dropping:
            self._is_dropping = False
            _log.info("%r is empty again; it has dropped %d messages so far", self, self._dropped)

    async def _send(self) -> bool:
        """Send what is in ``_sending``, and take the messages out whose outcome is known.

        :returns: True if the broker could not be reached, so that the next try must wait.
        """
        number = len(self._sending)
        # Nothing of a refused batch was sent.  So its first half can be tried alone, and the order is kept.
        while (outcomes := await self._outcomes(self._sending[:number])) is None:
            number //= 2
        if self._is_closed:
            return False  # the messages were counted when the time was over
        again = [
            message
            for message, outcome in zip(self._sending[:number], outcomes, strict=True)
            if not self._is_over(outcome)
        ]
        self._sending[:number] = again
        return any(
            isinstance(outcome, EventError) and outcome.retryable and outcome.code is not ErrorCode.NOT_ATTEMPTED
            for outcome in outcomes
        )

    async def _outcomes(self, batch: list[EventMessage]) -> Sequence[str | Exception] | None:
        """Send *batch*; return the id or the error of each message.

        Return ``None`` if the batch was refused as a whole, perhaps for one of its messages or because it exceeds the
        bounds of the client, and nothing was sent.
        """
        try:
            if len(batch) == 1:  # costs less than a batch of one
                return [await self._client.send_message(batch[0])]
            return await self._client.send_messages(batch)
        except PublishError as error:
            if error.results:
                return error.results
            failure: Exception = error
        except Exception as error:  # one that is no EventError is a defect of a backend; the others must go on
            failure = error
        if len(batch) == 1:
            return [failure]
        if isinstance(failure, EventError) and failure.retryable and failure.code is not ErrorCode.EXHAUSTED:
            return [failure] * len(batch)
        return None

    def _is_over(self, outcome: str | Exception) -> bool:
        """Count the outcome of a message; return False if the message must be sent again."""
        if isinstance(outcome, str):
            self._sent += 1
            return True
        # A message that was not attempted, because an earlier one of its key failed, is retryable as well.
        if isinstance(outcome, EventError) and outcome.retryable:
            return False
        self._refused += 1
        if time.monotonic() >= self._next_record:
            self._next_record = time.monotonic() + _RECORD_PAUSE
            _log.warning("%r: a message was refused, %d so far: %s", self, self._refused, outcome)
        return True

    # Closing

    async def close(self, timeout: float = 10.0) -> OutboxStats:
        """Take nothing more, send what waits for *timeout* seconds at most, and return the final counters.

        If something is left then, a warning says how much.  You may call it again, and concurrently: the shortest time
        counts.  If the call is cancelled, the outbox closes at once.
        """
        self._is_closing = True
        self._let_in()
        try:
            if self._sending or self._waiting:
                self._ensure_running()
            await self._end_task(timeout)
        finally:
            self._give_up()
        return self.stats

    async def _end_task(self, timeout: float) -> None:
        if (task := self._task) is None or task.done():  # perhaps in a loop that is closed
            return
        try:
            await asyncio.wait([task], timeout=max(0.0, timeout))
        finally:
            task.cancel()
        await asyncio.wait([task], timeout=_CANCELLING)

    def _give_up(self) -> None:
        left, under_way = len(self._waiting), len(self._sending)
        self._is_closed = True
        self._unsent += left
        self._unconfirmed += under_way
        self._waiting.clear()
        self._waiting_bytes = 0
        self._sending = []
        if left or under_way:
            _log.warning(
                "the outbox of %r was closed with %d messages that were not sent, and %d that were not confirmed",
                self._client.topic_name,
                left,
                under_way,
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (self.close() if kind is None else self.close(_CLOSE_TIMEOUT_AFTER_ERROR))
