"""Waiting in one event loop for something that another thread does.

A wake-up crosses into a loop once for each burst, however many waiters of that loop it wakes: crossing costs a system
call and a lock, which would dominate a message's cost.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["Deadlines", "SingleFlight", "Waiter", "WaitingRoom"]


class _Mailbox:
    """Futures of one loop that are to be resolved there."""

    __slots__ = ("_futures", "_loop", "_posted")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._futures: deque[asyncio.Future[None]] = deque()
        self._posted = False

    def post(self, future: asyncio.Future[None]) -> None:
        self._futures.append(future)
        if not self._posted:
            self._posted = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._futures.clear()  # the loop is closed: whoever waited in it is gone

    def _deliver(self) -> None:
        self._posted = False  # before draining: a post from now on needs a new wake-up
        while self._futures:
            _resolve(self._futures.popleft())


_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = WeakKeyDictionary()
_mailboxes_lock = threading.Lock()


def _mailbox(loop: asyncio.AbstractEventLoop) -> _Mailbox:
    with _mailboxes_lock:
        mailbox = _mailboxes.get(loop)
        if mailbox is None:
            mailbox = _mailboxes[loop] = _Mailbox(loop)
        return mailbox


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Waiter:
    """One wait of the running task; woken from any thread."""

    __slots__ = ("_future", "loop")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self.loop.create_future()

    @property
    def done(self) -> bool:
        """Whether it has been woken, or its task cancelled."""
        return self._future.done()

    def wake(self) -> None:
        """End the wait; waking twice, or after the task or its loop has gone, is harmless."""
        if asyncio._get_running_loop() is self.loop:
            _resolve(self._future)
        else:
            _mailbox(self.loop).post(self._future)

    async def wait(self, timeout: float | None = None) -> None:
        """Wait to be woken, for *timeout* seconds at most; the caller looks again for what it waited for."""
        if timeout is None:
            await self._future
            return
        timer = self.loop.call_later(max(0.0, timeout), _resolve, self._future)
        try:
            await self._future
        finally:
            timer.cancel()


class Deadlines:
    """Bounded waits, all of one length.

    They fall due in the order in which they began, so one timer for each loop does for all of them: a timer for each
    wait would cost more than the wait.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _DeadlineQueue] = WeakKeyDictionary()

    async def wait(self, waiter: Waiter) -> None:
        """Wait to be woken, at the latest when the time is up."""
        queue = self._queues.get(waiter.loop)
        if queue is None:
            with self._lock:
                queue = self._queues[waiter.loop] = _DeadlineQueue()
        queue.add(waiter, waiter.loop.time() + self._timeout)
        await waiter.wait()


class _DeadlineQueue:
    """The bounded waits of one loop; only that loop's thread touches it."""

    __slots__ = ("_armed", "_waiters")

    def __init__(self) -> None:
        self._waiters: deque[tuple[float, Waiter]] = deque()
        self._armed = False

    def add(self, waiter: Waiter, deadline: float) -> None:
        waiters = self._waiters
        while waiters and waiters[0][1].done:
            waiters.popleft()
        waiters.append((deadline, waiter))
        if not self._armed:
            self._armed = True
            waiter.loop.call_at(deadline, self._expire, waiter.loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        waiters = self._waiters
        now = loop.time()
        while waiters and (waiters[0][1].done or waiters[0][0] <= now):
            waiters.popleft()[1].wake()
        self._armed = bool(waiters)
        if waiters:
            loop.call_at(waiters[0][0], self._expire, loop)


class WaitingRoom:
    """Waiters of many loops, for whom one event is enough at a time.

    Wake-ups are hints: who is woken looks for himself.  One waiter of *each* loop is woken, in order of arrival, since
    a loop may be blocked or have stopped, and must hinder no other.
    """

    def __init__(self) -> None:
        # A leaf lock: nothing else is locked while it is held, so that a wake-up may come from under any lock.
        self._lock = threading.Lock()
        self._waiters: dict[asyncio.AbstractEventLoop, deque[Waiter]] = {}
        self.events = 0

    def enter(self, events: int) -> Waiter | None:
        """A waiter, unless something has happened since :attr:`events` was *events*."""
        with self._lock:
            if self.events != events:
                return None
            waiter = Waiter()
            self._waiters.setdefault(waiter.loop, deque()).append(waiter)
            return waiter

    def leave(self, waiter: Waiter) -> None:
        """The wait is over, for whatever reason."""
        with self._lock:
            waiters = self._waiters.get(waiter.loop)
            if waiters is not None:
                if waiter in waiters:
                    waiters.remove(waiter)
                if not waiters:
                    del self._waiters[waiter.loop]

    def wake(self) -> None:
        """Something has happened: wake one waiter of each loop."""
        with self._lock:
            self.events += 1
            for waiters in self._waiters.values():
                while waiters:
                    waiter = waiters.popleft()
                    if not waiter.done:
                        waiter.wake()
                        break

    def wake_all(self) -> None:
        """Something has happened that concerns everybody."""
        with self._lock:
            self.events += 1
            for waiters in self._waiters.values():
                while waiters:
                    waiters.popleft().wake()


class SingleFlight:
    """Runs an operation once for all who ask for it meanwhile.

    The first caller has it run; the others wait, in whichever loop, and then look again: they find it done, or have
    it run themselves where the first one failed.
    """

    def __init__(self, call: Callable[[Coroutine[Any, Any, None]], Awaitable[None]]) -> None:
        """*call* runs the operation, to its end even when its caller is cancelled."""
        self._call = call
        self._lock = threading.Lock()
        self._running = False
        self._waiters: list[Waiter] = []

    async def run(self, operation: Callable[[], Coroutine[Any, Any, None]], done: Callable[[], bool]) -> None:
        """Return once *done*; an error of *operation* reaches only the caller that had it run."""
        while not done():
            with self._lock:
                waiter = Waiter() if self._running else None
                if waiter:
                    self._waiters.append(waiter)
                self._running = True
            if waiter:
                await waiter.wait()
            else:
                await self._call(self._guarded(operation()))
                return

    async def _guarded(self, operation: Coroutine[Any, Any, None]) -> None:
        try:
            await operation
        finally:
            with self._lock:
                self._running = False
                waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.wake()
