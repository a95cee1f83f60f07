"""Home: the place where a driver's coroutines run, either the caller's thread or the loop of an engine thread.

:class:`InlineHome` runs them in the thread of the caller, for drivers that never suspend.  ``ThreadHome``
(``loop_thread.py``) runs them on the event loop of a thread of the engine.  The two differ in what needs a thread or a
timer.  Such a difference is a method here, so that other modules do not ask which home they have.

Three groups of methods, by the thread that may call them:

* any thread, also under a lock: :meth:`Home.wake`;
* a coroutine on any loop: :meth:`Home.start`, :meth:`Home.run`, :meth:`Home.overdue`, :meth:`Home.ended`;
* home itself: :meth:`Home.spawn`, :meth:`Home.timeout`, :meth:`Home.close_quietly`, :meth:`Home.end_tasks`,
  :meth:`Home.stop`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

from events_core.engine.driver import BrokerError
from events_core.engine.failure import internal
from events_core.errors import ErrorCode

__all__ = ["Home", "InlineHome", "step"]

T = TypeVar("T")
_log = logging.getLogger("events_core.engine")


class Home(ABC):
    """The place where coroutines of a driver run, for callers in any thread and loop."""

    @abstractmethod
    async def run(
        self,
        coroutine: Coroutine[Any, Any, T],
        orphaned: Callable[[T], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> T:
        """Run *coroutine* at home and wait for it.  Cancelling the wait does not stop the coroutine.

        :param orphaned: is called at home with the result if the caller no longer waits for it: it was cancelled, or
            had no more time, or its loop was closed.
        :param timeout: seconds to wait, by a timer in the caller's loop.  An inline home has no such timer.
        :raises TimeoutError: when they are over.  The coroutine still runs, or will.
        :raises BrokerError: ``CLOSED`` when this home has stopped.
        """

    @abstractmethod
    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str = "") -> asyncio.Task[None] | None:
        """Run *coroutine* in a task at home; call it at home.  An inline home has run it on return.

        :param name: a name for the warning that the task does not end.
        """

    @abstractmethod
    def wake(self, callback: Callable[[], object]) -> None:
        """Run *callback* at home, soon; from any thread.  An inline home has run it on return."""

    @abstractmethod
    def start(self) -> None:
        """Make ready.  Calling it again does nothing.

        :raises BrokerError: ``EXHAUSTED`` if the process may have no more descriptors or threads.
        """

    @abstractmethod
    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Return a context that cancels the running task after *seconds* and raises ``TimeoutError``.

        An inline home returns one that does nothing: what never suspends cannot be cancelled.
        """

    # Closing (closing.py)

    @abstractmethod
    async def close_quietly(self, closing: Coroutine[Any, Any, None], what: str, within: float) -> None:
        """Await the *closing* of a source or driver, for *within* seconds, and log its failure."""

    @abstractmethod
    async def overdue(self, end: Callable[[], Coroutine[Any, Any, None]], what: str) -> None:
        """Handle a closing of *what* that took too long; in the caller's loop.

        An inline home runs *end*, because the loop that was to run it stands still.  Otherwise log which thread hangs.
        """

    @abstractmethod
    async def end_tasks(self, within: float) -> None:
        """Refuse new coroutines, and cancel every task that is left."""

    @abstractmethod
    async def stop(self, within: float) -> None:
        """End this home, after :meth:`end_tasks`.

        :param within: seconds that the thread has to end.
        """

    @abstractmethod
    async def ended(self, within: float) -> None:
        """Wait, for *within* seconds at most, until nothing is left of what :meth:`stop` has ended."""


class InlineHome(Home):
    """The caller's own thread, for drivers that never suspend."""

    async def run(
        self,
        coroutine: Coroutine[Any, Any, T],
        orphaned: Callable[[T], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> T:
        return await coroutine

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str = "") -> None:
        step(coroutine)

    def wake(self, callback: Callable[[], object]) -> None:
        callback()

    def start(self) -> None:
        pass

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return nullcontext()

    async def close_quietly(self, closing: Coroutine[Any, Any, None], what: str, within: float) -> None:
        try:
            await closing
        except Exception as error:
            _log.warning("closing %s failed: %r", what, error)

    async def overdue(self, end: Callable[[], Coroutine[Any, Any, None]], what: str) -> None:
        await end()

    async def end_tasks(self, within: float) -> None:
        pass

    async def stop(self, within: float) -> None:
        pass

    async def ended(self, within: float) -> None:
        pass


def step(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a driver's coroutine that never suspends, and return its result.

    :raises BrokerError: for everything that the coroutine raises.
    """
    # Without a loop: a coroutine that never suspends runs to its end in one step, in any thread.
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    except BrokerError:
        raise
    except Exception as error:
        raise internal(error) from error
    # It has suspended.  End it here, so that its cleaning up is not left to the garbage collector.
    coroutine.close()
    raise BrokerError(f"{coroutine!r} suspended; a driver that does must not declare itself inline", ErrorCode.INTERNAL)
