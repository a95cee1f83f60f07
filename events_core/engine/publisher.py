"""The part of a client's sending side that is the same for every home (P1 to P8).

Before a send awaits anything, it is checked and takes its place among the sends of its key, in the caller's thread.
That fixes the order (P4).  A large send, of more than :data:`AT_ONCE` messages, gives way to other tasks while it is
checked and queued.  Keyed sends that begin in the same loop in that time wait for their turn (``loop_order.py``).

:class:`~events_core.engine.batching_publisher.BatchingPublisher` gathers, retries and bounds the sends for a driver on
a thread.  :class:`~events_core.engine.inline_publisher.InlinePublisher` stores them at once, in the caller's thread.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from events_core.engine.bounds import Bounds
from events_core.engine.driver import BrokerError, Driver
from events_core.engine.home import Home
from events_core.engine.loop_order import LoopOrder
from events_core.engine.message_check import MessageCheck
from events_core.engine.recipients import Recipients
from events_core.engine.waiting import Waiter
from events_core.errors import ErrorCode, EventRuntimeError
from events_core.message import EventMessage

__all__ = ["AT_ONCE", "Connect", "Publisher", "Results", "parts", "unconfirmed"]

T = TypeVar("T")
Results: TypeAlias = Sequence[str | BrokerError]
"""The id of each message, or why it was not stored."""
Connect: TypeAlias = Callable[[float], Awaitable[None]]
"""A function that connects the client.  It gets the ``time.monotonic()`` at which it must have ended, and raises
:class:`BrokerError` if there is no connection by then."""

AT_ONCE = 1000
"""The number of messages that are checked, queued or stored before other tasks of the loop have their turn (P6).  That
takes a few milliseconds."""


def parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split *items* into parts of :data:`AT_ONCE`, between which other tasks may have their turn."""
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


def unconfirmed() -> BrokerError:
    """Return the failure of a send that was not complete when the time of a close was over."""
    return BrokerError("the client was closed before the broker confirmed", ErrorCode.CLOSED, retryable=True)


class Publisher(ABC):
    """The sending side of one client.

    ``_lock`` guards the fields that the callers' threads and the home share.  ``closed`` is one of them, and only
    changes from False to True.  A send may read an old value without the lock.  So it looks again under the lock.
    """

    def __init__(self, driver: Driver[Any], home: Home) -> None:
        self._driver = driver
        self._home = home
        self._recipients = Recipients(driver, home)
        self._send_timeout: float = driver.options.send_timeout
        self._check = MessageCheck(driver)
        self._bounds = Bounds(driver.options)
        self._lock = threading.Lock()
        self.order = LoopOrder()
        self.closed = False
        # Changes once.  A send that still reads False waits for the connection, which is there already.
        self._opened = False
        # For the subscriptions that receive the first message.
        self._has_looked = self._is_looking = False
        self._drained: Waiter | None = None
        self._flush_by = math.inf

    def send(self, messages: Sequence[EventMessage], connect: Connect) -> Coroutine[Any, Any, Results]:
        """Return a coroutine that sends *messages* and returns a result for each.

        The call itself may check and queue them already: await the coroutine at once.  This is no coroutine, because
        thousands of sends may wait at the same time, and each would keep one coroutine more.

        :param connect: connects the client if it is not connected yet.  It is no attribute, because a cycle of
            references would keep an unused client from being collected at once.
        :raises PublishError: ``INVALID`` for the first message that is refused; ``EXHAUSTED`` beyond the bounds.
        :raises EventRuntimeError: ``UNSUPPORTED`` for a key if there is no order; ``CLOSED``.
        """
        # ``lines`` is nearly always empty, and this runs for each send.
        if len(messages) > AT_ONCE or (self.order.lines and self._must_wait(messages)):
            return self._send_gently(messages, connect)
        return self._send(messages, connect)

    def extended(
        self, messages: Sequence[EventMessage], extended: Mapping[int, EventMessage]
    ) -> Sequence[EventMessage]:
        """Return *messages*, replaced by those in *extended*, as far as these can be sent (V1).

        :param extended: messages to which an observer has added attributes, by their place.
        """
        sending = list(messages)
        for index, message in extended.items():
            if self._check.fits(message):
                sending[index] = message
        return sending

    def _must_wait(self, messages: Sequence[EventMessage]) -> bool:
        """Return whether *messages* would overtake a large send that is being queued in the running loop (P4)."""
        return self.order.is_here and any(getattr(message, "ordering_key", None) is not None for message in messages)

    @abstractmethod
    def _send(self, messages: Sequence[EventMessage], connect: Connect) -> Coroutine[Any, Any, Results]:
        """Do what :meth:`send` does, without giving way to other tasks until *messages* have their place."""

    @abstractmethod
    async def _send_gently(self, messages: Sequence[EventMessage], connect: Connect) -> Results:
        """Do what :meth:`send` does for a send that waits for its turn, and give way to other tasks."""

    async def _sizes(self, messages: Sequence[EventMessage]) -> list[int]:
        """Check *messages* and return their sizes; give way to other tasks."""
        sizes: list[int] = []
        for part in parts(messages):
            await asyncio.sleep(0)
            sizes += [self._check.size(index, message) for index, message in enumerate(part, len(sizes))]
        return sizes

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise EventRuntimeError("the client is closed", code=ErrorCode.CLOSED)

    # Connecting

    def watch(self) -> None:
        """Make sure that sends end at their deadline, also while nothing connects; at home."""

    def unreached(self, error: BrokerError) -> None:
        """Remember the reason why there is no connection yet; at home."""

    def open(self) -> None:
        """Remember that the driver is open; at home."""
        self._opened = True

    # Recipients of what is sent

    def _look_once(self) -> None:
        """After the first message was stored, look for a subscription that receives it; at home."""
        if not self._has_looked:
            self._has_looked = self._is_looking = True
            self._home.spawn(self._look())

    async def _look(self) -> None:
        """Warn if the topic has no subscription.  A close waits for the end of this."""
        # This ``finally`` may take the lock: the home ends its tasks itself, so the garbage collector never does.
        try:
            await self._recipients.check()
        finally:
            with self._lock:
                self._is_looking = False
                self._wake_drained()

    # Closing (closing.py)

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Return whether a send that was accepted is not complete."""

    @abstractmethod
    def _end_all(self) -> None:
        """Complete what is left with ``CLOSED``."""

    async def flush(self, timeout: float) -> None:
        """Accept nothing more and wait for what was accepted; what is unfinished then fails with ``CLOSED``.

        If it is cancelled, nothing fails: :meth:`flush` must be called again.
        """
        with self._lock:
            self.closed = True
        self.hasten_flush(timeout)
        while (drained := self._undrained()) is not None:
            await drained.wait(self._flush_by - time.monotonic())
        self._end_all()

    def hasten_flush(self, timeout: float) -> None:
        """Let a flush wait for *timeout* seconds more at most: the least patient caller decides."""
        with self._lock:
            self._flush_by = min(self._flush_by, time.monotonic() + timeout)
            self._wake_drained()

    def _undrained(self) -> Waiter | None:
        """Return a waiter that is woken when a send ends; ``None`` if no send is left, or no time."""
        with self._lock:
            is_over = not (self.is_busy or self._is_looking) or time.monotonic() >= self._flush_by
            self._drained = None if is_over else Waiter()
            return self._drained

    def _wake_drained(self) -> None:
        """Let a flush look again whether all is over.  Under the lock."""
        if self._drained is not None:
            self._drained.wake()
