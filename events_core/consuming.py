"""The loop that everybody writes, once: bounded concurrency, key order, failures and shutdown (H2)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from events_core.errors import ErrorCode, EventError
from events_core.interface import EventReceiver
from events_core.message import ReceivedMessage

__all__ = ["consume"]

_log = logging.getLogger("events_core.consuming")


async def consume(
    receiver: EventReceiver,
    handler: Callable[[ReceivedMessage], Awaitable[object]],
    *,
    concurrency: int = 1,
    stop: asyncio.Event | None = None,
) -> None:
    """Receive messages and give each to *handler*, until *stop* is set or *receiver* closes.

    What *handler* finished is acknowledged; what it failed is logged and nacked, and comes again.  Messages of one
    ordering key are handled one after the other, in order, whatever the *concurrency*.

    Stopped, it receives nothing more, and returns once the handlers that run have finished.  Cancelled, it cancels
    them, hands their messages back, and then ends.

    :param concurrency: how many handlers run at once, at most.
    :raises ValueError: when *concurrency* is less than 1.
    :raises ReceiveError: what receiving raised and retrying cannot mend, after the handlers that run have finished.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")
    loop = _Loop(receiver, handler)
    stopping = asyncio.ensure_future(loop.end_when(stop)) if stop is not None else None
    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(loop.work())
    finally:
        if stopping is not None:
            stopping.cancel()
    if loop.failure is not None:
        raise loop.failure


class _Loop:
    """Workers that each receive one message and handle it, again and again."""

    def __init__(self, receiver: EventReceiver, handler: Callable[[ReceivedMessage], Awaitable[object]]) -> None:
        self._receiver = receiver
        self._handler = handler
        self._receiving: set[asyncio.Task[None]] = set()
        self._ended = False
        self.failure: EventError | None = None

    async def end_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._end()

    def _end(self) -> None:
        """Receive nothing more; who handles a message goes on."""
        self._ended = True
        for task in self._receiving:
            task.cancel()

    async def work(self) -> None:
        while not self._ended:
            message = await self._receive()
            if message is not None:
                await self._handle(message)

    async def _receive(self) -> ReceivedMessage | None:
        task = asyncio.current_task()
        assert task is not None
        self._receiving.add(task)
        try:
            return await self._receiver.receive_message()
        except asyncio.CancelledError:
            if not self._ended:
                raise
        except EventError as error:
            if error.code is not ErrorCode.CLOSED:
                self.failure = error
            self._end()
        finally:
            self._receiving.discard(task)
        return None

    async def _handle(self, message: ReceivedMessage) -> None:
        try:
            async with self._receiver.processing(message):
                await self._handler(message)
        except Exception:
            _log.exception("the handler failed on message %s; it comes again", message.message_id)
