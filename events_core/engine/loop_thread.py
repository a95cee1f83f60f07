"""The thread with an event loop on which drivers run that wait for a network or a disk.

It keeps leases alive while the application's loop is blocked, and serves clients of any loop and thread.  Work crosses
into it, and results out of it (``waiting.py``), once for each burst.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from events_core.engine.driver import BrokerError
from events_core.engine.failure import UNFORESEEN, is_meant
from events_core.engine.home import CLOSE_GRACE, Home
from events_core.engine.waiting import Waiter
from events_core.errors import ErrorCode

__all__ = ["ThreadHome", "off_loop"]

T = TypeVar("T")
_log = logging.getLogger("events_core.engine")


class LoopThread:
    """A daemon thread with a running event loop, from its creation until :meth:`stop`."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._ends = False
        self._woken: deque[Callable[[], None]] = deque()
        self._is_waking = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        try:
            while not self._ends:
                self._run_until_stopped()
            loop.run_until_complete(_finish(loop))
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def _run_until_stopped(self) -> None:
        try:
            self.loop.run_forever()
        except BaseException:  # SystemExit and KeyboardInterrupt leave a loop, and this one is everybody's
            _log.exception("what ran on the thread %r wanted to end it", threading.current_thread().name)

    def wake(self, callback: Callable[[], None]) -> None:
        """Run *callback* on the loop, soon; from any thread."""
        self._woken.append(callback)
        if not self._is_waking:  # else whoever set it crosses into the loop for this one too
            self._is_waking = True
            self.post(self._wake_all)

    def _wake_all(self) -> None:
        self._is_waking = False  # before draining: a wake-up from now on needs a new crossing
        while self._woken:
            self.loop.call_soon(self._woken.popleft())

    def post(self, callback: Callable[[], object]) -> bool:
        """The same, with a crossing of its own; False where the thread has ended."""
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False  # the loop is closed
        return True

    def stop(self) -> None:
        """End, soon, with every task that is left."""
        self.post(self._stop)

    def _stop(self) -> None:
        self._ends = True
        self.loop.stop()

    def join(self) -> None:
        """Return when it has ended."""
        self._thread.join()


async def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """Let cancelled tasks end, so that none is destroyed while pending."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()


async def off_loop(work: Callable[[], T]) -> T:
    """Run *work*, which blocks, in a daemon thread of its own: importing an SDK, reading credentials.

    Cancelling the wait does not stop it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            settle = partial(_settle, done, work(), None)
        except BaseException as error:
            settle = partial(_settle, done, None, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=run, name="events off loop", daemon=True).start()
    return await done


def _settle(done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if done.done():
        return  # cancelled
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


class _IOThread:
    """The one thread that all network clients of this process share, while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._users = 0

    def acquire(self) -> LoopThread:
        """Start it, for the first user."""
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread("events I/O")
            self._users += 1
            return self._thread

    def release(self) -> bool:
        """Let go of it; whether it ends, since this was its last user."""
        with self._lock:
            self._users -= 1
            if self._users:
                return False
            assert self._thread is not None
            self._thread.stop()
            self._thread = None
            return True


_io_thread = _IOThread()


def _forget_thread() -> None:
    """No thread survives a fork, and a lock may be held for ever: the child starts with new ones."""
    global _io_thread
    _io_thread = _IOThread()


os.register_at_fork(after_in_child=_forget_thread)


class ThreadHome(Home):
    """One client's place on a loop thread.

    :param private: the name of a thread of the client's own; without, it shares the process's I/O thread.
    """

    inline = False

    def __init__(self, private: str | None = None) -> None:
        self._private = private
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False
        self._ends = False

    async def release(self, closing: Coroutine[Any, Any, None], what: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_GRACE):
                await closing
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            _log.warning("closing %s failed: %r", what, error)

    def start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread(self._private) if self._private else _io_thread.acquire()

    async def call(self, coroutine: Coroutine[Any, Any, T], orphaned: Callable[[T], None] | None = None) -> T:
        waiter = Waiter()
        errand = _Errand(waiter, orphaned)
        if not self._post(lambda: self._start_task(coroutine).add_done_callback(errand.done)):
            coroutine.close()
            raise _closed()
        try:
            await waiter.wait()
        except asyncio.CancelledError:
            self._post(errand.abandon)
            raise
        return errand.result()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._start_task(coroutine)

    def _start_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        assert self._thread is not None
        task = self._thread.loop.create_task(coroutine)
        self._tasks.add(task)  # a loop keeps only weak references to its tasks
        task.add_done_callback(self._tasks.discard)
        if self._stopped:
            self._thread.loop.call_soon(task.cancel)  # once it has begun, so that its clauses ``finally`` count
        return task

    def wake(self, callback: Callable[[], None]) -> None:
        if self._thread is not None:
            self._thread.wake(callback)

    def _post(self, callback: Callable[[], object]) -> bool:
        return self._thread is not None and not self._stopped and self._thread.post(callback)

    async def end_tasks(self) -> None:
        self._stopped = True
        await asyncio.sleep(0)  # what has been started begins, so that its clauses ``finally`` count
        rest = self._tasks - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=CLOSE_GRACE)

    async def stop(self) -> None:
        assert self._thread is not None
        if self._private:
            self._thread.stop()
            self._ends = True
        else:
            self._ends = _io_thread.release()

    def join(self) -> None:
        if self._ends and self._thread is not None:
            self._thread.join()


class _Errand(Generic[T]):
    """A task on the thread's loop and whoever waits for it elsewhere; only that loop changes it."""

    def __init__(self, waiter: Waiter, orphaned: Callable[[T], None] | None) -> None:
        self._waiter = waiter
        self._orphaned = orphaned
        self._task: asyncio.Task[T] | None = None
        self._abandoned = False

    def done(self, task: asyncio.Task[T]) -> None:
        self._task = task
        self._waiter.wake()
        self._bequeath()

    def abandon(self) -> None:
        self._abandoned = True
        self._bequeath()

    def _bequeath(self) -> None:
        task = self._task
        if not self._abandoned or task is None or task.cancelled() or task.exception() is not None:
            return
        if self._orphaned is not None:
            self._orphaned(task.result())

    def result(self) -> T:
        assert self._task is not None
        if self._task.cancelled():
            raise _closed()
        return self._task.result()


def _closed() -> BrokerError:
    return BrokerError("the client was closed meanwhile", ErrorCode.CLOSED)
