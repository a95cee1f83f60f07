"""The contract, as two abstract classes: what every backend promises and every application may rely on.

Rules are cited by the names they have in the published contract (P1, R3, …).  Durations are ``float`` seconds, sizes
``int`` bytes.  Clients and receivers may be used from any thread and any running event loop, at the same time (T1).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import attrs

from events_core.capabilities import Capabilities
from events_core.errors import AcknowledgeError, ConfigurationError, ErrorCode, EventError, EventRuntimeError
from events_core.handling import Reject, RetryAfter
from events_core.joining import Joining, joins
from events_core.message import EventMessage, ReceivedMessage
from events_core.observing import Observer
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
"""Seconds for which a client closes when the body of its ``async with`` has raised: nobody settles what is held."""

_OVER = (ErrorCode.ALREADY_SETTLED, ErrorCode.CLOSED, ErrorCode.EXPIRED, ErrorCode.WRONG_PROCESS)
"""Codes that say that a nack would fail, too."""

API_VERSION = 1
"""Version of this interface.  A backend states the one it was written for as
:attr:`~events_core.EventClient.api_version`."""


class Location(NamedTuple):
    """What a backend makes of a URL's authority and path."""

    topic_name: str
    """The topic that the URL names."""
    project_id: str = ""
    """The project that it names, if any."""
    options: Mapping[str, str] = {}
    """Options that the location stands for, such as a path; what stands after ``?`` goes before them."""


@attrs.frozen(kw_only=True)
class ReceiverStats:
    """A receiver at one instant."""

    held: int
    """Messages handed out and not settled.

    A message whose settlement is under way counts until the broker has answered, also if its caller was cancelled.
    """
    buffered: int
    """Messages fetched and not handed out."""
    blocked_keys: int
    """Ordering keys with buffered messages that wait for held ones."""
    reconnects: int
    """Times the connection to the broker was lost and found again."""
    duplicates: int
    """Redeliveries of held or buffered messages that were suppressed (R7)."""
    last_message_age: float | None
    """Seconds since a message arrived; ``None`` before the first."""
    last_alive_age: float | None
    """Seconds since the broker gave any sign of life; ``None`` before the first."""


class EventClient(ABC):
    """A client of one topic.

    It connects on first use.  Leaving ``async with`` is ``close()``, which waits up to 15 seconds for what is held to
    be settled.  If the body raised, it is ``close(timeout=2)``.
    """

    api_version: ClassVar[int]
    """The :data:`~events_core.interface.API_VERSION` that the backend was written for.

    Each backend's own class states it as a number: inheriting the core's would make every backend look current."""

    options_class: ClassVar[type[CommonOptions]] = CommonOptions
    """The options that this backend understands."""

    full_capabilities: ClassVar[Capabilities]
    """The most that this backend can do, in whichever configuration."""

    requirements: Requirements = Requirements()
    """The least that the configuration asks of the capabilities (O4); set by :meth:`check_requirements`."""

    observer: Observer | None = None
    """Told of each operation of this client and its receivers (V1); may be set at any time."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``subscribe`` be entered with ``async with`` also if the class defines it as ``async def``."""
        super().__init_subclass__(**kwargs)
        if inspect.iscoroutinefunction(cls.subscribe):
            cls.subscribe = joins(cls.subscribe)  # type: ignore[method-assign, assignment]

    @abstractmethod
    def __init__(self, config: EventConfig) -> None:
        """Validate *config*; no I/O, no thread, no task.

        :raises ConfigurationError: naming everything that is wrong with it.
        """

    def check_requirements(self, config: EventConfig) -> None:
        """Remember what *config* requires, and compare it with the capabilities of this client (O4).

        ``create_client`` calls this for every client, and the engine's constructor does.

        :raises ConfigurationError: ``UNSUPPORTED``, naming the backend, and for each requirement the rule.
        """
        self.requirements = Requirements.read(config.require, config.backend or type(self).__name__)
        # A configuration that requires nothing also works with a backend that cannot tell its capabilities yet.
        if self.requirements.each and (objection := self.requirements.objection(self.capabilities)):
            raise ConfigurationError(
                objection, code=ErrorCode.UNSUPPORTED, backend=config.backend, topic_name=config.topic_name
            )

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Say what *authority* and *path* of a URL mean, both percent-decoded.

        By default the authority is the project and the path is the topic: ``gcp://project/topic``.

        :raises ConfigurationError: when they mean nothing.
        """
        topic_name = path.removeprefix("/")
        if not topic_name or "/" in topic_name:
            raise ConfigurationError(f"the URL's path is {path!r}; write backend://project/topic")
        return Location(topic_name, authority)

    @classmethod
    def scratch(cls, config: EventConfig) -> AbstractContextManager[EventConfig | None]:
        """While entered, a place like that of *config* for a trial, such as ``events check``; gone afterwards.

        ``None``, by default, where the broker has no such place: a trial then leaves its topics behind.

        :raises ConfigurationError: when the place cannot be made.
        """
        return nullcontext()

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """The last known state, without I/O.

        False before the first use, after :meth:`close`, and while the transport is known to be down.
        """

    @property
    @abstractmethod
    def topic_name(self) -> str:
        """The topic, as configured."""

    @property
    @abstractmethod
    def project_id(self) -> str:
        """The project, as configured; ``""`` where there is none."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this configuration promises, without I/O."""

    @abstractmethod
    async def send_message(self, message: EventMessage) -> str:
        """Send one message.

        Returns when the broker has stored it, as durably as declared (P1): the id that receivers will see.  Sends
        that run concurrently share requests to the broker by themselves (P5).  Messages of one ordering key are
        stored in the order in which the calls began in one thread (P4).

        Cancellation leaves the broker as an uncancelled call could have left it, and the client usable (P8).

        :raises PublishError: ``INVALID`` before anything is sent; transient failures are retried until
            ``send_timeout`` and then raise with ``retryable=True`` (P7); a retry may store the message twice unless
            ``capabilities.idempotent_publish``.
        :raises EventRuntimeError: ``UNSUPPORTED`` for an ordering key where ``capabilities.ordering`` is ``none``;
            ``CLOSED``; ``WRONG_PROCESS``.
        """

    @abstractmethod
    async def send_messages(self, messages: Iterable[EventMessage]) -> list[str]:
        """Send several messages; their ids come back in input order.

        Every message is checked before any is sent (P2).  What can be sent is sent, in as many requests as the
        broker's limits ask for; then, if anything failed, one :class:`PublishError` tells the outcome of each message
        in its ``results`` (P3).  After a failed message, later ones of its key in this call are ``NOT_ATTEMPTED``.
        No messages is a no-op.

        Errors and cancellation: as :meth:`send_message`.
        """

    @abstractmethod
    def subscribe(self, subscription: str | None = None) -> Joining[EventReceiver]:
        """Join a subscription: the one named here, or the one of the configuration.

        Write ``async with client.subscribe("billing") as receiver:``, which closes the receiver at the end.  Or write
        ``receiver = await client.subscribe("billing")``, and close the receiver yourself (Q4).

        A named subscription is durable, and all receivers of its name share it.  Without a name, here and in the
        configuration, the subscription is ephemeral: it gets what is sent after this call has returned, and it ends
        when the receiver is closed (Q1).  If the topic or the subscription is missing, the option ``create`` says
        whether it is created (Q2).  The call ends within ``connect_timeout``.  If it is cancelled, no receiver stays
        open.

        A backend that does not use the engine decorates its ``async def subscribe`` with
        :func:`~events_core.interface.joins`.  The base class does that for one that forgot it.

        :raises ReceiveError: ``NOT_FOUND``, ``PERMISSION_DENIED``, or ``INVALID`` for a subscription that
            contradicts the options; the message says what to do.
        :raises ValueError: for a name that is empty or no text; ``TypeError`` for one that is no str.
        :raises EventConnectionError: when the broker cannot be reached.
        :raises EventRuntimeError: ``CLOSED``, ``WRONG_PROCESS``, ``UNSUPPORTED``.
        """

    @abstractmethod
    async def delete_subscription(self, subscription: str) -> None:
        """Delete a subscription with all it has not delivered.

        :raises ReceiveError: ``NOT_FOUND`` when there is none.
        :raises ValueError: for a name that is empty or no text; ``TypeError`` for one that is no str.
        :raises EventConnectionError: when the broker cannot be reached.
        """

    @abstractmethod
    async def ping(self, timeout: float = 5.0) -> float:
        """Ask the broker for a sign of life: authenticated, read-only, bounded by *timeout* seconds.

        :returns: how long the answer took, in seconds.
        :raises EventConnectionError: when no good answer came.
        :raises ValueError: for a *timeout* of NaN, or beyond what a float holds.
        """

    async def run_native(self, work: Callable[[Any], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with the broker's own connection, await it, and return its result (N1).

        Use it for what this library does not offer.  It is not portable: each backend documents the type of the
        connection, and declares it in its own class.  *work* runs where the backend runs, usually on another event loop
        in another thread.  So it must not block, must not use objects of the caller's loop, and must not keep the
        connection.

        When *timeout* seconds are over, *work* is cancelled.  If the caller is cancelled, *work* goes on until then.
        Closing the client cancels it.

        This default always raises ``UNSUPPORTED``.

        :raises TimeoutError: when *work* was cancelled because *timeout* seconds are over.
        :raises Exception: the exception of *work*, unchanged, for example one of the broker's SDK.
        :raises EventConnectionError: when the broker cannot be reached.
        :raises EventRuntimeError: ``UNSUPPORTED``, ``CLOSED``, ``WRONG_PROCESS``.
        """
        raise EventRuntimeError("this backend gives no access to its own connection", code=ErrorCode.UNSUPPORTED)

    def native_message(self, message: ReceivedMessage) -> Any:
        """Return the broker's own form of a message that this client's receiver has returned (N1).

        It is not portable: each backend documents the type, and declares it in its own class.  It is made when you ask,
        so a message costs nothing more if you do not.  This default always raises ``UNSUPPORTED``.

        :raises EventRuntimeError: ``UNSUPPORTED``.
        :raises TypeError: for a message that no receiver has returned.
        """
        raise EventRuntimeError("this backend has no message of its own", code=ErrorCode.UNSUPPORTED)

    @abstractmethod
    async def close(self, timeout: float = 15.0) -> None:
        """Close the receivers, flush what was accepted for sending, then the transport, within *timeout* (C2).

        A quarter of *timeout*, 2 seconds at most, is kept for giving back what is not settled.  A *timeout* of less
        than 2 seconds is a bound of 2 seconds.  What is unfinished by then fails with ``CLOSED``, and every later call
        raises it (C3).  May be called again, and concurrently.  Cancelled, it finishes in the background within its
        bound.
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
    """One receiver of a subscription; receivers of one subscription compete for its messages.

    Iterating it receives until it is closed; an error that iteration raises does not end it.
    Leaving ``async with`` is ``close(timeout=0)``.
    """

    @property
    @abstractmethod
    def subscription(self) -> str:
        """Name of the subscription, also where it is ephemeral."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the broker confirmed for this subscription."""

    @property
    @abstractmethod
    def stats(self) -> ReceiverStats:
        """A snapshot, without I/O."""

    @abstractmethod
    async def receive_message(self, timeout: float | None = None) -> ReceivedMessage | None:
        """Wait for a message.

        ``None`` only when *timeout* seconds ran out, which is never an error; ``timeout=0`` returns what is at hand
        (R1).  Tasks and threads may receive at once, and no delivery goes to two of them (R4).  A message is handed
        out only when the caller resumes and takes it, so cancelling loses nothing (R3).  During an outage it keeps
        waiting (F1).

        :raises ReceiveError: what retrying cannot mend; the next call tries again.
        :raises EventRuntimeError: ``CLOSED``, ``WRONG_PROCESS``.
        :raises ValueError: for a *timeout* of NaN, or beyond what a float holds; infinity waits as ``None`` does.
        """

    @abstractmethod
    async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
        """Wait for 1 to *limit* messages; returns as soon as one is there, ``[]`` only at *timeout* (R2).

        While messages of a key from one call are held, other calls get none of that key; one call may return a run
        of it (R8).

        :raises ValueError: when *limit* is less than 1.

        Other errors, cancellation, concurrency: as :meth:`receive_message`.
        """

    @abstractmethod
    async def acknowledge(self, message: ReceivedMessage | str) -> None:
        """Settle a delivery as done: the message's own, or the newest one of a message id.

        Returns when the broker has confirmed it, where ``capabilities.ack_confirmed`` (S1).  Acknowledging the same
        delivery again is a no-op (S2).  Cancelled, it goes on in the background, and is applied or not; repeating it is
        safe (S5).

        :raises AcknowledgeError: ``ALREADY_SETTLED`` after a nack; ``EXPIRED`` when the delivery went back;
            ``NOT_FOUND`` for an id never handed out; ``TIMEOUT`` after ``ack_timeout``, when the message stays held.
        :raises EventRuntimeError: ``CLOSED``, ``WRONG_PROCESS``.
        """

    @abstractmethod
    async def acknowledge_messages(self, messages: Iterable[ReceivedMessage | str]) -> None:
        """Acknowledge several; settles all that can be, then raises one error whose ``failed`` tells the rest (S4).

        Errors, cancellation: as :meth:`acknowledge`.
        """

    @abstractmethod
    async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
        """Give a message back as failed; it is delivered again, after *delay* seconds where given.

        Without *delay* the wait grows with each attempt (R11).  A nack of a keyed message gives back every later
        held message of its key with it, uncounted (R10).  Nacking a delivery that went back already is a no-op (S3).

        :raises AcknowledgeError: ``ALREADY_SETTLED`` after an acknowledgement, or while one is under way that was
            cancelled; ``NOT_FOUND``; ``TIMEOUT``.
        :raises ValueError: when *delay* is negative or not finite.
        :raises EventRuntimeError: ``UNSUPPORTED`` for a delay beyond ``capabilities.limits.max_nack_delay``;
            ``CLOSED``, ``WRONG_PROCESS``.
        """

    @abstractmethod
    async def nack_messages(self, messages: Iterable[ReceivedMessage | str], *, delay: float | None = None) -> None:
        """Nack several; settles all that can be, then raises one error whose ``failed`` tells the rest (S4).

        Errors, cancellation: as :meth:`nack`.
        """

    @abstractmethod
    async def close(self, timeout: float = 15.0) -> None:
        """Stop receiving, wait up to *timeout* seconds for what is held to be settled, hand the rest back (C1).

        Waiting receives raise ``CLOSED`` and iteration ends at once.  Settling works until nothing is held or
        *timeout* passes, less a reserve for handing back: a quarter, 2 seconds at most.  A *timeout* of less than 2
        seconds is a bound of 2 seconds.  May be called again, and concurrently.  Cancelled, it finishes within its
        bound.
        """

    async def reject(self, message: ReceivedMessage | str, reason: str = "") -> None:
        """Settle a delivery as hopeless: the message goes to the dead-letter topic at once (S6).

        Returns when the broker has stored the letter and taken the message from the subscription.  The attempt counts.
        Rejecting the same delivery again is a no-op.  Cancellation: as :meth:`acknowledge`.

        This default always raises ``UNSUPPORTED``.

        :param reason: for the log, and for the letter's attribute ``dead_letter_reason``.
        :raises AcknowledgeError: as :meth:`acknowledge`; also ``NOT_FOUND`` or ``PERMISSION_DENIED`` for the
            dead-letter topic.  The message stays held.
        :raises EventRuntimeError: ``UNSUPPORTED`` without the option ``dead_letter_topic``, or if the backend does not
            declare ``capabilities.reject``; ``CLOSED``, ``WRONG_PROCESS``.
        """
        raise EventRuntimeError("this backend cannot reject a message, so nack it", code=ErrorCode.UNSUPPORTED)

    async def hand_back(self, message: ReceivedMessage) -> None:
        """Give a message back unprocessed: it comes again at once, uncounted where the backend can.

        This default nacks it without delay.
        """
        await self.nack(message, delay=0)

    def abandon(self, message: ReceivedMessage) -> None:
        """Note that nobody will settle *message*; the receiver hands it back as soon as something else calls it.

        :meth:`processing` calls this when the garbage collector ends its body: in any thread, at any moment, perhaps
        under a lock of the receiver's own.  So an implementation may do no more than append to a ``deque``: it takes no
        lock, does no I/O and logs nothing.  This default does nothing: the message comes again when its lease is over.
        """

    @asynccontextmanager
    async def processing(self, message: ReceivedMessage) -> AsyncIterator[ReceivedMessage]:
        """Settle *message* by how the body of ``async with`` ends (H1).

        Success acknowledges it, an exception nacks it and goes on, cancellation hands it back.  So does the garbage
        collector, when a loop was closed without cancelling its tasks (:meth:`abandon`).  A delivery that had
        expired meanwhile is logged, and so is a failure to settle after an exception: the body's own exception is
        what goes on.

        :class:`~events_core.Reject` dead-letters the message and :class:`~events_core.RetryAfter` nacks it with a
        delay; both go on, as any exception (H3).

        :raises AcknowledgeError: when acknowledging failed for another reason than expiry.
        """
        try:
            yield message
        except asyncio.CancelledError:
            with _logged(message):
                await _finished(self.hand_back(message))
            raise
        except GeneratorExit:
            self.abandon(message)
            raise
        except BaseException as error:
            with _logged(message):
                await _settle_failed(self, message, error)
            raise
        try:
            await self.acknowledge(message)
        except AcknowledgeError as error:
            if error.code is not ErrorCode.EXPIRED:
                raise
            _log.warning("message %s was processed after its delivery had expired; it comes again", message.message_id)

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[ReceivedMessage]:
        """Receive until closed; survives errors."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _unless_collected(kind)
        await self.close(timeout=0)


async def _unless_collected(kind: type[BaseException] | None) -> None:
    """Go on, unless the garbage collector ends the coroutine: perhaps in a thread that holds a lock of ours.

    ``GeneratorExit`` also ends an asynchronous generator that is closed.  A generator may await then.  The coroutine
    may not: Python ends it here, and reports that it "ignored GeneratorExit".
    """
    if kind is GeneratorExit:
        await asyncio.sleep(0)


@contextmanager
def _logged(message: ReceivedMessage) -> Iterator[None]:
    """Settling beside an exception that matters more."""
    try:
        yield
    except EventError as error:
        _log.warning("message %s could not be given back, it comes again later: %s", message.message_id, error)


async def _settle_failed(receiver: EventReceiver, message: ReceivedMessage, error: BaseException) -> None:
    """Reject *message*, or nack it, as the *error* of its handler asks (H3)."""
    if isinstance(error, Reject) and await _is_rejected(receiver, message, error.reason):
        return
    delay = None
    if isinstance(error, RetryAfter):
        delay = error.delay_within(receiver.capabilities.limits.max_nack_delay)
        if delay < error.seconds:
            _log.warning(
                "message %s is to come again after %g s; the backend delays %g s at most, so it comes again after that",
                message.message_id,
                error.seconds,
                delay,
            )
    await receiver.nack(message, delay=delay)


async def _is_rejected(receiver: EventReceiver, message: ReceivedMessage, reason: str) -> bool:
    """Reject *message*.  Return False if that can never succeed, so that the message must be nacked.

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
    """Await *work*, for a moment, although this task is being cancelled; after that it ends in the background."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=HAND_BACK_TIMEOUT)
    if task.done():
        task.result()
