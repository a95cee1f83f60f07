"""A receiver whose calls block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from events_core import interface
from events_core.capabilities import Capabilities
from events_core.interface import ReceiverStats
from events_core.message import ReceivedMessage
from events_core.sync.calls import Calls

__all__ = ["EventReceiver"]


class EventReceiver:
    """One receiver of a subscription, whose calls block.  Get it from :meth:`EventClient.subscribe`.

    ``for message in receiver`` receives until the receiver is closed.  An error that the iteration raises does not end
    the receiver: you may iterate again.  At the end of ``with``, the receiver closes with ``timeout=0``.

    Several threads may receive and settle at the same time, and no delivery goes to two of them (rule R4: concurrent
    receives).
    """

    def __init__(self, receiver: interface.EventReceiver, calls: Calls) -> None:
        self._receiver = receiver
        self._calls = calls

    @property
    def subscription(self) -> str:
        """Name of the subscription, also if it is ephemeral."""
        return self._receiver.subscription

    @property
    def capabilities(self) -> Capabilities:
        """The promises that the broker confirmed for this subscription."""
        return self._receiver.capabilities

    @property
    def stats(self) -> ReceiverStats:
        """The state of the receiver now, without I/O."""
        return self._receiver.stats

    def receive_message(self, timeout: float | None = None) -> ReceivedMessage | None:
        """Wait for a message, and return it; ``None`` if *timeout* seconds ran out (rule R1: timeouts).

        Without a timeout, the call waits until a message comes, or another thread closes the receiver.  Errors are
        those of :meth:`events_core.EventReceiver.receive_message`.
        """
        return self._calls.run(self._receiver.receive_message(timeout))

    def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
        """Wait for a message, and return 1 to *limit* messages that are there; ``[]`` if *timeout* seconds ran out.

        This is rule R2: batches.  Errors are those of :meth:`events_core.EventReceiver.receive_messages`.
        """
        return self._calls.run(self._receiver.receive_messages(limit, timeout))

    def __iter__(self) -> Iterator[ReceivedMessage]:
        """Return an iterator that receives until the receiver is closed, also after it has raised an error."""
        return _Messages(aiter(self._receiver), self._calls)

    def acknowledge(self, message: ReceivedMessage | str) -> None:
        """Settle a delivery as done, so that the message does not come again (rules S1, S2).

        Errors are those of :meth:`events_core.EventReceiver.acknowledge`.
        """
        self._calls.run(self._receiver.acknowledge(message))

    def acknowledge_messages(self, messages: Iterable[ReceivedMessage | str]) -> None:
        """Acknowledge several deliveries (rule S4: batches).

        Errors are those of :meth:`events_core.EventReceiver.acknowledge_messages`.
        """
        self._calls.run(self._receiver.acknowledge_messages(messages))

    def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
        """Settle a delivery as failed, so that the message comes again after *delay* seconds (rules R10, R11).

        Errors are those of :meth:`events_core.EventReceiver.nack`.
        """
        self._calls.run(self._receiver.nack(message, delay=delay))

    def nack_messages(self, messages: Iterable[ReceivedMessage | str], *, delay: float | None = None) -> None:
        """Nack several deliveries (rule S4: batches).

        Errors are those of :meth:`events_core.EventReceiver.nack_messages`.
        """
        self._calls.run(self._receiver.nack_messages(messages, delay=delay))

    def reject(self, message: ReceivedMessage | str, reason: str = "") -> None:
        """Settle a delivery as hopeless: the message goes to the dead-letter topic at once (rule S6: rejecting).

        Errors are those of :meth:`events_core.EventReceiver.reject`.
        """
        self._calls.run(self._receiver.reject(message, reason))

    def hand_back(self, message: ReceivedMessage) -> None:
        """Give a message back that was not processed, so that it comes again at once.

        Errors are those of :meth:`events_core.EventReceiver.nack`.
        """
        self._calls.run(self._receiver.hand_back(message))

    @contextmanager
    def processing(self, message: ReceivedMessage) -> Iterator[ReceivedMessage]:
        """Settle *message* when the body of ``with`` ends (rules H1, H3).

        If the body succeeds, the message is acknowledged.  If it raises, the message is nacked, and the exception goes
        on.  If it raises :class:`~events_core.Reject` or :class:`~events_core.RetryAfter`, the message is settled as
        that exception says.

        ``KeyboardInterrupt`` and ``SystemExit`` end the program, and are no failure of the body: the message is handed
        back.  It is also handed back, at the receiver's next call, if the ``with`` is in a generator that is closed.

        :raises AcknowledgeError: if acknowledging failed for another reason than expiry.
        """
        try:
            # In this thread, so that the body finds what the observer puts into its context.
            with self._receiver.observe_processing(message):
                yield message
        except GeneratorExit:
            # Perhaps of the garbage collector, in any thread.  So nothing may block here.
            self._receiver.abandon(message)
            raise
        except BaseException as error:
            # The end of a program is the cancellation of a program without an event loop.
            ends = isinstance(error, (KeyboardInterrupt, SystemExit))
            self._settle_processed(message, asyncio.CancelledError() if ends else error)
            raise
        self._settle_processed(message, None)

    def _settle_processed(self, message: ReceivedMessage, error: BaseException | None) -> None:
        self._calls.run(interface.settle_processed(self._receiver, message, error))

    def close(self, timeout: float = 15.0) -> None:
        """Stop receiving, wait until the held messages are settled, and hand the rest back (rule C1: closing).

        Receives that wait in other threads raise ``CLOSED`` at once, and iterations end.  The call ends within
        *timeout* seconds, or within 2 seconds if *timeout* is shorter.  You may call it again, and in several threads.

        :raises ValueError: if *timeout* is NaN, or more than a float can hold; nothing is closed then.
        """
        self._calls.run(self._receiver.close(timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.run(self._receiver.__aexit__(kind, error, trace))


class _Messages(Iterator[ReceivedMessage]):
    """An iterator over messages, which goes on after an error if the asynchronous one does."""

    def __init__(self, messages: AsyncIterator[ReceivedMessage], calls: Calls) -> None:
        self._messages = messages
        self._calls = calls

    def __next__(self) -> ReceivedMessage:
        try:
            # A backend's iterator may return an awaitable that is no coroutine, of which no task can be made.
            return self._calls.run(_next(self._messages))
        except StopAsyncIteration:
            raise StopIteration from None


async def _next(messages: AsyncIterator[ReceivedMessage]) -> ReceivedMessage:
    return await anext(messages)
