"""Where a driver's coroutines run: in the caller's thread, or on the loop of a thread (``loop_thread.py``)."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from events_core.engine.driver import BrokerError
from events_core.engine.failure import internal
from events_core.errors import ErrorCode

__all__ = ["Home", "InlineHome", "step"]

T = TypeVar("T")
_log = logging.getLogger("events_core.engine")


class Home(ABC):
    """Runs coroutines of a driver, for callers in any thread and loop."""

    inline: bool

    @abstractmethod
    async def call(
        self,
        coroutine: Coroutine[Any, Any, T],
        orphaned: Callable[[T], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> T:
        """Run *coroutine* and wait for it; cancelling the wait does not stop it.

        :param orphaned: takes the result, here, when nobody waits for it any more: the caller was cancelled, or had no
            more time, or its loop was closed.
        :param timeout: seconds to wait, by a timer in the caller's loop; inline nothing waits.
        :raises TimeoutError: when they are over.  The coroutine still runs, or will.
        :raises BrokerError: ``CLOSED`` when this home has stopped.
        """

    @abstractmethod
    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str = "") -> asyncio.Task[None] | None:
        """Run *coroutine* here, from here; inline it has finished on return.

        :param name: what it does, for a warning that it does not end.
        """

    @abstractmethod
    def wake(self, callback: Callable[[], object]) -> None:
        """Run *callback* here, soon; from any thread.  Inline it has run on return."""

    @abstractmethod
    def start(self) -> None:
        """Make ready; called again it does nothing."""

    # Closing (closing.py)

    @abstractmethod
    async def release(self, closing: Coroutine[Any, Any, None], what: str, within: float) -> None:
        """Await the *closing* of a source or driver, here, for *within* seconds; log its failure."""

    @abstractmethod
    async def overdue(self, end: Callable[[], Coroutine[Any, Any, None]], what: str) -> None:
        """Deal with a closing of *what* that is not over in time; in the caller's loop.

        Inline, run *end*: the loop that was to run it stands still.  Otherwise say which thread hangs.
        """

    @abstractmethod
    async def end_tasks(self, within: float) -> None:
        """Begin nothing more, and end every task that is left; from here."""

    @abstractmethod
    async def stop(self, within: float) -> None:
        """End this home; from here, after :meth:`end_tasks`.

        :param within: seconds that a thread has to end in.
        """

    @abstractmethod
    async def ended(self, within: float) -> None:
        """Wait until nothing remains of what :meth:`stop` has ended; in the caller's loop."""


class InlineHome(Home):
    """The caller's own thread, for drivers that never suspend."""

    inline = True

    async def call(
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

    async def release(self, closing: Coroutine[Any, Any, None], what: str, within: float) -> None:
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
    """Run a driver's coroutine that never suspends.

    :raises BrokerError: and nothing else that a driver may raise.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    except BrokerError:
        raise
    except Exception as error:
        raise internal(error) from error
    coroutine.close()
    raise BrokerError(f"{coroutine!r} suspended; a driver that does must not declare itself inline", ErrorCode.INTERNAL)
