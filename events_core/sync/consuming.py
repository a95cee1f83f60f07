"""The receiving loop of a program without an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress

from events_core import consuming
from events_core.arguments import described
from events_core.message import ReceivedMessage
from events_core.sync.calls import refuse_in_loop
from events_core.sync.receiver import EventReceiver

__all__ = ["consume"]

_STOP_PAUSE = 0.1
"""Seconds between two looks at *stop*: a ``threading.Event`` cannot wake an event loop."""


def consume(
    receiver: EventReceiver,
    handler: Callable[[ReceivedMessage], object],
    *,
    concurrency: int = 1,
    stop: threading.Event | None = None,
) -> None:
    """Receive messages and give each to *handler*, until *stop* is set or *receiver* closes (rules H2, H3).

    This is :func:`events_core.consume` with ``threads=True``.  *handler* is a plain function, which may block.  It runs
    in one of *concurrency* threads and not in the thread of the caller, with a copy of the caller's context variables.

    When *stop* is set, nothing more is received, and the call returns when all running handlers have finished.  You may
    set it in the handler of a signal.  It is noticed within 0.1 seconds.

    If the handler of a signal raises an exception, such as ``KeyboardInterrupt`` at Ctrl-C, the call ends like a
    cancelled one.  It waits 5 seconds for the handlers that are running, settles the messages of those that end, hands
    the other messages back, and then raises that exception.

    :raises TypeError: if *receiver* or *stop* has another type, or *handler* is not callable, before anything is
        received.  Also if *handler* returns an awaitable or a generator.
    :raises ValueError: if *concurrency* is less than 1.
    :raises ReceiveError: if receiving failed and retrying cannot help, after all running handlers have finished.
    """
    if not isinstance(receiver, EventReceiver):
        raise TypeError(
            f"receiver must be an EventReceiver of events_core.sync, not {described(receiver)}; "
            "write 'with client.subscribe(…) as receiver:'"
        )
    if stop is not None and not isinstance(stop, threading.Event):
        raise TypeError(f"stop must be a threading.Event, not a {type(stop).__module__}.{type(stop).__qualname__}")
    refuse_in_loop("consume")
    _Consuming(receiver, handler, concurrency, stop).run()


class _Consuming:
    """One call of :func:`consume`, whose event loop runs in a thread of its own.

    The handler of a signal may raise at any point of the caller's thread.  Inside the loop, it could end the task that
    waits for a running handler.  In the thread that only waits for the loop, it can end nothing else.
    """

    def __init__(
        self,
        receiver: EventReceiver,
        handler: Callable[[ReceivedMessage], object],
        concurrency: int,
        stop: threading.Event | None,
    ) -> None:
        self._receiver = receiver
        self._handler = handler
        self._concurrency = concurrency
        self._stop = stop
        self._cancel: Future[Callable[[], object]] = Future()
        """Cancels the task, from any thread; cancelled itself if there never was a task."""
        self._done: Future[None] = Future()

    def run(self) -> None:
        """Consume, and return when all running handlers have ended."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run_loop,), name="events consume", daemon=True)
        try:
            thread.start()
            self._done.result()
        except BaseException:
            if thread.ident is not None and not self._done.done():
                self._interrupt()
            raise

    def _interrupt(self) -> None:
        """Cancel the task and wait for its end; a second signal ends the wait."""
        with suppress(CancelledError, RuntimeError):  # there never was a task, or its loop is closed already
            self._cancel.result()()
        wait([self._done])  # its own exception, if any, gives way to that of the signal's handler

    def _run_loop(self) -> None:
        try:
            self._receiver._calls.run(self._consume())
        except BaseException as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(None)
        finally:
            self._cancel.cancel()

    async def _consume(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        ending = asyncio.Event()
        watching = asyncio.create_task(_pass_on(self._stop, ending)) if self._stop is not None else None
        try:
            await consuming.consume(
                self._receiver._receiver, self._handler, concurrency=self._concurrency, stop=ending, threads=True
            )
        finally:
            if watching is not None:
                watching.cancel()


async def _pass_on(stop: threading.Event, ending: asyncio.Event) -> None:
    while not stop.is_set():  # noqa: ASYNC110
        await asyncio.sleep(_STOP_PAUSE)
    ending.set()
