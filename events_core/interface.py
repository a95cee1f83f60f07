"""The contract as two abstract classes.  Every backend implements them, and every application may rely on them.

Docstrings name the rules of the published contract, as in "(rule R1: timeouts)".  Durations are ``float`` seconds, and
sizes are ``int`` bytes.  You may use clients and receivers from any thread and any running event loop, at the same time
(rule T1: threads).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import attrs

from events_core.capabilities import Capabilities
from events_core.errors import AcknowledgeError, ConfigurationError, ErrorCode, EventError, EventRuntimeError
from events_core.handling import Reject, RetryAfter
from events_core.joining import Joining, joins
from events_core.message import EventMessage, ReceivedMessage
from events_core.observing import UNOBSERVED, Observer
from events_core.options import CommonOptions
from events_core.requirements import Requirements

if TYPE_CHECKING:
    from events_core.config import EventConfig

__all__ = ["API_VERSION", "EventClient", "EventReceiver", "Joining", "Location", "ReceiverStats", "joins"]

T = TypeVar("T")
_log = logging.getLogger("events_core.receiver")

HAND_BACK_TIMEOUT = 5.0
"""Seconds for which a cancelled :meth:`EventReceiver.processing` waits to hand its message back."""

CLOSE_TIMEOUT_AFTER_ERROR = 2.0
"""Seconds in which a client closes after the body of its ``async with`` has raised.

It is short because the code that would settle the held messages has ended."""

_OVER = (ErrorCode.ALREADY_SETTLED, ErrorCode.CLOSED, ErrorCode.EXPIRED, ErrorCode.WRONG_PROCESS)
"""Codes after which a nack would fail, too."""

API_VERSION = 1
"""Version of this interface.  A backend states the version that it was written for as
:attr:`~events_core.EventClient.api_version`."""


class Location(NamedTuple):
    """The meaning of a URL's authority and path."""

    topic_name: str
    """The topic that the URL names."""
    project_id: str = ""
    """The project that it names, if any."""
    options: Mapping[str, str] = {}
    """Options that the location stands for, such as a path.  Options after the ``?`` of the URL take precedence."""


@attrs.frozen(kw_only=True)
class ReceiverStats:
    """The state of a receiver at one instant."""

    held: int
    """Number of messages that were handed out and are not settled.

    A message that is being settled counts until the broker has answered, also if the caller was cancelled.
    """
    buffered: int
    """Number of messages that were fetched and not handed out."""
    blocked_keys: int
    """Number of ordering keys whose buffered messages wait until a held one is settled."""
    reconnects: int
    """Number of times that the connection to the broker was lost and restored."""
    duplicates: int
    """Number of redeliveries that were suppressed because the message was held or buffered (rule R7: duplicates)."""
    last_message_age: float | None
    """Seconds since a message arrived; ``None`` before the first one."""
    last_alive_age: float | None
    """Seconds since the broker last answered; ``None`` before the first answer."""


class EventClient(ABC):
    """A client of one topic.

    It connects on first use.  Use it with ``async with``: at the end of the block the client closes, and waits up to 15
    seconds until the held messages are settled.  If the block raised, it waits up to 2 seconds.
    """

    api_version: ClassVar[int]
    """The :data:`~events_core.interface.API_VERSION` that the backend was written for.

    The class of each backend states it as a number.  A backend that inherited the number would always look current."""

    options_class: ClassVar[type[CommonOptions]] = CommonOptions
    """The class of the options that this backend understands."""

    full_capabilities: ClassVar[Capabilities]
    """The capabilities of the backend's best configuration.  No configuration promises more."""

    requirements: Requirements = Requirements()
    """The least that the configuration asks of the capabilities (rule O4: require).

    :meth:`check_requirements` sets it."""

    observer: Observer | None = None
    """The observer of each operation of this client and its receivers (rule V1: observation); you may set it at any
    time."""

    messaging_system: ClassVar[str] = ""
    """The broker's name in the semantic conventions of OpenTelemetry, such as ``gcp_pubsub``.  If it is ``""``, traces
    and metrics have the name of the backend."""

    trace_prefix: ClassVar[str] = ""
    """The prefix of attributes in which the broker's own clients keep the context of a trace, such as ``googclient_``;
    ``""`` if they add none.  Such attributes are then written and read in addition to those of W3C."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the result of ``subscribe`` work with ``async with``, also if the class defines it as ``async def``."""
        super().__init_subclass__(**kwargs)
        # Backends that were written before :class:`Joining` existed define a coroutine function.  The attribute of the
        # class, unlike its body, also has a function that a mixin defines.
        if inspect.iscoroutinefunction(cls.subscribe):
            cls.subscribe = joins(cls.subscribe)  # type: ignore[method-assign, assignment]

    @abstractmethod
    def __init__(self, config: EventConfig) -> None:
        """Validate *config*, without I/O, and without starting a thread or a task.

        :raises ConfigurationError: if *config* is wrong; the error names everything that is (rule O1: wrong options).
        """

    def check_requirements(self, config: EventConfig) -> None:
        """Remember what *config* requires, and compare it with the capabilities of this client (rule O4: require).

        ``create_client`` calls this method for every client, and so does the constructor of a client on the engine.

        :raises ConfigurationError: ``UNSUPPORTED``, naming the backend, and the rule of each requirement.
        """
        self.requirements = Requirements.read(config.require, config.backend or type(self).__name__)
        # Without requirements, do not read the capabilities: a backend may not know them yet.
        if self.requirements.each and (objection := self.requirements.objection(self.capabilities)):
            raise ConfigurationError(
                objection, code=ErrorCode.UNSUPPORTED, backend=config.backend, topic_name=config.topic_name
            )

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Return the meaning of a URL's *authority* and *path*, both percent-decoded.

        By default the authority is the project and the path is the topic: ``gcp://project/topic``.

        :raises ConfigurationError: if they name no topic.
        """
        topic_name = path.removeprefix("/")
        if not topic_name or "/" in topic_name:
            raise ConfigurationError(f"the path of the URL is {path!r}, not a topic; write backend://project/topic")
        return Location(topic_name, authority)

    @classmethod
    def scratch(
        cls, config: EventConfig
    ) -> AbstractContextManager[EventConfig | None] | AbstractAsyncContextManager[EventConfig | None]:
        """Return a context manager that makes a scratch place, on the broker of *config*, and removes it at its end.

        A trial such as ``events check`` works there.  The context manager yields the configuration of the place.  By
        default it yields ``None``, because the broker has no such place: a trial then leaves its topics behind.

        The context manager may be asynchronous.  Its ``__aenter__`` and ``__aexit__`` then run on the same event loop.
        The loop does not run between them, because the trial runs loops of its own.  So leave no task or connection
        open.

        :raises ConfigurationError: on entering, if the place cannot be made.
        """
        return nullcontext()

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """The last known state of the connection, without I/O.

        False before the first use, after :meth:`close`, and while the connection is known to be lost.
        """

    @property
    @abstractmethod
    def topic_name(self) -> str:
        """The topic, as configured."""

    @property
    @abstractmethod
    def project_id(self) -> str:
        """The project, as configured; ``""`` if there is none."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """The promises of this configuration, without I/O."""

    @abstractmethod
    async def send_message(self, message: EventMessage) -> str:
        """Send one message, and return the id that receivers will see.

        The call returns when the broker has stored the message, as durably as the capabilities declare (rule P1:
        stored when it returns).  Concurrent sends share requests to the broker (rule P5: batching).  Messages of one
        ordering key are stored in the order in which the calls began in one thread (rule P4: order per key).

        Transient failures are retried for ``send_timeout`` seconds (rule P7: retries).  A retry may store the message
        twice, unless ``capabilities.idempotent_publish``.  If the call is cancelled, the message is stored or not, and
        the client stays usable (rule P8: cancelled sends).

        :raises PublishError: ``INVALID`` for a message that the broker cannot take, before anything is sent.  After
            ``send_timeout``, the error of the last attempt with ``retryable=True``; a permanent error at once.
        :raises EventRuntimeError: ``UNSUPPORTED`` for an ordering key if ``capabilities.ordering`` is ``none``;
            ``CLOSED``; ``WRONG_PROCESS``.
        """

    @abstractmethod
    async def send_messages(self, messages: Iterable[EventMessage]) -> list[str]:
        """Send several messages, and return their ids in the order of *messages*.

        Every message is checked before any is sent (rule P2: batches).  Then every message is sent, in as many requests
        as the broker's limits ask for.  If some fail, the others are sent all the same, and one :class:`PublishError`
        has the outcome of each message in ``results`` (rule P3: partial failure).  After a failed message, the later
        ones of its key in this call are ``NOT_ATTEMPTED``.  With no messages, nothing is done.

        Errors and cancellation are as for :meth:`send_message`.
        """

    @abstractmethod
    def subscribe(self, subscription: str | None = None) -> Joining[EventReceiver]:
        """Join a subscription: the one named here, or the one of the configuration.

        Write ``async with client.subscribe("billing") as receiver:``, which closes the receiver at the end.  Or write
        ``receiver = await client.subscribe("billing")``, and close the receiver yourself (rule Q4: await or async
        with).

        A named subscription is durable, and all receivers of its name share it.  Without a name, here and in the
        configuration, the subscription is ephemeral: it gets what is sent after this call has returned, and it ends
        when the receiver is closed (rule Q1: subscriptions).  If the topic or the subscription is missing, the option
        ``create`` says whether it is created (rule Q2: creation).  The call ends within ``connect_timeout``.  If it is
        cancelled, no receiver stays open.

        A backend that does not use the engine decorates its ``async def subscribe`` with
        :func:`~events_core.interface.joins`.  If it does not, the base class does.

        :raises ReceiveError: ``NOT_FOUND``, ``PERMISSION_DENIED``, or ``INVALID`` for a subscription that
            contradicts the options; the message says what to do.
        :raises ValueError: if the name is empty or not valid text.
        :raises TypeError: if the name is not a ``str``.
        :raises EventConnectionError: if the broker cannot be reached.
        :raises EventRuntimeError: ``UNSUPPORTED`` for an option that the backend cannot fulfil, or if the subscription
            does not have what the configuration requires; ``CLOSED``; ``WRONG_PROCESS``.
        """

    @abstractmethod
    async def delete_subscription(self, subscription: str) -> None:
        """Delete a subscription together with the messages that it has not delivered.

        :raises ReceiveError: ``NOT_FOUND`` if there is no such subscription.
        :raises ValueError: if the name is empty or not valid text.
        :raises TypeError: if the name is not a ``str``.
        :raises EventConnectionError: if the broker cannot be reached.
        """

    @abstractmethod
    async def ping(self, timeout: float = 5.0) -> float:
        """Ask the broker for an answer within *timeout* seconds; the request is authenticated and changes nothing.

        :returns: how long the answer took, in seconds.
        :raises EventConnectionError: if no answer came, or the broker refused.
        :raises ValueError: if *timeout* is NaN, or more than a float can hold.
        """

    async def run_native(self, work: Callable[[Any], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with the broker's own connection, await it, and return its result (rule N1: native objects).

        Use it for what this library does not offer.  It is not portable: each backend documents the type of the
        connection, and declares it in its own class.  *work* runs where the backend runs, usually on another event loop
        in another thread.  So it must not block, must not use objects of the caller's loop, and must not keep the
        connection.

        When *timeout* seconds are over, *work* is cancelled.  If the caller is cancelled, *work* goes on until then.
        Closing the client cancels it.  A backend that works in the caller's thread awaits *work* in the caller's task:
        cancelling the caller cancels *work*, and closing the client does not.

        This default always raises ``UNSUPPORTED``.

        :raises TimeoutError: when *work* was cancelled because *timeout* seconds are over.
        :raises Exception: the exception of *work*, unchanged, for example one of the broker's SDK.
        :raises EventConnectionError: when the broker cannot be reached.
        :raises EventRuntimeError: ``UNSUPPORTED``, ``CLOSED``, ``WRONG_PROCESS``.
        """
        raise EventRuntimeError("this backend gives no access to its own connection", code=ErrorCode.UNSUPPORTED)

    def native_message(self, message: ReceivedMessage) -> Any:
        """Return the broker's own form of a message that this client's receiver has returned.

        This is rule N1: native objects.  It is not portable: each backend documents the type, and declares it in its
        own class.  It is made when you ask, so a message costs nothing more if you do not.  This default always raises
        ``UNSUPPORTED``.

        :raises EventRuntimeError: ``UNSUPPORTED``.
        :raises TypeError: for a message that no receiver has returned.
        """
        raise EventRuntimeError("this backend has no message of its own", code=ErrorCode.UNSUPPORTED)

    @abstractmethod
    async def close(self, timeout: float = 15.0) -> None:
        """Close the receivers, finish the accepted sends, then close the connection (rule C2: closing a client).

        All this takes *timeout* seconds at most, or 2 seconds if *timeout* is shorter.  A quarter of it, at most 2
        seconds, is kept for giving back the messages that are not settled.  Calls that are unfinished by then fail with
        ``CLOSED``, and every later call raises ``CLOSED`` (rule C3: after closing).

        You may call it again, and concurrently.  If the call is cancelled, closing goes on in the background within
        its bound.

        :raises ValueError: if *timeout* is NaN, or more than a float can hold; nothing is closed then.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _unless_collected(kind)
        if kind is None:
            await self.close()
        else:
            await self.close(timeout=CLOSE_TIMEOUT_AFTER_ERROR)


class EventReceiver(ABC):
    """One receiver of a subscription.  The receivers of one subscription share its messages.

    ``async for message in receiver`` receives until the receiver is closed.  An error that the iteration raises does
    not end the receiver: you may iterate again.  At the end of ``async with``, the receiver closes with ``timeout=0``.
    """

    @property
    @abstractmethod
    def subscription(self) -> str:
        """Name of the subscription, also if it is ephemeral."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """The promises that the broker confirmed for this subscription."""

    @property
    @abstractmethod
    def stats(self) -> ReceiverStats:
        """The state of the receiver now, without I/O."""

    @abstractmethod
    async def receive_message(self, timeout: float | None = None) -> ReceivedMessage | None:
        """Wait for a message, and return it.

        Return ``None`` if *timeout* seconds ran out, and only then.  ``timeout=0`` returns a message that is at hand.
        Without a timeout, or with infinity, the call waits until a message comes (rule R1: timeouts).

        Several tasks and threads may receive at the same time, and no delivery goes to two of them (rule R4: concurrent
        receives).  A message is handed out only when the caller resumes and takes it, so a cancelled call loses nothing
        (rule R3: cancelled receives).  During an outage the call keeps waiting (rule F1: outages).

        :raises ReceiveError: for an error that retrying cannot fix; the next call tries again.
        :raises EventRuntimeError: ``CLOSED``, ``WRONG_PROCESS``.
        :raises ValueError: if *timeout* is NaN, or more than a float can hold.
        """

    @abstractmethod
    async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
        """Wait for a message, and return 1 to *limit* messages that are there; ``[]`` if *timeout* seconds ran out.

        The call does not wait until *limit* messages have come (rule R2: batches).  It may return several messages of
        one ordering key, in order.  While they are held, no other call gets messages of that key (rule R8: order per
        key).

        :raises ValueError: if *limit* is less than 1.

        Other errors, cancellation and concurrency are as for :meth:`receive_message`.
        """

    @abstractmethod
    async def acknowledge(self, message: ReceivedMessage | str) -> None:
        """Settle a delivery as done, so that the message does not come again.

        A message stands for its own delivery, a message id for the newest delivery of that id.  With
        ``capabilities.ack_confirmed``, the call returns when the broker has confirmed the acknowledgement (rule S1:
        acknowledging).  Acknowledging the same delivery again does nothing (rule S2: settled once).  If the call is
        cancelled, the settlement goes on in the background, and succeeds or not.  You may repeat the call (rule S5:
        failed settlements).

        :raises AcknowledgeError: ``ALREADY_SETTLED`` after a nack; ``EXPIRED`` if the delivery went back to the broker;
            ``NOT_FOUND`` for an id that was never handed out; ``TIMEOUT`` after ``ack_timeout`` seconds, and then the
            message stays held.
        :raises EventRuntimeError: ``CLOSED``, ``WRONG_PROCESS``.
        """

    @abstractmethod
    async def acknowledge_messages(self, messages: Iterable[ReceivedMessage | str]) -> None:
        """Acknowledge several deliveries.

        If some fail, the others are acknowledged all the same.  Then one error is raised, and its ``failed`` has the
        error of each that failed (rule S4: batches).

        Errors and cancellation are as for :meth:`acknowledge`.
        """

    @abstractmethod
    async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
        """Settle a delivery as failed, so that the broker delivers the message again after *delay* seconds.

        Without *delay*, the wait grows with each attempt (rule R11: delays).  If the message has an ordering key, every
        later held message of that key goes back with it, without counting an attempt (rule R10: order after a nack).
        Nacking a delivery that went back already does nothing (rule S3: late settlements).

        Cancellation is as for :meth:`acknowledge`.

        :raises AcknowledgeError: ``ALREADY_SETTLED`` after an acknowledgement, or while an acknowledgement whose caller
            was cancelled is still under way; ``NOT_FOUND``; ``TIMEOUT``.
        :raises ValueError: if *delay* is negative or not finite.
        :raises EventRuntimeError: ``UNSUPPORTED`` for a delay beyond ``capabilities.limits.max_nack_delay``;
            ``CLOSED``, ``WRONG_PROCESS``.
        """

    @abstractmethod
    async def nack_messages(self, messages: Iterable[ReceivedMessage | str], *, delay: float | None = None) -> None:
        """Nack several deliveries.

        If some fail, the others are nacked all the same.  Then one error is raised, and its ``failed`` has the error of
        each that failed (rule S4: batches).

        Errors and cancellation are as for :meth:`nack`.
        """

    @abstractmethod
    async def close(self, timeout: float = 15.0) -> None:
        """Stop receiving, wait until the held messages are settled, and hand the rest back (rule C1: closing).

        Receives that wait raise ``CLOSED`` at once, and iterations end.  You can settle messages until nothing is held
        or *timeout* seconds have passed, less a reserve for handing back: a quarter of *timeout*, at most 2 seconds.
        The call ends within *timeout*, or within 2 seconds if *timeout* is shorter.

        You may call it again, and concurrently.  If the call is cancelled, closing goes on in the background within
        its bound.

        :raises ValueError: if *timeout* is NaN, or more than a float can hold; nothing is closed then.
        """

    async def reject(self, message: ReceivedMessage | str, reason: str = "") -> None:
        """Settle a delivery as hopeless: the message goes to the dead-letter topic at once (rule S6: rejecting).

        The call returns when the broker has stored the letter and taken the message from the subscription.  The attempt
        counts.  Rejecting the same delivery again does nothing.  Cancellation is as for :meth:`acknowledge`.

        This default always raises ``UNSUPPORTED``.

        :param reason: for the log, and for the letter's attribute ``dead_letter_reason``.
        :raises TypeError: if *reason* is no text.
        :raises AcknowledgeError: as :meth:`acknowledge`; also ``NOT_FOUND`` or ``PERMISSION_DENIED`` for the
            dead-letter topic.  The message stays held.
        :raises EventRuntimeError: ``UNSUPPORTED`` without the option ``dead_letter_topic``, or if the backend does not
            declare ``capabilities.reject``; ``CLOSED``, ``WRONG_PROCESS``.
        """
        raise EventRuntimeError("this backend cannot reject a message, so nack it", code=ErrorCode.UNSUPPORTED)

    async def hand_back(self, message: ReceivedMessage) -> None:
        """Give a message back that was not processed, so that it comes again at once.

        A backend counts no attempt for that, if its broker allows it.  This default nacks the message without delay.
        """
        await self.nack(message, delay=0)

    def abandon(self, message: ReceivedMessage) -> None:
        """Note that no one will settle *message*; the receiver hands it back at its next call.

        :meth:`processing` calls this method when the garbage collector ends its body.  That happens in any thread and
        at any moment, perhaps while that thread holds a lock of the receiver.  So an implementation may only append to
        a ``deque``: it takes no lock, does no I/O and logs nothing.

        This default does nothing: the message comes again when its lease is over.
        """

    def observe_processing(self, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Return a context manager for the body of :meth:`processing` (rule V1: observation).

        It tells the client's observer of one operation ``process``.  A backend that does not use the engine, and has an
        observer, returns ``events_core.observing.observed(…)`` here.  This default tells nobody.
        """
        return UNOBSERVED

    @asynccontextmanager
    async def processing(self, message: ReceivedMessage) -> AsyncIterator[ReceivedMessage]:
        """Settle *message* when the body of ``async with`` ends (rule H1: processing).

        If the body succeeds, the message is acknowledged.  If it raises, the message is nacked, and the exception goes
        on.  If it is cancelled, the message is handed back.  The message is also handed back if the garbage collector
        ends the body, because its event loop was closed without cancelling the tasks.

        :class:`~events_core.Reject` dead-letters the message, and :class:`~events_core.RetryAfter` nacks it with a
        delay.  Both go on, like any exception (rule H3: decisions of a handler).

        If the body succeeds and the delivery has expired by then, a warning is logged.  If settling fails after an
        exception of the body, that is logged as well, because the body's own exception goes on.

        :raises AcknowledgeError: if acknowledging failed for another reason than expiry.
        """
        try:
            # The operation ends with the body: it tells how long the handler took, without the broker's answer.
            with self.observe_processing(message):
                yield message
        except GeneratorExit:
            # The garbage collector runs this in any thread, where no coroutine can be awaited.
            self.abandon(message)
            raise
        except BaseException as error:
            await settle_processed(self, message, error)
            raise
        await settle_processed(self, message, None)

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[ReceivedMessage]:
        """Return an iterator that receives until the receiver is closed, also after it has raised an error."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _unless_collected(kind)
        # The block would have settled the held messages, and it has ended.  So there is nothing to wait for.
        await self.close(timeout=0)


async def _unless_collected(kind: type[BaseException] | None) -> None:
    """End the calling coroutine here if the garbage collector is ending it; otherwise return.

    The collector works in any thread, perhaps in one that holds a lock of ours.  Closing would take that lock again.
    """
    if kind is GeneratorExit:
        # Python ends a coroutine that awaits now, and reports that it "ignored GeneratorExit".  It is different for an
        # asynchronous generator that is closed: it may await, so it goes on here and closes.
        await asyncio.sleep(0)


@contextmanager
def _logged(message: ReceivedMessage) -> Iterator[None]:
    """Log a failure to settle *message* and go on, because the exception of the body matters more."""
    try:
        yield
    except EventError as error:
        _log.warning("message %s could not be given back, it comes again later: %s", message.message_id, error)


async def settle_processed(receiver: EventReceiver, message: ReceivedMessage, error: BaseException | None) -> None:
    """Settle *message*, whose ``processing`` has ended with *error* (rule H1: processing)."""
    if isinstance(error, asyncio.CancelledError):
        # The handler did not fail, so the message goes back without counting an attempt.
        with _logged(message):
            await _finished(receiver.hand_back(message))
    elif error is not None:
        with _logged(message):
            await _settle_failed(receiver, message, error)
    else:
        await _acknowledge(receiver, message)


async def _acknowledge(receiver: EventReceiver, message: ReceivedMessage) -> None:
    try:
        await receiver.acknowledge(message)
    except AcknowledgeError as error:
        if error.code is not ErrorCode.EXPIRED:
            raise
        _log.warning(
            "message %s was processed after its delivery had expired; it usually comes again", message.message_id
        )


async def _settle_failed(receiver: EventReceiver, message: ReceivedMessage, error: BaseException) -> None:
    """Reject *message*, or nack it, as the *error* of its handler asks (H3)."""
    if isinstance(error, Reject) and await _try_to_reject(receiver, message, error.reason):
        return
    delay = None
    if isinstance(error, RetryAfter):
        delay = error.delay_within(receiver.capabilities.limits.max_nack_delay)
        if delay < error.seconds:
            _log.warning(
                "message %s: a delay of %g s was asked; the backend delays %g s at most, and uses that",
                message.message_id,
                error.seconds,
                delay,
            )
    await receiver.nack(message, delay=delay)


async def _try_to_reject(receiver: EventReceiver, message: ReceivedMessage, reason: str) -> bool:
    """Reject *message*.  Return False if that can never succeed, so that the caller must nack the message.

    A message that cannot be dead-lettered must not stay held: it would block its ordering key until it expires.
    """
    try:
        await receiver.reject(message, reason)
    except EventError as error:
        if error.retryable or error.code in _OVER:
            raise
        _log.error(
            "message %s was rejected (%s), and it cannot be dead-lettered, so it is nacked and comes again: %s",
            message.message_id,
            reason,
            error,
        )
        return False
    return True


async def _finished(work: Coroutine[Any, Any, None]) -> None:
    """Await *work* for a few seconds, although this task is being cancelled.  After that, *work* goes on without it."""
    # In a task of its own, so that a second cancellation ends the wait and not the work.
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=HAND_BACK_TIMEOUT)
    if task.done():
        task.result()
