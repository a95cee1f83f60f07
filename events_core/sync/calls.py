"""Blocking calls: a thread runs a coroutine of the asyncio client to its end, on an event loop of its own.

The loop stands still between two calls of its thread.  That harms nothing, because an asyncio client belongs to no
loop: its engine works in threads of its own, and serves the callers of any thread and any loop (rule T1: threads).

Who may touch a loop: the thread that has taken it out of ``Calls._idle``.  It does so for one call, or in
:meth:`Calls.close`, to close the loop.  Taking a loop out is one atomic step of a ``dict``.  So no lock is needed, and
none can stay locked in a forked child.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from events_core.errors import ErrorCode, EventRuntimeError

__all__ = ["Calls", "refuse_in_loop"]

T = TypeVar("T")
_Idle = dict[tuple[int, int], asyncio.AbstractEventLoop]
"""The loops that no call uses, by process and thread.

The operating system gives the number of a thread that has ended to a later thread, which then uses the same loop.  So
there are about as many loops as threads that live at the same time."""


class Calls:
    """The blocking calls of one client and of its receivers, in any thread."""

    def __init__(self) -> None:
        self._idle: _Idle = {}
        self._closed = False
        # If the program forgets to close the client, the client warns, and asyncio need not warn of each loop too.
        weakref.finalize(self, _close_all, self._idle)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* to its end, and return its result; in any thread, and in several at the same time.

        If the handler of a signal raises an exception meanwhile, as Python's own does for Ctrl-C, the coroutine is
        cancelled, and the exception goes on when the coroutine has ended.

        :raises EventRuntimeError: ``UNSUPPORTED`` if an event loop runs in this thread, because it would stand still.
        :raises BaseException: the exception of *coroutine*.
        """
        try:
            refuse_in_loop(getattr(coroutine, "__name__", "this call"))
        except EventRuntimeError:
            coroutine.close()  # otherwise Python warns that it was never awaited
            raise
        caller = (os.getpid(), threading.get_ident())  # a loop that a forked child has inherited is not used there
        loop = self._idle.pop(caller, None) or _new_loop()
        try:
            return _complete(loop, coroutine)
        finally:
            if not loop.is_closed():
                self._idle[caller] = loop
            # After the loop is back.  Either this sees that the client is closed, or the close finds the loop.
            if self._closed:
                _close_all(self._idle)

    def close(self) -> None:
        """Close every loop: those that are idle now, and the others when their calls end.

        Later calls still work, each on a new loop.  So the client can say that it is closed.
        """
        self._closed = True
        _close_all(self._idle)


def refuse_in_loop(name: str) -> None:
    """Raise ``EventRuntimeError`` (``UNSUPPORTED``) if an event loop runs in this thread: *name* would block it."""
    if asyncio._get_running_loop() is not None:
        raise EventRuntimeError(
            f"{name} would block the event loop that runs in this thread; use a client of events_core there and "
            "await it, or make this call in a thread with asyncio.to_thread",
            code=ErrorCode.UNSUPPORTED,
        )


def _new_loop() -> asyncio.AbstractEventLoop:
    # Not epoll, the default: parent and child share an epoll object after a fork, so that closing an inherited loop in
    # the child would deafen the parent's.  For one or two descriptors, poll is as fast.
    return asyncio.SelectorEventLoop(selectors.PollSelector())


def _complete(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    # A task copies the context variables of this thread.  So an observer finds the caller's span there.
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    except BaseException:
        if not task.done():
            _cancel(loop, task)
        raise


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Cancel *task*, which a signal has interrupted, and wait for its end.

    Otherwise it would go on with the next call.  A receive, for example, would then take a message for no one.
    """
    task.cancel()
    try:
        loop.run_until_complete(task)
    except (asyncio.CancelledError, Exception):
        pass  # the exception of the signal's handler goes on
    finally:
        if not task.done():  # a second signal has interrupted this wait
            loop.close()


def _close_all(idle: _Idle) -> None:
    while idle:
        try:
            _, loop = idle.popitem()
        except KeyError:
            return  # another thread has taken the last one
        loop.close()
