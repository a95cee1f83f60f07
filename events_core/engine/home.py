"""Where a driver's coroutines run: in the caller's thread, or on the loop of a thread (``loop_thread.py``)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from events_core.engine.driver import BrokerError
from events_core.engine.failure import internal
from events_core.errors import ErrorCode

__all__ = ["CLOSE_GRACE", "Home", "InlineHome", "step"]

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
    async def end_tasks(self) -> None:
        """Begin nothing more, and end every task that is left; from here."""

    @abstractmethod
    async def stop(self) -> None:
        """Use it no more; from here, after :meth:`end_tasks`."""

    @abstractmethod
    def join(self) -> None:
        """Return when nothing remains of what :meth:`stop` has ended."""


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

    async def end_tasks(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def join(self) -> None:
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
