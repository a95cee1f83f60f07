"""Waiting in one event loop for something that another thread does.

* :class:`Waiter`: one wait of one task, which any thread ends.
* :class:`WaitingRoom`: the waits for events that one waiter of each loop has to see, such as an arriving message.
* :class:`SingleFlight`: the wait for an operation that runs once for all who ask for it.
* :func:`give_way`: a short wait now and then, for calls that have nothing to wait for.

A burst of wake-ups crosses into a loop once, however many of its waiters they end.  Crossing costs a system call and a
lock, which would be most of the cost of a message.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

__all__ = ["LoopTimers", "SingleFlight", "Waiter", "WaitingRoom", "give_way"]

_TURN = 0.005
"""Seconds for which calls that need not wait may keep a loop to themselves."""


class _Mailbox:
    """The futures of one loop that other threads want to resolve: only the loop itself may do that.

    Any thread posts, without a lock: appending to a deque is atomic.  A thread that finds ``is_posted`` set leaves the
    crossing to the thread that has set it.  The loop clears it before it empties the deque, so a future that comes
    later causes a new crossing.
    """

    __slots__ = ("futures", "is_posted", "loop", "turn_ends")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.futures: deque[asyncio.Future[None]] = deque()
        self.is_posted = False
        self.turn_ends = 0.0
        """The time of the loop at which :func:`give_way` lets other tasks run."""

    def cross(self) -> None:
        """Resolve :attr:`futures` in their loop, soon; from any thread."""
        self.is_posted = True
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            self.futures.clear()  # the loop is closed, and its tasks with it

    def _deliver(self) -> None:
        self.is_posted = False  # before draining: a post from now on needs a new wake-up
        while self.futures:
            _resolve(self.futures.popleft())


class _Own(threading.local):
    """The mailbox of the loop that ran last in this thread.

    A loop may get a second mailbox, after another loop has run in the thread.  That costs a crossing, and no more.
    """

    mailbox: _Mailbox | None = None


_own = _Own()


def _mailbox() -> _Mailbox:
    loop = asyncio.get_running_loop()
    mailbox = _own.mailbox
    if mailbox is None or mailbox.loop is not loop:
        mailbox = _own.mailbox = _Mailbox(loop)
    return mailbox


async def give_way() -> None:
    """Let other tasks of the loop run, if none could for a while.

    An application that works on a long backlog may never wait otherwise.  It costs more than a message, so it is not
    done for each.
    """
    mailbox = _mailbox()
    if mailbox.loop.time() >= mailbox.turn_ends:
        await asyncio.sleep(0)
        mailbox.turn_ends = mailbox.loop.time() + _TURN


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Waiter:
    """One wait of the running task, which any thread can end."""

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
        """End the wait; from any thread, also under a lock.

        Waking twice is harmless, and so is waking after the task or its loop has ended.
        """
        # In its own loop, resolving it directly saves the crossing.
        if asyncio._get_running_loop() is self.loop:
            _resolve(self._future)
        else:
            # Each future that another thread resolves comes this way, so it costs no more than this.
            mailbox = self._mailbox
            mailbox.futures.append(self._future)
            if not mailbox.is_posted:
                mailbox.cross()

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until woken."""
        return self._future.__await__()

    async def wait(self, timeout: float | None) -> None:
        """Wait until woken, for *timeout* seconds at most.  Afterwards look yourself at what you waited for."""
        if timeout is None:
            await self
            return
        timer = self.loop.call_later(max(0.0, timeout), _resolve, self._future)
        try:
            await self._future
        finally:
            timer.cancel()


class LoopTimers:
    """A timer in each loop, for all its tasks that wait for the owner.  It ends what is overdue.

    A timer for each task would cost more than the wait.

    :param check: ends what is overdue, whichever loop waits for it.  It returns the ``time.monotonic()`` at which to
        look again, or ``None`` if no task waits.  It is a method of the owner, which the timers do not keep alive.
    """

    def __init__(self, check: Callable[[], float | None]) -> None:
        self._check = weakref.WeakMethod(check)
        # Several threads use it at once.  Each adds and removes only the loop that it runs, or one that is closed.
        self._loops: set[asyncio.AbstractEventLoop] = set()

    def ensure(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make sure that *loop*, which is running, has its timer.  Call it when the task can be found by the check."""
        if loop not in self._loops:
            for other in [*self._loops]:
                if other.is_closed():
                    self._loops.discard(other)
            self._loops.add(loop)
            self._look(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        check = self._check()
        again = check() if check is not None else None
        if again is None:
            self._loops.discard(loop)
        else:
            # One turn later, so that an answer or a failure that comes in the same turn counts.
            loop.call_later(max(0.0, again - time.monotonic()), loop.call_soon, self._look, loop)


class WaitingRoom:
    """The waiters of many loops.  One of them is enough for each event, such as an arriving message.

    An event wakes one waiter of *each* loop, in order of arrival.  A loop may be blocked or have stopped, and must not
    keep the others from going on.  So a wake-up is only a hint: the waiter looks for itself, and may find that a waiter
    in another loop was faster.  A waiter that was woken and leaves without looking calls :meth:`wake` for the next one.

    To miss no event between looking and waiting, read :attr:`events`, look, and pass the number to :meth:`enter`.  If
    anything has happened since, ``enter`` returns no waiter: then look again.

    A loop may be closed without cancelling its tasks.  Its waiters are dropped with the next event or waiter.  The
    garbage collector ends their coroutines, in any thread, perhaps in one that holds the lock below.  So a wait that
    ends with ``GeneratorExit`` takes no lock.
    """

    def __init__(self) -> None:
        # A leaf lock: no other is taken while it is held.  So a wake-up may come from a thread that holds any lock.
        self._lock = threading.Lock()
        self._waiters: dict[asyncio.AbstractEventLoop, deque[Waiter]] = {}
        self._collected: deque[Waiter] = deque()
        """Waiters whose coroutines the garbage collector has ended; appended without the lock."""
        self.events = 0
        """The number of events so far.  Written under the lock; reading it without one is safe, because an older number
        only makes :meth:`enter` return no waiter."""

    def enter(self, events: int) -> Waiter | None:
        """Return a new waiter; ``None`` if something has happened since :attr:`events` was *events*."""
        with self._lock:
            if self.events != events:
                return None
            if self._waiters:
                self._drop_the_dead()
            waiter = Waiter()
            self._waiters.setdefault(waiter.loop, deque()).append(waiter)
            return waiter

    async def wait(self, waiter: Waiter, timeout: float | None) -> None:
        """Wait with *waiter*, for *timeout* seconds at most, and leave the room."""
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
        """Let *waiter* leave the room, if it is still there."""
        with self._lock:
            self._remove(waiter)

    def drop_the_dead(self) -> None:
        """Drop the waiters of closed loops, which keep their tasks from being collected, with all that these hold."""
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
        """Drop also the waiters that the garbage collector has ended.  Under the lock."""
        while self._collected:
            self._remove(self._collected.popleft())
        for loop in [loop for loop in self._waiters if loop.is_closed()]:
            del self._waiters[loop]

    def wake(self) -> None:
        """Wake one waiter of each loop, because something has happened; from any thread, also under a lock."""
        with self._lock:
            self.events += 1
            if not self._waiters:
                return  # most often: this runs several times for each message
            self._drop_the_dead()
            for waiters in self._waiters.values():
                while waiters:
                    waiter = waiters.popleft()
                    if not waiter.is_done:
                        waiter.wake()
                        break

    def wake_all(self) -> None:
        """Wake every waiter, because something has happened that concerns all; from any thread, also under a lock."""
        with self._lock:
            self.events += 1
            self._drop_the_dead()
            for waiters in self._waiters.values():
                while waiters:
                    waiters.popleft().wake()


class SingleFlight:
    """An operation that runs once for all who ask for it while it runs.

    The first caller runs it.  The others wait, each in its own loop, and then look whether it is done.  If it has
    failed, the next one runs it again.
    """

    def __init__(self, run_at_home: Callable[..., Awaitable[None]]) -> None:
        """Begin with nothing running.

        :param run_at_home: :meth:`Home.run`, which runs an operation to its end even if its caller is cancelled.
        """
        self._run_at_home = run_at_home
        self._lock = threading.Lock()
        self._running = False
        self._waiters: list[Waiter] = []

    async def run(
        self, operation: Callable[[], Coroutine[Any, Any, None]], done: Callable[[], bool], timeout: float
    ) -> None:
        """Return when *done* returns True.  An error of *operation* reaches only the caller that ran it.

        :param done: is asked before and after each wait, in any thread and without a lock.
        :param timeout: seconds to wait, whether this caller runs the operation or another one.
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
                # Perhaps the garbage collector, in a thread that holds the lock.  So this only lets the next caller run
                # the operation; no waiter is woken, and those who wait end with their timeout.
                self._running = False
                raise
            except BaseException:
                self._ended()
                raise
            self._ended()

        flight = guarded()
        try:
            await self._run_at_home(flight, timeout=timeout)
        except Exception:
            # The operation may still run, or not have begun yet; it then ends the flight itself.  But if home has
            # refused it, it never begins.
            if not begun and inspect.getcoroutinestate(flight) == inspect.CORO_CLOSED:
                self._ended()
            raise

    def _ended(self) -> None:
        with self._lock:
            self._running = False
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()
