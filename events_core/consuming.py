"""The receiving loop of an application: bounded concurrency, order per key, failures and shutdown (rule H2: consuming).

*concurrency* workers each receive one message, call the handler, settle the message, and begin again.  A worker holds
one message at a time, so the receiver hands out no second message of its ordering key (rule R8: order per key).

All of this runs on one event loop, so nothing here needs a lock.  Two things end the workers:

- ``_Loop._end``.  After it, no worker receives.  It cancels the tasks that wait inside ``_until_the_end``, and
  ``_until_the_end`` swallows that cancellation.  Handlers that are running go on to their end.
- A cancellation of :func:`consume`.  The task group passes it on to each worker, and so to its handler.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NoReturn, overload

from events_core.arguments import described
from events_core.errors import ErrorCode, EventError
from events_core.handling import Reject, RetryAfter
from events_core.interface import EventReceiver
from events_core.message import ReceivedMessage

__all__ = ["consume"]

_log = logging.getLogger("events_core.consuming")

_SETTLE_PAUSE = 1.0
"""Seconds between two tries to settle, each of which may itself take ack_timeout."""

_TURN = 0.01
"""Seconds after which a worker gives the loop a turn, even if neither the receiver nor the handler ever waits."""

THREAD_PATIENCE = 5.0
"""Seconds for which a cancelled :func:`consume` waits for a function in a thread.  If the function ends, it waits as
long again until the message is settled."""

_OVER = (ErrorCode.ALREADY_SETTLED, ErrorCode.CLOSED, ErrorCode.EXPIRED, ErrorCode.NOT_FOUND)
"""Error codes for a message that is not held any more.  Settling it again is useless."""


@overload
async def consume(
    receiver: EventReceiver,
    handler: Callable[[ReceivedMessage], Awaitable[object]],
    *,
    concurrency: int = 1,
    stop: asyncio.Event | None = None,
    threads: Literal[False] = False,
) -> None: ...


@overload
async def consume(
    receiver: EventReceiver,
    handler: Callable[[ReceivedMessage], object],
    *,
    concurrency: int = 1,
    stop: asyncio.Event | None = None,
    threads: Literal[True],
) -> None: ...


@overload
async def consume(
    receiver: EventReceiver,
    handler: Callable[[ReceivedMessage], object],
    *,
    concurrency: int = 1,
    stop: asyncio.Event | None = None,
    threads: bool,
) -> None: ...


async def consume(
    receiver: EventReceiver,
    handler: Callable[[ReceivedMessage], object],
    *,
    concurrency: int = 1,
    stop: asyncio.Event | None = None,
    threads: bool = False,
) -> None:
    """Receive messages and give each to *handler*, until *stop* is set or *receiver* closes.

    When *handler* returns, the message is acknowledged.  When it raises, the exception is logged and the message is
    nacked: it comes again, later each time.  If *handler* raises :class:`~events_core.Reject` or
    :class:`~events_core.RetryAfter`, the message is settled as that exception says, and no failure is logged (rule H3:
    decisions of a handler).

    If the broker does not answer within ``ack_timeout``, settling is tried again while other messages are handled.
    Messages of one ordering key are handled one after the other, in order, with any *concurrency*.

    When *stop* is set, nothing more is received, and the call returns when all running handlers have finished.

    When the call is cancelled, it cancels the handlers, hands their messages back, and then ends.  A message that
    cannot be settled by then comes again.

    **Functions in threads.** With *threads*, *handler* is a plain function, which may block.  It runs in a thread, with
    a copy of the caller's context variables.  A thread cannot be interrupted.  So a cancelled call waits 5 seconds for
    the functions that are running.  It settles the messages of those that end, hands the other messages back, and logs
    a warning for each of these.  A function that has not ended goes on, perhaps while another receiver handles the same
    message.  Python waits for it before the process exits.  If *stop* is set instead, the call waits without a bound.

    :param concurrency: the most handlers that run at once; with *threads* also the number of threads.
    :raises TypeError: if *receiver* or *stop* has another type, or *handler* is not callable, before anything is
        received.  Also if *handler* returns something that cannot be awaited, or, with *threads*, an awaitable or a
        generator.  Its message is handed back, and *handler* is not called again.  The error is raised when all running
        handlers have finished.
    :raises ValueError: if *concurrency* is less than 1.
    :raises ReceiveError: if receiving failed and retrying cannot help, after all running handlers have finished.
    """
    if not isinstance(receiver, EventReceiver):
        raise TypeError(
            f"receiver must be an EventReceiver, not {described(receiver)}; "
            "write 'async with client.subscribe(…) as receiver:'"
        )
    if stop is not None and not isinstance(stop, asyncio.Event):
        # The wait of a threading.Event would block the event loop, silently and forever.
        raise TypeError(f"stop must be an asyncio.Event, not a {type(stop).__module__}.{type(stop).__qualname__}")
    if not callable(handler):
        raise TypeError(f"handler must be callable, not {described(handler)}; pass the function itself")
    if not isinstance(concurrency, int):
        raise TypeError(f"concurrency must be an int, not {described(concurrency)}")
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")
    workers = asyncio.TaskGroup()
    pool = concurrent.futures.ThreadPoolExecutor(concurrency, "events_core.consume") if threads else None
    loop = _Loop(receiver, handler, workers, pool)
    stopping = asyncio.ensure_future(loop.end_when(stop)) if stop is not None else None
    try:
        async with workers:
            for _ in range(concurrency):
                workers.create_task(loop.work())
    finally:
        if stopping is not None:
            stopping.cancel()
        if pool is not None:
            pool.shutdown(wait=False)  # a function that hangs would block the event loop here
    if loop.failure is not None:
        raise loop.failure


class _Loop:
    """Workers that each receive one message and handle it, again and again."""

    def __init__(
        self,
        receiver: EventReceiver,
        handler: Callable[[ReceivedMessage], object],
        workers: asyncio.TaskGroup,
        pool: concurrent.futures.ThreadPoolExecutor | None,
    ) -> None:
        self._receiver = receiver
        self._handler = handler
        self._workers = workers
        self._pool = pool
        self._waiting: set[asyncio.Task[None]] = set()
        self._ended = False
        self._yields_at = 0.0
        self.failure: Exception | None = None
        """The error that ended the loop."""

    async def end_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._end()

    def _end(self) -> None:
        """Receive nothing more; running handlers go on."""
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
        # Ask the task too.  A handler may turn a cancellation into another exception, which looks like its failure.
        return not self._ended and not task.cancelling()

    @contextmanager
    def _until_the_end(self) -> Iterator[None]:
        """Let :meth:`_end` cancel what waits inside, and swallow that cancellation."""
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
                try:
                    await self._call_handler(message)
                except Exception as error:
                    # In an outage it takes ack_timeout to settle the message, so the failure is logged before.
                    if error is not self.failure:
                        _log_failure(message, error)
                    raise
                handled = True
        except Exception as error:
            if handled:
                _log.warning("message %s was handled, but is not acknowledged yet: %s", message.message_id, error)
                settle = self._receiver.acknowledge
            elif error is self.failure:
                return  # ``_refuse`` has handed the message back
            else:
                settle = partial(self._receiver.nack, delay=self._delay_of(error))
            if self._goes_on():
                # Usually ``processing`` has settled the message, and this does nothing.  It matters if the broker did
                # not answer.  A message that was to be rejected is then nacked: it comes again and is rejected again.
                self._workers.create_task(self._settle(message, settle))

    def _delay_of(self, error: Exception) -> float | None:
        if isinstance(error, RetryAfter):
            return error.delay_within(self._receiver.capabilities.limits.max_nack_delay)
        return None

    async def _call_handler(self, message: ReceivedMessage) -> None:
        if self._pool is not None:
            await self._call_in_thread(message, self._pool)
            return
        result = self._handler(message)
        if not inspect.isawaitable(result):
            await self._refuse(
                message,
                f"the handler returned {described(result)}, which cannot be awaited; make it a coroutine function, or "
                "pass threads=True to run a plain function in threads",
            )
        try:
            await result
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the handler awaited something that was cancelled") from error

    async def _refuse(self, message: ReceivedMessage, text: str) -> NoReturn:
        """End the loop, because the handler is of the wrong kind: it would fail for every message."""
        self.failure = TypeError(text)
        self._end()  # before anything is awaited, so that no other worker calls the handler
        await self._receiver.hand_back(message)  # the nack of ``processing`` is a no-op after this (S3)
        raise self.failure

    # Functions in threads

    async def _call_in_thread(self, message: ReceivedMessage, pool: concurrent.futures.ThreadPoolExecutor) -> None:
        context = contextvars.copy_context()
        running = asyncio.get_running_loop().run_in_executor(pool, context.run, self._call_function, message)
        try:
            result = await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running], timeout=THREAD_PATIENCE)
            if not running.done():
                _log.warning("message %s is handed back, and its handler still runs in its thread", message.message_id)
                raise
            task = asyncio.current_task()
            assert task is not None
            # The function has ended, so ``processing`` settles the message.  In an outage that could take long: the
            # second cancellation ends it.
            asyncio.get_running_loop().call_later(THREAD_PATIENCE, task.cancel)
            result = running.result()
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()  # otherwise Python warns that it was never awaited
            await self._refuse(
                message,
                "the handler returned an awaitable, which cannot be awaited in a thread; leave out threads=True",
            )
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            await self._refuse(message, "the handler is a generator, none of whose code has run; remove its yield")

    def _call_function(self, message: ReceivedMessage) -> object:
        try:
            return self._handler(message)
        except (StopIteration, asyncio.CancelledError, concurrent.futures.CancelledError) as error:
            # A future cannot carry these.  With the first the worker would wait without end.  With the others it would
            # believe that it was cancelled itself.
            raise RuntimeError(f"the handler raised {error!r}") from error

    # Settling again

    async def _settle(self, message: ReceivedMessage, settle: Callable[[ReceivedMessage], Awaitable[None]]) -> None:
        """Try to settle *message* until that works: as long as it is held, no other message of its key comes (S5)."""
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
