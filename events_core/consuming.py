"""The loop that everybody writes, once: bounded concurrency, key order, failures and shutdown (H2)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

from events_core.errors import ErrorCode, EventError
from events_core.handling import Reject, RetryAfter
from events_core.interface import EventReceiver
from events_core.message import ReceivedMessage

__all__ = ["consume"]

_log = logging.getLogger("events_core.consuming")

_SETTLE_PAUSE = 1.0
"""Seconds between two tries to settle, each of which may itself take ack_timeout."""

_TURN = 0.01
"""Seconds after which the loop gets a turn, be it that neither the receiver nor the handler ever waits."""

_OVER = (ErrorCode.ALREADY_SETTLED, ErrorCode.CLOSED, ErrorCode.EXPIRED, ErrorCode.NOT_FOUND)
"""Why a message cannot be settled that is not held."""


async def consume(
    receiver: EventReceiver,
    handler: Callable[[ReceivedMessage], Awaitable[object]],
    *,
    concurrency: int = 1,
    stop: asyncio.Event | None = None,
) -> None:
    """Receive messages and give each to *handler*, until *stop* is set or *receiver* closes.

    What *handler* finished is acknowledged; what it failed is logged and nacked, and comes again.  Where the broker
    cannot be told within ``ack_timeout`` it is told later, while other messages are handled.  Messages of one ordering
    key are handled one after the other, in order, whatever the *concurrency*.

    Stopped, it receives nothing more, and returns once the handlers that run have finished.  Cancelled, it cancels
    them, hands their messages back, and then ends.  What the broker could not be told by then comes again.

    :param concurrency: how many handlers run at once, at most.
    :raises ValueError: when *concurrency* is less than 1.
    :raises ReceiveError: what receiving raised and retrying cannot mend, after the handlers that run have finished.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")
    workers = asyncio.TaskGroup()
    loop = _Loop(receiver, handler, workers)
    stopping = asyncio.ensure_future(loop.end_when(stop)) if stop is not None else None
    try:
        async with workers:
            for _ in range(concurrency):
                workers.create_task(loop.work())
    finally:
        if stopping is not None:
            stopping.cancel()
    if loop.failure is not None:
        raise loop.failure


class _Loop:
    """Workers that each receive one message and handle it, again and again."""

    def __init__(
        self,
        receiver: EventReceiver,
        handler: Callable[[ReceivedMessage], Awaitable[object]],
        workers: asyncio.TaskGroup,
    ) -> None:
        self._receiver = receiver
        self._handler = handler
        self._workers = workers
        self._waiting: set[asyncio.Task[None]] = set()
        self._ended = False
        self._yields_at = 0.0
        self.failure: EventError | None = None

    async def end_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._end()

    def _end(self) -> None:
        """Receive nothing more; who handles a message goes on."""
        self._ended = True
        for task in self._waiting:
            task.cancel()

    async def work(self) -> None:
        while self._goes_on():
            message = await self._receive()
            if message is not None:
                await self._handle(message)
            if time.monotonic() >= self._yields_at:
                await asyncio.sleep(0)
                self._yields_at = time.monotonic() + _TURN

    def _goes_on(self) -> bool:
        task = asyncio.current_task()
        assert task is not None
        return not self._ended and not task.cancelling()  # which a handler may have made another exception of

    @contextmanager
    def _until_the_end(self) -> Iterator[None]:
        """What waits in here is cancelled when nothing more is to be received."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._ended:
                raise
        finally:
            self._waiting.discard(task)

    async def _receive(self) -> ReceivedMessage | None:
        with self._until_the_end():
            try:
                return await self._receiver.receive_message()
            except EventError as error:
                if error.code is not ErrorCode.CLOSED:
                    self.failure = error
                self._end()
        return None

    async def _handle(self, message: ReceivedMessage) -> None:
        handled = False
        try:
            async with self._receiver.processing(message):
                await self._call_handler(message)
                handled = True
        except Exception as error:
            if handled:
                _log.warning("message %s was handled, but is not acknowledged yet: %s", message.message_id, error)
                settle = self._receiver.acknowledge
            else:
                _log_failure(message, error)
                settle = partial(self._receiver.nack, delay=self._delay_of(error))
            if self._goes_on():
                # ``processing`` has settled the message, and this is a no-op, unless the broker could not be told.
                # Then a message that was rejected is nacked: it comes again, and its handler rejects it again.
                self._workers.create_task(self._settle(message, settle))

    def _delay_of(self, error: Exception) -> float | None:
        if isinstance(error, RetryAfter):
            return error.delay_within(self._receiver.capabilities.limits.max_nack_delay)
        return None

    async def _call_handler(self, message: ReceivedMessage) -> None:
        try:
            await self._handler(message)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the handler awaited something that was cancelled") from error

    async def _settle(self, message: ReceivedMessage, settle: Callable[[ReceivedMessage], Awaitable[None]]) -> None:
        """Repeat what may have failed: a message that stays held would keep those of its key waiting (S5)."""
        with self._until_the_end():
            while self._goes_on():
                try:
                    return await settle(message)
                except EventError as error:
                    if error.code in _OVER:
                        return
                    _log.debug("message %s is not settled, trying again: %s", message.message_id, error)
                await asyncio.sleep(_SETTLE_PAUSE)


def _log_failure(message: ReceivedMessage, error: Exception) -> None:
    if isinstance(error, (Reject, RetryAfter)):
        _log.debug("the handler decided about message %s: %r", message.message_id, error)
    else:
        _log.exception("the handler failed on message %s at attempt %s", message.message_id, message.delivery_attempt)
