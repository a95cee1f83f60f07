"""Where a driver's coroutines run: in the caller's thread, or on the loop of a thread of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from events_core.engine.waiting import Waiter

__all__ = ["CLOSE_GRACE", "Home", "InlineHome", "LoopThread", "step"]

T = TypeVar("T")
_log = logging.getLogger("events_core.engine")


CLOSE_GRACE = 2.0
"""Seconds that closing takes beyond its timeout, at most, for each step that a broker leaves without an answer."""


class Home(ABC):
    """Runs coroutines of a driver, for callers in any thread and loop."""

    inline: bool

    @abstractmethod
    async def release(self, closing: Coroutine[Any, Any, None], what: str) -> None:
        """Await the *closing* of a source or driver, here, for a moment; failures are logged and ignored."""

    @abstractmethod
    async def call(self, coroutine: Coroutine[Any, Any, T], orphaned: Callable[[T], None] | None = None) -> T:
        """Run *coroutine* and wait for it; cancelling the wait does not stop it.

        :param orphaned: takes the result, here, when nobody waits for it any more.
        """

    @abstractmethod
    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run *coroutine* here, from here; inline it has finished on return."""

    @abstractmethod
    def wake(self, callback: Callable[[], None]) -> None:
        """Run *callback* here, soon; from any thread.  Inline it has run on return."""

    @abstractmethod
    def start(self) -> None:
        """Make ready; called again it does nothing."""

    @abstractmethod
    def stop(self) -> None:
        """End it, soon, with every task that is left; from here."""

    @abstractmethod
    def join(self) -> None:
        """Return when nothing of it remains, after :meth:`stop`."""


class InlineHome(Home):
    """The caller's own thread, for drivers that never suspend."""

    inline = True

    async def release(self, closing: Coroutine[Any, Any, None], what: str) -> None:
        try:
            await closing
        except Exception as error:
            _log.warning("closing %s failed: %r", what, error)

    async def call(self, coroutine: Coroutine[Any, Any, T], orphaned: Callable[[T], None] | None = None) -> T:
        return await coroutine

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        step(coroutine)

    def wake(self, callback: Callable[[], None]) -> None:
        callback()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def join(self) -> None:
        pass


def step(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} suspended; a driver that does must not declare itself inline")


class LoopThread(Home):
    """A daemon thread with an event loop; it keeps leases alive while the application's loop is blocked."""

    inline = False

    async def release(self, closing: Coroutine[Any, Any, None], what: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_GRACE):
                await closing
        except Exception as error:
            _log.warning("closing %s failed: %r", what, error)

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._woken: deque[Callable[[], None]] = deque()
        self._is_waking = False

    def start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name=self._name, daemon=True)
                self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(_finish(loop))
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    async def call(self, coroutine: Coroutine[Any, Any, T], orphaned: Callable[[T], None] | None = None) -> T:
        waiter = Waiter()
        errand = _Errand(waiter, orphaned)
        if not self._post(lambda: self._start_task(coroutine).add_done_callback(errand.done)):
            coroutine.close()
            raise RuntimeError(f"the thread {self._name!r} has ended")
        try:
            await waiter.wait()
        except asyncio.CancelledError:
            self._post(errand.abandon)
            raise
        return errand.result()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._start_task(coroutine)

    def _start_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        assert self._loop is not None
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)  # a loop keeps only weak references to its tasks
        task.add_done_callback(self._tasks.discard)
        return task

    def wake(self, callback: Callable[[], None]) -> None:
        self._woken.append(callback)
        if not self._is_waking:  # else whoever set it crosses into the loop for this one too
            self._is_waking = True
            self._post(self._wake_all)

    def _wake_all(self) -> None:
        assert self._loop is not None
        self._is_waking = False  # before draining: a wake-up from now on needs a new crossing
        while self._woken:
            self._loop.call_soon(self._woken.popleft())

    def _post(self, callback: Callable[[], object]) -> bool:
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False  # the loop is closed
        return True

    def stop(self) -> None:
        if self._loop is not None:
            self._post(self._loop.stop)

    def join(self) -> None:
        if self._thread is not None:
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
            raise RuntimeError("the client was closed meanwhile")
        return self._task.result()


async def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """Let cancelled tasks end, so that none is destroyed while pending."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
