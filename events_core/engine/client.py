"""The client of every backend on the engine: an :class:`EventClient` over a driver.

A client may be used from any thread and loop.  It connects when it is first used, and every later step looks whether it
has been closed since.  Its own state has few fields, and most are read without a lock:

* ``_starting`` is the only lock.  It is held when the client begins to connect and when it begins to close, so that
  one of them sees the other.
* ``_process``, ``_opened``, ``_closed`` and ``_ending`` change once.  A thread that reads an old value of one of them
  goes on, and finds the new one at its next step: under the lock, or at home.
* ``_receivers`` is copied before it is iterated, because other threads add and discard.

The order of closing is written in ``closing.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from events_core.arguments import checked_name, checked_seconds
from events_core.capabilities import Capabilities
from events_core.engine.backoff import Backoff
from events_core.engine.batching_publisher import BatchingPublisher
from events_core.engine.closing import SHORTEST_CLOSE, CloseTime
from events_core.engine.dead_letter_topic import DeadLetterTopic
from events_core.engine.driver import BrokerError, Delivery, Driver, Outcome
from events_core.engine.failure import UNFORESEEN, internal
from events_core.engine.home import Home, InlineHome
from events_core.engine.inline_publisher import InlinePublisher
from events_core.engine.inline_receiver import InlineReceiver
from events_core.engine.link import Link
from events_core.engine.loop_thread import ThreadHome
from events_core.engine.maintenance import maintain
from events_core.engine.publisher import Publisher, parts
from events_core.engine.receiver import EngineReceiver
from events_core.engine.surroundings import Surroundings
from events_core.engine.translation import translate
from events_core.engine.waiting import SingleFlight, WaitingRoom
from events_core.errors import (
    ConfigurationError,
    ErrorCode,
    EventConnectionError,
    EventError,
    EventRuntimeError,
    PublishError,
    ReceiveError,
)
from events_core.interface import EventClient, EventReceiver
from events_core.joining import joins
from events_core.message import EventMessage, ReceivedMessage
from events_core.observing import UNOBSERVED, Operation, OperationName, OutcomeName, observed
from events_core.options import read_options

if TYPE_CHECKING:
    from events_core.config import EventConfig

__all__ = ["EngineClient"]

T = TypeVar("T")
_log = logging.getLogger("events_core.engine")

_CONNECT_PAUSE = 2.0
"""Longest pause, in seconds, before the next try to connect.  It is short, because a caller waits for each try."""

_HOMEWARD = 1.0
"""Seconds that a caller waits for its home after the time for the broker is over.  The home knows the reason for the
failure, so its answer is better than the caller's own.  On a busy machine, the home's thread may be late."""

_OUTCOMES: Mapping[Outcome | None, OutcomeName] = {
    None: "",
    Outcome.ACK: "ack",
    Outcome.NACK: "nack",
    Outcome.REJECT: "reject",
    Outcome.RETURN: "return",
}
"""The names of outcomes for an observer."""

_forks = 0
"""Number of forks between the first process and this one.  A client that started with another number is inherited."""


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


def _warn_unclosed(name: str, process: int) -> None:
    """Warn of a client that is gone and was never closed.

    The garbage collector may run this in any thread, perhaps under a lock.  So it takes no lock, does no I/O and logs
    nothing.  Like asyncio, it leaves it to the filters for warnings whether anything is written.
    """
    if process == _forks:  # a forked child can neither use nor close what it has inherited
        warnings.warn(
            f"unclosed client {name}: use it with 'async with' or 'with', or call its close()",
            ResourceWarning,
            stacklevel=1,
        )


class EngineClient(EventClient):
    """The base class of a backend's client.  A backend fills in the class attributes, and the engine does the rest.

    Besides :attr:`driver_class`, a backend states its own :attr:`~events_core.EventClient.api_version`,
    ``options_class`` and ``full_capabilities``.
    """

    driver_class: ClassVar[type[Driver[Any]]]
    """The class of the broker's side."""

    def __init__(self, config: EventConfig) -> None:
        self._backend = config.backend or type(self).__name__
        self._topic_name = config.topic_name
        self._project_id = config.project_id
        options = read_options(
            self.options_class,
            config.options,
            origins=config.origins,
            backend=self._backend,
            topic_name=config.topic_name,
        )
        try:
            self._driver = self.driver_class(config.topic_name, config.project_id, options)
        except ConfigurationError as error:
            raise error.located(self._backend, config.topic_name) from error.__cause__
        self.check_requirements(config)
        self._options = options
        name = f"{self._backend} {config.topic_name}"
        self._link = Link(name, self._driver.longest_pause)
        self._driver.connection_restored = self._link.retry
        self._dead_letter_topic = DeadLetterTopic(self._driver)
        self._home: Home
        self._publisher: Publisher
        if self.driver_class.inline:
            self._home = InlineHome()
            self._publisher = InlinePublisher(self._driver, self._home)
            self._receiver_class: type[EngineReceiver] = InlineReceiver
        else:
            self._home = ThreadHome(private=f"events {name}" if self.driver_class.blocking else None)
            self._publisher = BatchingPublisher(self._driver, self._home, self._link)
            self._receiver_class = EngineReceiver
        self._publisher.unreached(BrokerError(f"{self._connecting}: no answer", ErrorCode.TIMEOUT, retryable=True))
        self._receivers: set[EngineReceiver] = set()
        self._opening = SingleFlight(self._home.run)
        self._closing = SingleFlight(self._home.run)
        self._starting = threading.Lock()
        self._pausing = WaitingRoom()
        self._process: int | None = None
        self._unclosed: weakref.finalize[..., EngineClient] | None = None
        self._opened = False
        self._close_time = CloseTime()
        self._ending = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._backend} {self._topic_name!r}>"

    @property
    def is_connected(self) -> bool:
        # Without a lock: each part is one read, and the answer is the last known state, which may be old when it
        # arrives.  A forked child inherits a link that is up, so it must look at its process.
        return self._link.is_up and not self._publisher.closed and self._process == _forks

    @property
    def topic_name(self) -> str:
        return self._topic_name

    @property
    def project_id(self) -> str:
        return self._project_id

    @property
    def capabilities(self) -> Capabilities:
        return self._driver.capabilities

    # Sending

    async def send_message(self, message: EventMessage) -> str:
        try:
            if self.observer is None:  # observing costs as much as checking the message
                self._check()
                return self._only(await self._publisher.send([message], self._open))
            with self._observed_publish([message]) as operation:
                self._check()
                sending = self._extended([message], operation)
                message_id = self._only(await self._publisher.send(sending, self._open))
                if operation is not None:
                    operation.message_ids = [message_id]
                return message_id
        except EventError as error:
            raise error.located(self._backend, self._topic_name) from error.__cause__

    async def send_messages(self, messages: Iterable[EventMessage]) -> list[str]:
        batch = list(messages)
        if not batch:
            self._check()
            return []
        try:
            if self.observer is None:
                self._check()
                return await self._all(await self._publisher.send(batch, self._open))
            with self._observed_publish(batch) as operation:
                self._check()
                sending = self._extended(batch, operation)
                message_ids = await self._all(await self._publisher.send(sending, self._open))
                if operation is not None:
                    operation.message_ids = message_ids
                return message_ids
        except EventError as error:
            raise error.located(self._backend, self._topic_name) from error.__cause__

    def _observed_publish(self, messages: Sequence[EventMessage]) -> AbstractContextManager[Operation | None]:
        # The check refuses what is no message, so that an observer need not expect it.
        outgoing = tuple(messages) if all(isinstance(message, EventMessage) for message in messages) else ()
        return self._observed("publish", messages=len(messages), outgoing=outgoing)

    def _extended(self, messages: Sequence[EventMessage], operation: Operation | None) -> Sequence[EventMessage]:
        """Return *messages* with the attributes that the observer has added (V1)."""
        if operation is None or not operation.extended:
            return messages
        return self._publisher.extended(messages, operation.extended)

    def _only(self, results: Sequence[str | BrokerError]) -> str:
        (result,) = results
        if isinstance(result, BrokerError):
            raise self._translated(result, PublishError)
        return result

    async def _all(self, results: Sequence[str | BrokerError]) -> list[str]:
        """Return the ids, or raise one error for all messages that failed (P3)."""
        ids = [result for result in results if isinstance(result, str)]
        if len(ids) == len(results):
            return ids
        failed = [result for result in results if isinstance(result, BrokerError)]
        first = next((error for error in failed if error.code is not ErrorCode.NOT_ATTEMPTED), failed[0])
        told: list[str | EventError] = []
        for part in parts(results):
            if told:
                await asyncio.sleep(0)  # 100,000 errors take a fifth of a second
            told += [
                self._translated(result, PublishError) if isinstance(result, BrokerError) else result for result in part
            ]
        error = PublishError(
            f"{len(failed)} of {len(results)} messages were not sent; message {results.index(first)}: {first}",
            code=first.code,
            retryable=all(other.retryable for other in failed),
            results=told,
        )
        raise error from first.__cause__

    # Subscribing

    @joins
    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        self._check()
        given = None if subscription is None else checked_name("subscription", subscription)
        name = given or self._options.subscription
        ends = time.monotonic() + self._options.connect_timeout
        try:
            await self._open(ends)
            return await self._ask(self._subscribe(name, ends), ends, "subscribe", orphaned=self._discard)
        except BrokerError as error:
            raise self._translated(error, ReceiveError, connecting=True) from error.__cause__

    async def _subscribe(self, name: str | None, ends: float) -> EngineReceiver:
        await self._bounded(self._dead_letter_topic.ensure_subscribed, ends, "subscribe")
        waiting = WaitingRoom()
        receiver = self._receiver_class(
            await self._bounded(lambda: self._driver.subscribe(name, waiting.wake), ends, "subscribe"),
            waiting,
            self._surroundings(ephemeral=name is None),
        )
        self._receivers.add(receiver)
        # Look after adding.  A close that did not find the receiver has set the flag before, so it is seen here.
        if self._publisher.closed:
            receiver.hasten_close(0)
            await receiver.end()
            raise BrokerError("the client was closed meanwhile", ErrorCode.CLOSED)
        return receiver

    def _surroundings(self, *, ephemeral: bool) -> Surroundings:
        # Made for each receiver.  If the client kept it, the two would be a reference cycle.
        return Surroundings(
            home=self._home,
            link=self._link,
            options=self._options,
            settle_limit=self._driver.max_settle_batch,
            settle_unit=self._driver.settle_unit,
            check_process=self._check_process,
            is_observed=lambda: self.observer is not None,
            observed=partial(self._observed, ephemeral=True) if ephemeral else self._observed,
            located=lambda error: error.located(self._backend, self._topic_name),
            forget=self._receivers.discard,
        )

    def _discard(self, receiver: EngineReceiver) -> None:
        """Close a receiver whose caller is gone; at home.

        If the client closes before this task has started, it finds the receiver among its own and closes it.
        """
        self._home.spawn(receiver.close(timeout=0))

    async def delete_subscription(self, subscription: str) -> None:
        self._check()
        checked_name("subscription", subscription)
        ends = time.monotonic() + self._options.connect_timeout
        try:
            await self._open(ends)
            what = "delete_subscription"
            await self._ask(
                self._bounded(lambda: self._driver.delete_subscription(subscription), ends, what), ends, what
            )
        except BrokerError as error:
            raise self._translated(error, ReceiveError, connecting=True) from error.__cause__

    async def ping(self, timeout: float = 5.0) -> float:
        self._check()
        began = time.monotonic()
        ends = began + checked_seconds("timeout", timeout)
        try:
            await self._open(ends, retries=False)
            await self._ask(self._bounded(self._driver.ping, ends, "ping"), ends, "ping")
        except BrokerError as error:
            if error.retryable:
                self._link.down(error)
            raise self._translated(error, EventConnectionError) from error.__cause__
        self._link.up()
        return time.monotonic() - began

    # The broker's own objects

    async def run_native(self, work: Callable[[Any], Awaitable[T]], timeout: float = 30.0) -> T:
        self._check()
        ends = time.monotonic() + checked_seconds("timeout", timeout)
        failures: list[Exception] = []
        has_begun = False

        async def kept(connection: Any) -> T | None:
            nonlocal has_begun
            has_begun = True
            # A failure of *work* belongs to the application.  It travels apart, so that it is not taken for a failure
            # of the driver.
            try:
                async with asyncio.timeout(ends - time.monotonic()):
                    return await work(connection)
            except Exception as error:
                failures.append(error)
                return None

        async def run() -> T | None:
            try:
                return await self._driver.run_native(kept)
            except BrokerError:
                raise
            except UNFORESEEN as error:
                raise internal(error, "run_native: ") from error

        try:
            await self._open(ends)
            result = await self._ask(run(), ends, "run_native")
        except BrokerError as error:
            if has_begun and error.code is ErrorCode.TIMEOUT:  # the work blocks its thread, or that is late
                raise TimeoutError(str(error)) from error
            raise self._translated(error, EventConnectionError) from error.__cause__
        if failures:
            raise failures[0]
        return cast("T", result)

    def native_message(self, message: ReceivedMessage) -> Any:
        delivery = getattr(message, "delivery", None)
        if not isinstance(delivery, Delivery):
            raise TypeError(f"only a message from a receiver has a native form, not a {type(message).__name__}")
        try:
            return self._driver.native_message(delivery)
        except BrokerError as error:
            raise self._translated(error, EventRuntimeError) from error.__cause__

    # Connecting

    async def _open(self, ends: float, *, retries: bool = True) -> None:
        """Connect unless connected.

        :param ends: the ``time.monotonic()`` until which to try.
        :param retries: True to try again after a failure that is retryable.
        :raises BrokerError: when it failed.
        """
        backoff = Backoff(maximum=_CONNECT_PAUSE)
        lost: BrokerError | None = None
        while not self._opened:
            try:
                self._start()
                await self._connected(ends)
            except BrokerError as error:
                pause = next(backoff)
                if not (retries and error.retryable) or time.monotonic() + pause > ends:
                    raise _late(error, lost) from error.__cause__
                self._link.unreachable(error)
                lost = error
                await self._pause(pause)

    def _start(self) -> None:
        """Start the home, unless the client is closed.

        :raises BrokerError: ``CLOSED``, or ``EXHAUSTED`` if the process may have no more threads.
        """
        # Under the lock: a close that comes before makes this raise, and a close that comes after finds a home to stop.
        with self._starting:
            if self._closed:
                raise BrokerError("the client is closed", ErrorCode.CLOSED)
            self._home.start()
            self._home.wake(self._publisher.watch)  # sends must end in time also if nothing ever connects
            if self._process is None:
                self._process = _forks
                # No __del__: tasks at home keep a client with receivers until the program ends, and an object that is
                # alive then is not deleted.  A finalizer also runs at the end of the program.
                self._unclosed = weakref.finalize(self, _warn_unclosed, repr(self), _forks)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try to connect, at most until the client is closed."""
        waiter = self._pausing.enter(0)  # the only event of this room is the end of the client
        if waiter is None:
            return
        await self._pausing.wait(waiter, seconds)

    async def _connected(self, ends: float) -> None:
        """Connect, or wait for another caller that is connecting."""
        try:
            await self._opening.run(
                lambda: self._connect(ends),
                lambda: self._opened or self._closed,
                ends - time.monotonic() + _HOMEWARD,
            )
        except TimeoutError as error:
            raise _unanswered(self._connecting) from error

    @property
    def _connecting(self) -> str:
        """Return the name of connecting, for errors."""
        return f"connect to {self._driver.address}" if self._driver.address else "connect"

    async def _connect(self, ends: float) -> None:
        by = min(ends, time.monotonic() + self._options.connect_timeout)
        try:
            await self._bounded(self._driver.open, by, self._connecting)
        except BrokerError as error:
            self._publisher.unreached(error)
            raise
        self._opened = True
        self._link.up()
        self._publisher.open()
        if self._driver.maintenance_interval is not None and not self._driver.inline:
            # By a weak reference: otherwise the task would keep a client that nobody has closed.
            self._home.spawn(maintain(self._driver, self._home, weakref.ref(self)), "maintenance")

    async def _ask(
        self,
        operation: Coroutine[Any, Any, T],
        ends: float,
        what: str,
        orphaned: Callable[[T], None] | None = None,
    ) -> T:
        """Run *operation* at home, where its time is bounded.  Bound the wait too, because the home may hang."""
        try:
            return await self._home.run(operation, orphaned, timeout=ends - time.monotonic() + _HOMEWARD)
        except TimeoutError as error:
            raise _unanswered(what) from error

    async def _bounded(self, operation: Callable[[], Awaitable[T]], ends: float, what: str) -> T:
        """Await a driver's *operation* until *ends*; at home.

        :raises BrokerError: for everything that the driver raises, and when there is no answer in time.
        """
        try:
            async with self._home.timeout(ends - time.monotonic()):
                return await operation()
        except TimeoutError as error:
            raise _unanswered(what) from error
        except BrokerError:
            raise
        except UNFORESEEN as error:
            raise internal(error, f"{what}: ") from error

    def _observed(
        self,
        name: OperationName,
        *,
        subscription: str = "",
        messages: int = 0,
        outgoing: Sequence[EventMessage] = (),
        received: Sequence[ReceivedMessage | str] = (),
        outcome: Outcome | None = None,
        ephemeral: bool = False,
    ) -> AbstractContextManager[Operation | None]:
        observer = self.observer  # another thread may change it
        if observer is None:
            return UNOBSERVED
        return observed(
            observer,
            name,
            backend=self._backend,
            topic_name=self._topic_name,
            subscription=subscription,
            messages=messages,
            outgoing=outgoing,
            received=[message for message in received if not isinstance(message, str)],
            outcome=_OUTCOMES[outcome],
            ephemeral=ephemeral,
            address=self._driver.address,
        )

    def _translated(self, error: BrokerError, kind: type[EventError], *, connecting: bool = False) -> EventError:
        return translate(error, kind, connecting=connecting).located(self._backend, self._topic_name)

    # Closing (closing.py)

    async def close(self, timeout: float = 15.0) -> None:
        self._check_process()
        timeout = checked_seconds("timeout", timeout)
        ends = time.monotonic() + max(timeout, SHORTEST_CLOSE)
        with self._starting:
            self._close_time.hasten(timeout)
            self._closed = self._closed or self._process is None
            if self._unclosed is not None:
                self._unclosed.detach()  # the caller has done its part, however this ends
        if self._process is None:
            await self._publisher.flush(0)
            return
        # Another caller may be closing with more patience.  The shortest timeout counts for all.
        self._publisher.hasten_flush(self._close_time.patience())
        for receiver in tuple(self._receivers):
            receiver.hasten_close(timeout)
        try:
            await self._closing.run(lambda: self._shut(timeout), lambda: self._closed, ends - time.monotonic())
        except TimeoutError:
            await self._home.overdue(self._end, repr(self))
            await self._give_up()
        except BrokerError:
            pass  # another caller has closed it
        await self._home.ended(ends - time.monotonic())

    async def _shut(self, timeout: float) -> None:
        """Flush the sends and close the receivers, then end; at home."""
        closing = [receiver.close(timeout) for receiver in tuple(self._receivers)]
        flushing = self._publisher.flush(self._close_time.patience())
        try:
            await asyncio.gather(flushing, *closing, return_exceptions=True)
        except asyncio.CancelledError:
            # Home is ending its tasks.  That ends the patience, but what is open must still be closed.
            await self._end()
            raise
        await self._end()

    async def _end(self) -> None:
        """Close all that is still open, once; at home."""
        with self._starting:
            if self._ending:
                return
            self._ending = True
            self._close_time.begin()
        await self._publisher.flush(0)
        ended: set[EngineReceiver] = set()
        while left := self._receivers - ended:  # a subscribe that is under way may add one
            for receiver in left:
                receiver.hasten_close(0)
                await receiver.end()
            ended |= left
        await self._home.end_tasks(self._close_time.step())
        await self._home.close_quietly(self._driver.close(), repr(self), self._close_time.step())
        self._link.closed()
        await self._home.stop(self._close_time.step())
        # Last: other callers of close() return when they see that the client is closed, and nothing may be left then.
        await self._give_up()

    async def _give_up(self) -> None:
        """Refuse every operation from now on, and fail those that wait; in any thread."""
        await self._publisher.flush(0)
        for receiver in tuple(self._receivers):
            receiver.give_up()
        self._closed = True
        self._pausing.wake_all()

    # Checks before each operation

    def _check(self) -> None:
        self._check_process()
        if self._publisher.closed:
            raise EventRuntimeError(
                "the client is closed", code=ErrorCode.CLOSED, backend=self._backend, topic_name=self._topic_name
            )

    def _check_process(self) -> None:
        if self._process is not None and self._process != _forks:
            raise EventRuntimeError(
                "the client was connected before a fork; create one in the child",
                code=ErrorCode.WRONG_PROCESS,
                backend=self._backend,
                topic_name=self._topic_name,
            )


def _late(error: BrokerError, lost: BrokerError | None) -> BrokerError:
    """Return *error*, which ended the tries to connect.  If it is a timeout, add the failure before it."""
    if lost is None or error.code is not ErrorCode.TIMEOUT:
        return error
    return BrokerError(f"{error}; last: {lost}", error.code, retryable=error.retryable)


def _unanswered(what: str) -> BrokerError:
    return BrokerError(f"{what}: no answer in time", ErrorCode.TIMEOUT, retryable=True)
