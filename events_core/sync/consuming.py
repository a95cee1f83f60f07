"""The receiving loop of a program without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from events_core import consuming
from events_core.arguments import described
from events_core.message import ReceivedMessage
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
    receiver._calls.run(_consume(receiver, handler, concurrency, stop))


async def _consume(
    receiver: EventReceiver,
    handler: Callable[[ReceivedMessage], object],
    concurrency: int,
    stop: threading.Event | None,
) -> None:
    ending = asyncio.Event()
    watching = asyncio.create_task(_pass_on(stop, ending)) if stop is not None else None
    try:
        await consuming.consume(receiver._receiver, handler, concurrency=concurrency, stop=ending, threads=True)
    finally:
        if watching is not None:
            watching.cancel()


async def _pass_on(stop: threading.Event, ending: asyncio.Event) -> None:
    while not stop.is_set():  # noqa: ASYNC110
        await asyncio.sleep(_STOP_PAUSE)
    ending.set()
