"""Waiting in one event loop for something that another thread does.

A wake-up crosses into a loop once for each burst, however many waiters of that loop it wakes: crossing costs a system
call and a lock, which would dominate a message's cost.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

__all__ = ["SingleFlight", "Waiter", "WaitingRoom"]


class _Mailbox:
    """Futures of one loop that are to be resolved there: when posted, or when their time is up."""

    __slots__ = ("_futures", "_posted", "_queues", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._futures: deque[asyncio.Future[None]] = deque()
        self._posted = False
        self._queues: dict[float, _DeadlineQueue] = {}

    def post(self, future: asyncio.Future[None]) -> None:
        """Resolve *future*; from any thread."""
        self._futures.append(future)
        if not self._posted:
            self._posted = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._futures.clear()  # the loop is closed: whoever waited in it is gone

    def _deliver(self) -> None:
        self._posted = False  # before draining: a post from now on needs a new wake-up
        while self._futures:
            _resolve(self._futures.popleft())

    def resolve_within(self, future: asyncio.Future[None], timeout: float) -> None:
        """Resolve *future* in *timeout* seconds at the latest; from the loop."""
        queue = self._queues.get(timeout)
        if queue is None:
            queue = self._queues[timeout] = _DeadlineQueue(self.loop)
        queue.add(future, self.loop.time() + timeout)


_CROWDED = 10_000
"""Waits of one length from which on those that are over are looked for."""


class _DeadlineQueue:
    """Waits of one length in one loop.

    They fall due in the order in which they began, so one timer does for all of them: a timer for each wait would cost
    more than the wait.
    """

    __slots__ = ("_armed", "_crowded", "_deadlines", "_futures", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Side by side: a pair for each wait would be one more object for the garbage collector to look at, and that is
        # what thousands of waits cost.
        self._futures: deque[asyncio.Future[None]] = deque()
        self._deadlines: deque[float] = deque()
        self._crowded = _CROWDED
        self._armed = False

    def __len__(self) -> int:
        return len(self._futures)

    def add(self, future: asyncio.Future[None], deadline: float) -> None:
        futures = self._futures
        while futures and futures[0].done():
            futures.popleft()
            self._deadlines.popleft()
        if len(futures) >= self._crowded:
            self._compact()
        self._futures.append(future)
        self._deadlines.append(deadline)
        if not self._armed:
            self._armed = True
            self._loop.call_at(deadline, self._expire)

    def _compact(self) -> None:
        """Drop what is over and stands behind one that is not."""
        waiting = [pair for pair in zip(self._futures, self._deadlines, strict=True) if not pair[0].done()]
        self._futures = deque(future for future, _ in waiting)
        self._deadlines = deque(deadline for _, deadline in waiting)
        self._crowded = max(_CROWDED, 2 * len(waiting))

    def _expire(self) -> None:
        futures, deadlines = self._futures, self._deadlines
        now = self._loop.time()
        while futures and (futures[0].done() or deadlines[0] <= now):
            _resolve(futures.popleft())
            deadlines.popleft()
        self._armed = bool(futures)
        if futures:
            self._loop.call_at(deadlines[0], self._expire)


class _Own(threading.local):
    """The mailbox of the loop that ran last in this thread; two for one loop do no harm."""

    mailbox: _Mailbox | None = None


_own = _Own()


def _mailbox() -> _Mailbox:
    loop = asyncio.get_running_loop()
    mailbox = _own.mailbox
    if mailbox is None or mailbox.loop is not loop:
        mailbox = _own.mailbox = _Mailbox(loop)
    return mailbox


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Waiter:
    """One wait of the running task; woken from any thread."""

    __slots__ = ("_future", "_mailbox", "loop")

    def __init__(self) -> None:
        self._mailbox = mailbox = _mailbox()
        self.loop = mailbox.loop
        self._future: asyncio.Future[None] = mailbox.loop.create_future()

    @property
    def is_done(self) -> bool:
        """Return whether the wait is over: it was woken, or its task was cancelled."""
        return self._future.done()

    def wake(self) -> None:
        """End the wait; waking twice, or after the task or its loop has gone, is harmless."""
        if asyncio._get_running_loop() is self.loop:
            _resolve(self._future)
        else:
            self._mailbox.post(self._future)

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

    def wait_within(self, timeout: float) -> Awaitable[None]:
        """The same, where many waits have the same *timeout*: cheaper, all of them together have one timer."""
        self._mailbox.resolve_within(self._future, timeout)
        return self._future


class WaitingRoom:
    """Waiters of many loops, for whom one event is enough at a time.

    Wake-ups are hints: a waiter that is woken looks for itself.  One waiter of *each* loop is woken, in order of
    arrival, because a loop may be blocked or have stopped, and must hinder no other.

    A loop may be closed without cancelling its tasks.  Its waiters are dropped when somebody looks again.  The garbage
    collector then ends their coroutines: in any thread, also in one that holds the lock below.  So a wait that ends
    with ``GeneratorExit`` takes no lock.
    """

    def __init__(self) -> None:
        # A leaf lock: nothing else is locked while it is held, so that a wake-up may come from under any lock.
        self._lock = threading.Lock()
        self._waiters: dict[asyncio.AbstractEventLoop, deque[Waiter]] = {}
        self._collected: deque[Waiter] = deque()
        """Waiters whose coroutines the garbage collector has ended; appended without the lock."""
        self.events = 0

    def enter(self, events: int) -> Waiter | None:
        """Return a waiter, unless something has happened since :attr:`events` was *events*."""
        with self._lock:
            if self.events != events:
                return None
            if self._waiters:
                self._drop_the_dead()
            waiter = Waiter()
            self._waiters.setdefault(waiter.loop, deque()).append(waiter)
            return waiter

    async def wait(self, waiter: Waiter, timeout: float | None) -> None:
        """Let *waiter* wait, for *timeout* seconds at most, and leave."""
        try:
            await waiter.wait(timeout)
        except GeneratorExit:
            self._collected.append(waiter)
            raise
        except BaseException:
            self.leave(waiter)
            raise
        self.leave(waiter)

    def leave(self, waiter: Waiter) -> None:
        """End the wait of *waiter*, for whatever reason."""
        with self._lock:
            self._remove(waiter)

    def drop_the_dead(self) -> None:
        """Let go of those whose loop is closed: they keep their tasks, and what these hold, from being collected."""
        with self._lock:
            self._drop_the_dead()

    def _remove(self, waiter: Waiter) -> None:
        waiters = self._waiters.get(waiter.loop)
        if waiters is not None:
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                del self._waiters[waiter.loop]

    def _drop_the_dead(self) -> None:
        """Let go of those too that the garbage collector has ended; under the lock."""
        while self._collected:
            self._remove(self._collected.popleft())
        for loop in [loop for loop in self._waiters if loop.is_closed()]:
            del self._waiters[loop]

    def wake(self) -> None:
        """Wake one waiter of each loop: something has happened."""
        with self._lock:
            self.events += 1
            if self._waiters:
                self._drop_the_dead()
            for waiters in self._waiters.values():
                while waiters:
                    waiter = waiters.popleft()
                    if not waiter.is_done:
                        waiter.wake()
                        break

    def wake_all(self) -> None:
        """Wake every waiter: something has happened that concerns them all."""
        with self._lock:
            self.events += 1
            self._drop_the_dead()
            for waiters in self._waiters.values():
                while waiters:
                    waiters.popleft().wake()


class SingleFlight:
    """Runs an operation once for all who ask for it meanwhile.

    The first caller has it run; the others wait, in whichever loop, and then look again: they find it done, or have
    it run themselves where the first one failed.
    """

    def __init__(self, call: Callable[..., Awaitable[None]]) -> None:
        """*call* is :meth:`Home.run`: it runs the operation, to its end even when its caller is cancelled."""
        self._call = call
        self._lock = threading.Lock()
        self._running = False
        self._waiters: list[Waiter] = []

    async def run(
        self, operation: Callable[[], Coroutine[Any, Any, None]], done: Callable[[], bool], timeout: float
    ) -> None:
        """Return once *done*; an error of *operation* reaches only the caller that had it run.

        :param timeout: seconds to wait, whoever has it run.
        :raises TimeoutError: when they are over; the operation goes on.
        """
        ends = time.monotonic() + timeout
        while not done():
            with self._lock:
                waiter = Waiter() if self._running else None
                if waiter:
                    self._waiters = [other for other in self._waiters if not other.is_done]  # those that gave up
                    self._waiters.append(waiter)
                self._running = True
            if not waiter:
                await self._run(operation, ends - time.monotonic())
                return
            await waiter.wait(ends - time.monotonic())
            if time.monotonic() >= ends and not done():
                raise TimeoutError

    async def _run(self, operation: Callable[[], Coroutine[Any, Any, None]], timeout: float) -> None:
        begun = False

        async def guarded() -> None:
            nonlocal begun
            begun = True
            try:
                await operation()
            except GeneratorExit:
                self._running = False  # all that the garbage collector may do here, in a thread that may hold the lock
                raise
            except BaseException:
                self._ended()
                raise
            self._ended()

        flight = guarded()
        try:
            await self._call(flight, timeout=timeout)
        except Exception:  # a caller that gives up leaves the operation to run, or to begin yet
            if not begun and inspect.getcoroutinestate(flight) == inspect.CORO_CLOSED:
                self._ended()
            raise

    def _ended(self) -> None:
        with self._lock:
            self._running = False
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()
