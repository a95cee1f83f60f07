"""A thread with an event loop, for drivers that wait for a network or a disk.

The thread keeps leases alive while the application's loop is blocked.  It serves clients of any loop and thread.
:class:`ThreadHome` is what the engine uses: one for each client, either on the thread that all network clients share or
on a thread of its own.

Who may touch what:

* The loop's thread alone changes tasks, :attr:`ThreadHome._tasks` and each :class:`_Errand`.
* Any thread may call :meth:`LoopThread.wake` and :meth:`LoopThread.post`.  Waking a loop costs a system call.  So
  ``wake`` gathers callbacks in a ``deque``, and only the first of a burst wakes the loop.  Results come back in the
  same way (``waiting.py``).  ``post`` wakes the loop each time, and tells whether the callback will run.
* Locks are taken in this order: ``ThreadHome._lock``, ``_IOThread._lock``, :attr:`LoopThread._posting`.  No lock of the
  engine is taken under the last one, so any thread may call ``wake`` and ``post`` while it holds a lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack, closing, suppress
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeVar

from events_core.engine.closing import cancel_all
from events_core.engine.driver import BrokerError
from events_core.engine.failure import UNFORESEEN, is_meant
from events_core.engine.home import Home
from events_core.engine.waiting import Waiter
from events_core.errors import ErrorCode

__all__ = ["ThreadHome", "off_loop"]

T = TypeVar("T")
_log = logging.getLogger("events_core.engine")


_ORPHAN_PAUSE = 0.5
"""Seconds between two checks of the loop of a caller that has not taken its result: is the loop still open?"""


class LoopThread:
    """A daemon thread with a running event loop, from its creation until :meth:`stop`.

    :raises BrokerError: ``EXHAUSTED`` when the process may have no more descriptors or threads.
    """

    def __init__(self, name: str) -> None:
        self.loop = _new_loop()
        self._helpers: list[threading.Thread] = []
        """The threads of the loop's executor.  A library uses them, for example, to look up the name of a host."""
        helpers = self._helpers  # so that the executor does not keep this object
        self._executor = ThreadPoolExecutor(
            thread_name_prefix=f"{name} helper", initializer=lambda: helpers.append(threading.current_thread())
        )
        self.loop.set_default_executor(self._executor)
        self._stopping = False
        self._finish_within = 0.0
        self._woken: deque[Callable[[], object]] = deque()
        # Read and set without a lock; see wake().
        self._is_waking = False
        # Guards _ended.  The loop still runs each callback that is posted before _ended is set.  Reentrant, because the
        # garbage collector may interrupt a thread that is posting, and run a finalizer of a library that posts too.
        self._posting = threading.RLock()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            _start(self._thread)
        except BrokerError:
            self.loop.close()
            raise

    @property
    def name(self) -> str:
        """The thread's name."""
        return self._thread.name

    @property
    def is_alive(self) -> bool:
        """Return whether the thread still runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        try:
            while not self._stopping:
                self._survive(loop.run_forever)
            with self._posting:
                self._ended = True
            self._survive(lambda: loop.run_until_complete(self._finish()))
        finally:
            asyncio.set_event_loop(None)
            loop.call_soon_threadsafe = self._drop  # type: ignore[method-assign]
            loop.close()

    async def _finish(self) -> None:
        await _finish(self._finish_within)
        # Without waiting for the threads, because a thread may hang in the kernel.  Closing the loop would do the same,
        # and its threads would outlive it for a moment (C3).
        self._executor.shutdown(wait=False, cancel_futures=True)
        ends = self.loop.time() + self._finish_within
        while any(thread.is_alive() for thread in self._helpers) and self.loop.time() < ends:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def _survive(self, run: Callable[[], None]) -> None:
        """Call *run*, which runs the loop, and log the exception that ends it."""
        try:
            run()
        # SystemExit and KeyboardInterrupt end a loop.  Several clients may share this one, so the thread must go on.
        except BaseException:
            _log.exception("a callback or task on the thread %r tried to end it", self.name)

    def _drop(self, callback: Callable[..., object], *args: object, context: Context | None = None) -> asyncio.Handle:
        """Do nothing, in place of ``call_soon_threadsafe`` once the loop is closed.

        A library may call into the loop after its end.  gRPC does so for requests that were cancelled while the
        connection was stuck.  A ``RuntimeError`` would then be raised in gRPC's code on another loop.
        """
        return asyncio.Handle(callback, args, self.loop, context)

    def wake(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the loop, soon; from any thread."""
        # Append first, then look at the flag.  _wake_all clears the flag first, then drains.  So if this thread sees
        # the flag set, _wake_all has not cleared it yet and will find the callback.  Two threads that both see it
        # unset wake the loop twice, which does no harm.
        self._woken.append(callback)
        if not self._is_waking:
            self._is_waking = True
            self.post(self._wake_all)

    def _wake_all(self) -> None:
        self._is_waking = False
        while self._woken:
            self.loop.call_soon(self._woken.popleft())

    def post(self, callback: Callable[[], object]) -> bool:
        """Wake the loop to run *callback*; from any thread.

        Return True if the loop will run it.  Return False, and do nothing, if the thread is ending.
        """
        with self._posting:
            if not self._ended:
                self.loop.call_soon_threadsafe(callback)
            return not self._ended

    def stop(self, within: float) -> None:
        """End the thread soon, and cancel the tasks that are left, for *within* seconds at most; from any thread."""
        self._finish_within = within
        self.post(self._stop)

    def _stop(self) -> None:
        self._stopping = True
        self.loop.stop()


async def _finish(within: float) -> None:
    """Cancel the tasks that are left and wait for their end, so that asyncio does not find a pending task destroyed."""
    # A task that was posted just before the end must start, so that its caller gets an answer.  Three turns: one
    # delivers a wake-up, its callback creates the task in the next one, and the task starts in the third.
    for _ in range(3):
        await asyncio.sleep(0)
    await cancel_all(asyncio.all_tasks() - {asyncio.current_task()}, within)
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            await asyncio.get_running_loop().shutdown_asyncgens()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        # A loop needs descriptors.  If asyncio gets only some of them, it prints a traceback when that half-made loop
        # is collected.  So open and close as many first, as a test.
        with ExitStack() as needed:
            needed.enter_context(closing(selectors.DefaultSelector()))
            for end in socket.socketpair():
                needed.enter_context(end)
        return asyncio.new_event_loop()
    except OSError as error:
        raise BrokerError(
            f"cannot make an event loop for the client: {error}; let this process open more files (ulimit -n)",
            ErrorCode.EXHAUSTED,
            retryable=True,
        ) from error


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raise BrokerError(
            f"cannot start the thread {thread.name!r}: {error}; let this process have more threads or memory",
            ErrorCode.EXHAUSTED,
            retryable=True,
        ) from error


async def off_loop(work: Callable[[], T]) -> T:
    """Run *work*, which blocks, in a daemon thread of its own, and return its result.

    Use it for work that blocks once, such as importing an SDK or reading credentials.  Cancelling the wait does not
    stop the work.

    :raises BrokerError: ``EXHAUSTED`` when the process may have no more threads.
    :raises BaseException: the exception of *work*.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            resolve = partial(_resolve, done, work(), None)
        except BaseException as error:
            resolve = partial(_resolve, done, None, error)
        with suppress(RuntimeError):  # the loop is closed, so the caller is gone
            loop.call_soon_threadsafe(resolve)

    _start(threading.Thread(target=run, name="events off loop", daemon=True))
    return await done


def _resolve(done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if done.done():
        return  # cancelled
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


class _IOThread:
    """The one thread that all network clients of this process share, while there are any."""

    def __init__(self) -> None:
        # Guards both fields: the thread that counts down to 0 stops the thread before another client can count up.
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._users = 0

    def acquire(self) -> LoopThread:
        """Return the thread; start it for the first user.

        :raises BrokerError: ``EXHAUSTED`` when the process may have no more descriptors or threads.
        """
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread("events I/O")
            self._users += 1
            return self._thread

    def release(self, within: float) -> bool:
        """Count one user less, and return whether that was the last one.

        In that case stop the thread, whose tasks then have *within* seconds to end.
        """
        with self._lock:
            self._users -= 1
            if self._users:
                return False
            assert self._thread is not None
            self._thread.stop(within)
            self._thread = None
            return True


_io_thread = _IOThread()


def _forget_thread() -> None:
    """Start a forked child without a thread and with a new lock.

    No thread survives a fork, and a thread of the parent may have held the old lock.
    """
    global _io_thread
    _io_thread = _IOThread()


os.register_at_fork(after_in_child=_forget_thread)


class ThreadHome(Home):
    """The home of one client, on a loop thread.

    :param private: the name of a thread of the client's own; ``None`` to share the process's I/O thread.
    """

    def __init__(self, private: str | None = None) -> None:
        self._private = private
        # Guards the start.  Other methods read _thread without the lock, because it changes only once, from None.
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        # Set at home, read in any thread.  A thread that still reads False posts a task, which _start_task cancels.
        self._stopped = False
        self._ends_thread = False
        """True once this home has stopped its thread, because no other client uses it."""

    def start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread(self._private) if self._private else _io_thread.acquire()

    async def run(
        self,
        coroutine: Coroutine[Any, Any, T],
        orphaned: Callable[[T], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> T:
        waiter = Waiter()
        errand = _Errand(waiter, orphaned)
        if not self._post(lambda: self._start_task(coroutine).add_done_callback(errand.finish)):
            coroutine.close()
            raise _closed()
        try:
            await waiter.wait(timeout)
        except asyncio.CancelledError:
            self._post(errand.abandon)
            raise
        if not errand.is_done:
            self._post(errand.abandon)
            raise TimeoutError
        return errand.result()

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str = "") -> asyncio.Task[None]:
        # Without the context variables of a caller.  The task works for many callers, and may outlive the one that woke
        # this loop: a library below would take that caller's trace for the trace of all.
        return self._start_task(coroutine, name, Context())

    def _start_task(
        self, coroutine: Coroutine[Any, Any, T], name: str = "", context: Context | None = None
    ) -> asyncio.Task[T]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(coroutine, name=name or None, context=context)
        self._tasks.add(task)  # a loop keeps only weak references to its tasks
        task.add_done_callback(self._tasks.discard)
        if self._stopped:
            # Not at once: a task that is cancelled before it starts runs none of its code, so not even a ``finally``.
            loop.call_soon(task.cancel)
        return task

    def wake(self, callback: Callable[[], object]) -> None:
        if self._thread is not None:
            self._thread.wake(callback)

    def _post(self, callback: Callable[[], object]) -> bool:
        return self._thread is not None and not self._stopped and self._thread.post(callback)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)

    async def close_quietly(self, closing: Coroutine[Any, Any, None], what: str, within: float) -> None:
        # In a task of its own.  If the closing ignores cancellation, this coroutine still goes on after *within*.
        task = asyncio.get_running_loop().create_task(_logged(closing, what), name=f"closing {what}")
        await asyncio.wait([task], timeout=within / 2)
        if not task.done():
            _log.warning("closing %s failed: no answer in %.3g s", what, within / 2)
            await cancel_all([task], within / 2)

    async def overdue(self, end: Callable[[], Coroutine[Any, Any, None]], what: str) -> None:
        assert self._thread is not None
        _log.warning(
            "closing %s: the thread %r has not done it in time, and may hang; it closes what is open when it goes on",
            what,
            self._thread.name,
        )

    async def end_tasks(self, within: float) -> None:
        self._stopped = True
        await asyncio.sleep(0)  # a task that was just created must start first: otherwise its ``finally`` never runs
        await cancel_all(self._tasks - {asyncio.current_task()}, within)

    async def stop(self, within: float) -> None:
        assert self._thread is not None
        if self._private:
            self._thread.stop(within)
            self._ends_thread = True
        else:
            self._ends_thread = _io_thread.release(within)

    async def ended(self, within: float) -> None:
        # Joining the thread would block the caller's loop, and a thread cannot announce its own end.  So poll.
        if not self._ends_thread or self._thread is None:
            return
        ends, pause = time.monotonic() + within, 0.0005
        while self._thread.is_alive:
            if time.monotonic() >= ends:
                _log.warning("the thread %r still runs, although its last client was closed", self._thread.name)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.05)


async def _logged(closing: Coroutine[Any, Any, None], what: str) -> None:
    try:
        await closing
    except UNFORESEEN as error:
        if is_meant(error):
            raise
        _log.warning("closing %s failed: %r", what, error)


class _Errand(Generic[T]):
    """A task on the thread's loop, and the caller that waits for it in another loop.

    All methods run on the thread's loop, except :attr:`is_done` and :meth:`result`, which the caller uses after its
    wait.  :meth:`finish` sets the task before it wakes the caller, so the caller needs no lock to see it.

    A caller may give up.  The task still goes on, and :meth:`_pass_on` gives its result to *orphaned*.
    """

    def __init__(self, waiter: Waiter, orphaned: Callable[[T], None] | None) -> None:
        self._waiter = waiter
        self._orphaned = orphaned
        self._task: asyncio.Task[T] | None = None
        self._abandoned = False
        self._taken = False

    @property
    def is_done(self) -> bool:
        """Return whether the task has ended."""
        return self._task is not None

    def finish(self, task: asyncio.Task[T]) -> None:
        """Record the end of the task and wake the caller."""
        self._task = task
        self._waiter.wake()
        self._pass_on()

    def abandon(self) -> None:
        """Note that the caller no longer waits."""
        self._abandoned = True
        self._pass_on()

    def _pass_on(self) -> None:
        """Pass the result to *orphaned* if the caller no longer waits for it."""
        # Look at the loop before _taken.  If the loop is closed, the caller can no longer take the result, and _taken
        # does not change any more.
        is_gone = self._abandoned or self._waiter.loop.is_closed()
        task, orphaned = self._task, self._orphaned
        # Ask for the exception in any case, because asyncio logs an exception that was never retrieved.
        if task is None or task.cancelled() or task.exception() is not None or self._taken or orphaned is None:
            return
        if is_gone:
            self._orphaned = None
            orphaned(task.result())
        else:
            # The caller may still take the result.  Or its loop is closed before that, which nothing reports.  So look
            # again later.
            asyncio.get_running_loop().call_later(_ORPHAN_PAUSE, self._pass_on)

    def result(self) -> T:
        """Return the result of the task; it then does not go to *orphaned*.

        :raises BaseException: the exception of the task.
        :raises BrokerError: ``CLOSED`` if the task was cancelled, which only a close does.
        """
        assert self._task is not None
        self._taken = True
        if self._task.cancelled():
            raise _closed()
        return self._task.result()


def _closed() -> BrokerError:
    return BrokerError("the client was closed meanwhile", ErrorCode.CLOSED)
