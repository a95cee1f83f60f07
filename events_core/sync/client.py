"""A client whose calls block."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from events_core import creation, interface
from events_core.capabilities import Capabilities
from events_core.config import ConfigOverrides, EventConfig
from events_core.message import EventMessage, ReceivedMessage
from events_core.observing import Observer
from events_core.sync.calls import Calls
from events_core.sync.receiver import EventReceiver

__all__ = ["EventClient", "create_client"]

T = TypeVar("T")


class EventClient:
    """A client of one topic, whose calls block.

    It wraps a client of :mod:`events_core`, and each call does what the call of the same name does there: it follows
    the same rules and raises the same errors.  You may call it from any thread, and from several at the same time.

    A call blocks its thread until it has its result.  In a thread that runs an event loop, every call raises
    :class:`~events_core.EventRuntimeError` (``UNSUPPORTED``).  If the handler of a signal raises an exception, for
    example ``KeyboardInterrupt`` at Ctrl-C, a waiting call ends with it, as if it had been cancelled: a receive loses
    nothing, and a send may have stored its message or not.

    It connects on first use.  Use it with ``with``: at the end of the block the client closes, and waits up to 15
    seconds until the held messages are settled.  If the block raised, it waits up to 2 seconds.

    :param client: the client to wrap.  Coroutines may use it at the same time, in other threads.
    """

    def __init__(self, client: interface.EventClient) -> None:
        self._client = client
        self._calls = Calls()

    def __repr__(self) -> str:
        return f"<sync {self._client!r}>"

    @property
    def observer(self) -> Observer | None:
        """The observer of each operation (rule V1: observation); you may set it at any time."""
        return self._client.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._client.observer = observer

    @property
    def is_connected(self) -> bool:
        """The last known state of the connection, without I/O."""
        return self._client.is_connected

    @property
    def topic_name(self) -> str:
        """The topic, as configured."""
        return self._client.topic_name

    @property
    def project_id(self) -> str:
        """The project, as configured; ``""`` if there is none."""
        return self._client.project_id

    @property
    def capabilities(self) -> Capabilities:
        """The promises of this configuration, without I/O."""
        return self._client.capabilities

    @property
    def full_capabilities(self) -> Capabilities:
        """The capabilities of the backend's best configuration."""
        return self._client.full_capabilities

    def send_message(self, message: EventMessage) -> str:
        """Send one message, and return the id that receivers will see.

        The call returns when the broker has stored the message, at the latest after ``send_timeout`` seconds (rules P1,
        P7).  Threads that send at the same time share requests to the broker.  Errors are those of
        :meth:`events_core.EventClient.send_message`.
        """
        return self._calls.run(self._client.send_message(message))

    def send_messages(self, messages: Iterable[EventMessage]) -> list[str]:
        """Send several messages, and return their ids in the order of *messages* (rules P2, P3).

        Errors are those of :meth:`events_core.EventClient.send_messages`.
        """
        return self._calls.run(self._client.send_messages(messages))

    def subscribe(self, subscription: str | None = None) -> EventReceiver:
        """Join a subscription, and return its receiver, within ``connect_timeout`` seconds (rules Q1 to Q3).

        Write ``with client.subscribe("billing") as receiver:``, which closes the receiver at the end, or close it
        yourself.  Errors are those of :meth:`events_core.EventClient.subscribe`.
        """
        return EventReceiver(self._calls.run(self._client.subscribe(subscription)), self._calls)

    def delete_subscription(self, subscription: str) -> None:
        """Delete a subscription together with the messages that it has not delivered.

        Errors are those of :meth:`events_core.EventClient.delete_subscription`.
        """
        self._calls.run(self._client.delete_subscription(subscription))

    def ping(self, timeout: float = 5.0) -> float:
        """Ask the broker for an answer within *timeout* seconds, and return how many seconds it took.

        Errors are those of :meth:`events_core.EventClient.ping`.
        """
        return self._calls.run(self._client.ping(timeout))

    def run_native(self, work: Callable[[Any], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with the broker's own connection, await it, and return its result (rule N1: native objects).

        *work* is an ``async`` function here too, and runs where the backend runs.  Errors are those of
        :meth:`events_core.EventClient.run_native`.
        """
        return self._calls.run(self._client.run_native(work, timeout))

    def native_message(self, message: ReceivedMessage) -> Any:
        """Return the broker's own form of a message that a receiver of this client has returned.

        Errors are those of :meth:`events_core.EventClient.native_message`.
        """
        return self._client.native_message(message)

    def close(self, timeout: float = 15.0) -> None:
        """Close the receivers, finish the accepted sends, then close the connection (rules C2, C3).

        All this takes *timeout* seconds at most, or 2 seconds if *timeout* is shorter.  You may call it again, and in
        several threads.  Calls that other threads make meanwhile end with ``CLOSED``, and so does every later call.

        :raises ValueError: if *timeout* is NaN, or more than a float can hold; nothing is closed then.
        """
        self._calls.run(self._client.close(timeout))
        # Last, and only if the client has closed: a timeout that is no number closes nothing.
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # It knows how long to wait after an error.
        self._calls.run(self._client.__aexit__(kind, error, trace))
        self._calls.close()


def create_client(
    config: EventConfig | str,
    *,
    file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    **overrides: Unpack[ConfigOverrides],
) -> EventClient:
    """Construct a client whose calls block; arguments and errors are those of :func:`events_core.create_client`."""
    return EventClient(creation.create_client(config, file=file, environ=environ, **overrides))
