"""The door for authors of backends: a driver for the connection, and a source for each receiver.

The engine does the hard parts once: batching, back-pressure, order per key, leases, settlement, retries, reconnection,
closing.  So a driver stays simple.  It asks the broker once, and raises :class:`BrokerError` if that failed.  It never
retries, never sleeps to try again, and never logs an outage.

**Where coroutines run.**  All coroutines of one driver and of its sources run *at home*.  Home is one event loop on a
thread of the engine, never the application's loop.  If the driver declares :attr:`Driver.inline`, home is the thread
of the caller, and no coroutine may suspend.

**What runs at the same time.**  At home only one coroutine runs at a moment, but several may be waiting for the broker.
Each method below says with which others it may overlap.  In short::

    Driver.open            alone: first, and again after a failure
    all others             any number at once, except that
        Driver.publish         never overlaps for one ordering key
        Source.fetch           does not overlap itself
        Source.settle          does not overlap itself
        Source.extend          does not overlap itself
    Source.close           once, when the source's other requests have ended
    Driver.close           last and once

The methods of an inline driver and its sources run in the callers' threads.  Any two of them may run at the same moment
in two threads, except :meth:`Driver.open` and the calls of one source's :meth:`~Source.fetch`.  So an inline driver
guards its state with a lock of its own.  It may hold that lock while it calls ``wake`` (:meth:`Driver.subscribe`).

**Who cancels.**  The engine cancels a request when its time is over, and everything when the client closes.  It does
not cancel a request because one caller was cancelled: other callers may share the request.  If a library swallows a
cancellation, the engine cancels again.  An inline driver is never cancelled.

**What may be raised.**  :class:`BrokerError`.  The engine turns every other exception into a failure with the code
``INTERNAL``, and does not retry it.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import attrs

from events_core.capabilities import Capabilities
from events_core.errors import ErrorCode
from events_core.message import EventMessage
from events_core.options import CommonOptions

__all__ = ["BrokerError", "Delivery", "Driver", "Outcome", "Publishing", "Settlement", "Source", "State"]

T = TypeVar("T")
OptionsT = TypeVar("OptionsT", bound=CommonOptions)


class BrokerError(Exception):
    """The failure of a request to the broker, in place of the broker's own exception.

    The engine turns it into the error class of the operation.  Raise it ``from`` the native exception.

    :param text: says what was asked, what was found and what to do; without secrets.
    :param code: the reason, for programs.
    :param retryable: True if the same request may succeed later, unchanged.  The engine then retries it.
    """

    def __init__(self, text: str, code: ErrorCode, *, retryable: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.retryable = retryable


Publishing: TypeAlias = Callable[[], Awaitable[Sequence[str | BrokerError]]]
"""A function that waits, at home, for a request that has begun (:meth:`Driver.hand_over`).  It returns and raises as
:meth:`Driver.publish` does."""


class State(enum.Enum):
    """The state of a delivery; only the ledger changes it."""

    BUFFERED = enum.auto()
    HELD = enum.auto()
    SETTLING = enum.auto()
    ACKNOWLEDGED = enum.auto()
    NACKED = enum.auto()
    RETURNED = enum.auto()
    REJECTED = enum.auto()


class Outcome(enum.Enum):
    """The end of a delivery, for the broker."""

    ACK = enum.auto()
    """The message was processed.  It leaves the subscription."""
    NACK = enum.auto()
    """Processing failed, and the attempt counts.  The broker delivers the message again, or dead-letters it if it
    failed too often."""
    RETURN = enum.auto()
    """The message goes back unprocessed, and it is not to blame.  The broker delivers it again at once, does not count
    the attempt if it can avoid that, and never dead-letters the message for it."""
    REJECT = enum.auto()
    """The application gave the message up, and the attempt counts.  The source moves the message to
    ``options.dead_letter_topic`` at once, and only then takes it from the subscription.  Later messages of its key stay
    where they are, as after ACK.

    The engine sends this only if that option is set, and only to a source with ``capabilities.reject``."""


_BUFFERED = State.BUFFERED  # reading a member from its class takes ten times as long (CPython 3.11)


@attrs.define(eq=False, init=False)
class Delivery:
    """One hand-over of a message, as :meth:`Source.fetch` returns it.

    The driver fills in the arguments of the constructor and keeps its own handle in ``token``.  The engine sets the
    other attributes.  A driver may read ``order`` and ``lease_until``; attributes with an underscore belong to the
    engine alone.
    """

    message_id: str
    """The id that :meth:`Driver.publish` returned."""
    data: bytes
    """The payload, as it was sent."""
    attributes: Mapping[str, str]
    """The attributes, as they were sent.  The application sees this mapping itself, read-only.  It may be a plain
    ``dict`` that the driver does not change afterwards."""
    ordering_key: str | None
    """The ordering key, as it was sent; ``None`` if it has none."""
    publish_time: datetime | None
    """The time of publishing: aware, in UTC; ``None`` if the broker does not tell."""
    delivery_attempt: int | None
    """The number of this attempt, from 1; ``None`` if neither the broker nor the driver counts."""
    token: Any
    """The driver's handle: what :meth:`Source.settle` needs."""
    size: int
    """Bytes, as :func:`~events_core.engine.message_size` counts them; 0 lets the engine count."""

    # From here on: the engine's.  The receiver's lock guards all of it; only the task that renews leases writes
    # ``lease_until`` without the lock, on the loop on which the driver runs.
    order: int = attrs.field(init=False)
    """The place of this delivery among those of its receiver, set when the engine buffers what :meth:`Source.fetch`
    returned.  It rises with each delivery.  A delivery that the engine itself hands out again keeps its place.  Of an
    inline source nothing is buffered, and the place is always 0."""
    due: float = attrs.field(init=False)
    """The ``time.monotonic()`` from which on it may be handed out.  Only the engine's buffer, a
    :class:`~events_core.engine.KeyedQueue`, reads and writes it."""
    lease_until: float = attrs.field(init=False)
    """The ``time.monotonic()`` until which the broker keeps the delivery for this receiver, as far as the engine knows:
    :attr:`Source.lease` seconds after the engine received or extended it.  Infinite if the source has no lease, and 0
    for an inline source."""
    _state: State = attrs.field(init=False)
    _owner: object = attrs.field(init=False)
    """The ledger that has it, so that no other receiver can settle it."""
    _settlement: Settlement | None = attrs.field(init=False)
    """The newest settlement that is under way."""
    _nacks: int = attrs.field(init=False)
    """Failures that only this receiver knows of."""
    _arrived: float = attrs.field(init=False)
    """The ``time.monotonic()`` at which it was buffered, or came again with a newer token."""
    _deadline: float = attrs.field(init=False)
    """The ``time.monotonic()`` at which the receiver gives it up (rule R6: leases)."""
    _kept_until: float = attrs.field(init=False)
    """The receiver does not give it up before: it waits for its delay, and then to be handed out (rule R11:
    delays)."""
    _is_out: bool = attrs.field(init=False)
    """True while a request to settle it is out.  Its ``token`` does not change in that time: the driver may read it
    late."""
    _newer_token: tuple[Any] | None = attrs.field(init=False)
    """The token of a redelivery that came while a request was out."""
    _was_acknowledged: bool = attrs.field(init=False)
    """True if the broker has confirmed an acknowledgement with an older token."""
    _is_lost: bool = attrs.field(init=False)
    """True while it is held although the broker has taken it back, until the message comes here again."""

    def __init__(
        self,
        message_id: str,
        data: bytes,
        attributes: Mapping[str, str],
        ordering_key: str | None = None,
        publish_time: datetime | None = None,
        delivery_attempt: int | None = None,
        token: Any = None,
        size: int = 0,
    ) -> None:
        # Written out, because this runs for each message: the constructor that attrs makes looks up each default.
        self.message_id = message_id
        self.data = data
        self.attributes = attributes
        self.ordering_key = ordering_key
        self.publish_time = publish_time
        self.delivery_attempt = delivery_attempt
        self.token = token
        self.size = size
        self.order = 0
        self.due = self.lease_until = 0.0
        self._state = _BUFFERED
        self._owner = None
        self._settlement = None
        self._nacks = 0
        self._arrived = self._deadline = self._kept_until = 0.0
        self._is_out = self._was_acknowledged = self._is_lost = False
        self._newer_token = None

    def has_token(self, token: object) -> bool:
        """Return whether *token* is the newest one."""
        return self.token is token and self._newer_token is None


@attrs.define(eq=False)
class Settlement:
    """One delivery and its outcome.

    The driver reads the arguments of the constructor; the other attributes belong to the engine.
    """

    delivery: Delivery
    """The object that :meth:`Source.fetch` returned."""
    outcome: Outcome
    """The outcome to tell the broker."""
    delay: float | None = None
    """For a ``NACK``: seconds until the message may come again.  ``None`` means the broker's own backoff or, if it has
    none, :func:`~events_core.engine.redelivery_delay`."""
    reason: str = ""
    """For a ``REJECT``: the reason of the application, for the letter and the log.  It may be empty."""
    _tickets: tuple[Any, ...] = attrs.field(default=(), init=False)
    """The callers that wait for it."""
    _given_up: bool = attrs.field(default=False, init=False)
    """True if no caller waits for it; what is not sent yet is not sent."""


class Source(ABC):
    """The broker's side of one receiver."""

    subscription: str
    """Name of the subscription; a generated name if it is ephemeral."""
    capabilities: Capabilities
    """The capabilities, as the broker confirmed them."""
    lease: float | None = None
    """Seconds for which a fetched delivery is safe without :meth:`extend`.  ``None`` if the driver itself, or a live
    connection, keeps deliveries safe."""
    prefetch: int | None = None
    """Number of deliveries that the engine buffers ahead of the application; ``None`` for as many as the bounds
    allow."""
    pushes: bool = False
    """True if the broker sends by itself, up to the bounds that it was told.  The engine then calls :meth:`fetch` while
    there is any room, because no receiver keeps the lease of what is not fetched.  Otherwise the engine waits until a
    request is worth it."""
    redelivers_locally: bool = False
    """True if the broker would lose the order of a key when a message is nacked or expires.  The engine then keeps the
    message and its successors, and hands them out again itself.

    If False, the engine settles them in one call: the nacked message first, then its successors as ``RETURN``, in
    order.  The broker must keep that order.

    Without meaning if ``capabilities.ordering`` is ``none``: the engine then settles each delivery alone, with or
    without a key."""
    local_attempts: int | None = None
    """With :attr:`redelivers_locally` or without :attr:`keeps_delays`: the ``delivery_attempt`` at which a nacked
    message comes to :meth:`settle` at once, as ``NACK``.  The source then dead-letters it while its successors wait.
    The driver numbers first deliveries.  The engine goes on counting for those that it hands out again itself."""

    keeps_delays: bool = True
    """False if the broker cannot delay a nacked message.  The engine then keeps the message until its delay is over.
    Only then it calls :meth:`settle`, with the delay 0; at a close it does so at once.  Until then the delivery stays
    out: the engine renews its lease, and gives it back before :attr:`longest_hold`.  A message whose attempts are used
    up (:attr:`local_attempts`) does not wait.

    If the source keeps order, set :attr:`redelivers_locally` too.  Without meaning for an inline source."""
    longest_hold: float | None = None
    """Seconds after its arrival for which a delivery may stay here, although the connection lives; ``None`` for no
    bound.  The receiver then gives back what it holds or buffers (rule R6: leases).  Set it to less than the broker's
    own bound."""

    safe_until: float | None = None
    """The :func:`~events_core.engine.uptime` until which the broker gives none of this receiver's deliveries to
    another.  Set it if :attr:`lease` is ``None`` and a session must be renewed.

    After that time the engine hands out nothing that is buffered.  So renew the session, set this, from any thread, and
    call the ``wake`` of :meth:`Driver.subscribe`.  The engine looks at the clock before it hands out a message.  A
    process that was stopped does not notice it, and neither does one whose machine was suspended."""

    close_time: float = 1.0
    """Seconds for which :meth:`close` may wait for the broker.  The engine lowers this number to what the caller's
    timeout leaves, and then calls the method.  When the time is over, it logs a warning and cancels the call."""

    _tell_lost: Callable[[Callable[[Delivery], bool], bool], Sequence[Delivery]] | None = None

    def lost(self, is_lost: Callable[[Delivery], bool]) -> Sequence[Delivery]:
        """Tell the engine which deliveries this receiver has lost: a session ended, a partition went to another.

        Do not override it.  Call it as soon as the loss is known, from any thread, and before :meth:`fetch` returns
        what the broker has delivered since.  The engine drops what it had buffered of the lost deliveries before the
        call returns.

        The application keeps those that it holds.  Settle them as ``EXPIRED``, unless the broker delivers the message
        to this receiver again: that gives the delivery a new token (rule F2: lost sessions; rule R7: duplicates).

        :param is_lost: is asked of deliveries that :meth:`fetch` returned, under the receiver's lock.  It looks at
            ``token``.  It does not wait and does not call the engine.
        :returns: those that the engine has dropped.
        """
        return () if self._tell_lost is None else self._tell_lost(is_lost, True)

    def take_back(self, is_meant: Callable[[Delivery], bool]) -> Sequence[Delivery]:
        """Drop buffered deliveries that come again, from :meth:`fetch` or to another receiver.

        Do not override it.  Call it from any thread, before :meth:`fetch` returns them.

        :param is_meant: is asked of the buffered deliveries only; otherwise as in :meth:`lost`.
        :returns: those that the engine has dropped.
        """
        return () if self._tell_lost is None else self._tell_lost(is_meant, False)

    @abstractmethod
    async def fetch(self, limit: int) -> Sequence[Delivery]:
        """Wait until the broker has messages for this receiver and return some, in order per key.

        Return at most *limit*, except that one response of the broker may have more.  An inline source never waits: it
        returns what is ready, which may be nothing.  Another source may return an empty sequence after it has waited.
        The engine then knows that the broker answers, for example that an outage is over.

        *Called* again and again until the receiver closes, while there is room.  Overlaps every method but
        :meth:`fetch` itself and :meth:`close`.

        *Cancelled* when the receiver closes.  If the method goes on, the engine cancels it again.  The source keeps
        what it has fetched and not returned, and :meth:`close` gives it back.

        :raises BrokerError: if ``retryable``, the engine waits and calls again, which must reconnect.  Otherwise the
            next receive raises the error, and then the engine calls again.
        """

    async def finish_fetching(self) -> None:
        """Wait until no request of :meth:`fetch` is out any more.

        Override it if the broker would give messages to a request that is cut, as SQS does.  Then :meth:`fetch` leaves
        its request running when it is cancelled, and :meth:`close` gives back what the request brings.

        *Called* once, when the receiver closes, after :meth:`fetch` was cancelled.  Overlaps :meth:`settle` and
        :meth:`extend`.  *Cancelled* when the receiver has no more time to wait for it: a second after the close began,
        or later.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        """Tell the broker the outcome of deliveries; return when the broker has confirmed, if it can.

        Return one result for each settlement, in order: ``None`` for success.  If a delivery no longer belongs to this
        receiver, its result is ``EXPIRED``, and nothing has changed at the broker.  If an earlier outcome, whose caller
        got no answer in time, has ended the message, its result is ``ALREADY_SETTLED``.  If a result is ``retryable``,
        the engine sends that settlement again.

        *Called* with at most :attr:`Driver.max_settle_batch` settlements; an inline source gets all of one call at
        once.  Overlaps every method but :meth:`close` and, unless it is inline, :meth:`settle` itself.

        *Cancelled* after ``ack_timeout``, and when the receiver has no more time to close.  The outcomes may then be
        applied or not.  The engine may send the same settlements again, so the second time must do no harm.

        :raises BrokerError: when the whole request failed.  The engine retries if it is ``retryable``.
        """

    def acknowledge_at_once(self, deliveries: Sequence[Delivery]) -> Sequence[BrokerError | None] | None:
        """Acknowledge deliveries in the caller's thread, if that is only a note that the source takes.

        It saves the way to :meth:`settle` and back.  Return ``None`` to get settlements of the same deliveries there
        instead, which is the default.  Otherwise return one result for each: ``None`` for success, or ``EXPIRED``.

        *Called* under the receiver's lock, from any thread: it does not wait, does not raise, and does not call the
        engine.  Overlaps every method; of :meth:`close` only the beginning.  Without meaning for an inline source.
        """
        return None

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        """Keep *deliveries* safe for another :attr:`lease` seconds, and return those that the broker has taken back.

        *Called* only if :attr:`lease` is a number and the source is not inline, for deliveries that have less than half
        of it left.  Overlaps every method but :meth:`extend` itself and :meth:`close`: a delivery may be acknowledged
        or rejected at the same time.  It does not go back meanwhile: the two requests could overtake each other.

        *Cancelled* after a third of the lease, and when the receiver closes.  Leases may then be extended or not.

        :returns: deliveries that the broker has taken back.  The engine drops them; the broker delivers them again.
        :raises BrokerError: when the request failed.  The engine asks again before the leases run out.
        """
        return ()

    async def withheld(self) -> Collection[str]:
        """Return ordering keys of which the broker keeps back messages because earlier ones are held.

        The engine names them in a warning.  *Called* when a receive has waited for ten seconds.  Overlaps every method,
        :meth:`close` included.  *Cancelled* after ten seconds, and when the client closes.

        :raises BrokerError: when it cannot be found out.  The engine logs that at DEBUG.
        """
        return ()

    def unlocked(self) -> None:
        """Log what :meth:`fetch` and :meth:`settle` have to tell; for an inline source.

        The engine holds its own lock while it calls these two.  A log handler may need that lock, for example to read
        ``stats``.  The engine calls this method afterwards, without that lock, from any thread.  It must not wait.
        """

    def next_due(self) -> float | None:
        """Return the ``time.monotonic()`` at which :meth:`fetch` may find more without a wake-up; ``None`` if never.

        *Called* only if the source is inline, under the receiver's lock: it does not wait and does not raise.
        """
        return None

    @abstractmethod
    async def close(self) -> None:
        """Give back what was fetched and never returned, delete what is ephemeral, release everything.

        *Called* once.  The engine has settled all it had before, and :meth:`fetch`, :meth:`settle` and :meth:`extend`
        have ended, unless they ignore cancellation.

        *Cancelled* after :attr:`close_time`.  What is not released then may stay open until :meth:`Driver.close`.

        :raises BrokerError: the engine logs it, and every other exception, as a warning.
        """


class Driver(ABC, Generic[OptionsT]):
    """The broker's side of one client."""

    inline: ClassVar[bool] = False
    """True if no coroutine of this driver and its sources suspends or blocks, in any thread.  The engine then needs no
    thread of its own."""
    blocking: ClassVar[bool] = False
    """True if its coroutines block the loop that they run on for more than a moment, as for a disk.  Each client then
    has a thread of its own; all others of a process share one."""
    mixed_keys: ClassVar[bool] = False
    """True if one request may carry several ordering keys.  Requests then leave one at a time, in order."""
    one_of_each_key: bool = False
    """True if one request may carry several ordering keys, but at most one message of each.  Several requests are then
    out at once, and never two with the same key.  Without meaning if :attr:`mixed_keys`."""
    retries_results: bool = False
    """True if the engine sends a message again whose own result is a ``retryable`` error.  Set it if a broker takes a
    part of a request and asks to send the rest again."""
    wants_ids: bool = False
    """True if the engine calls :meth:`publish_with_ids` in place of :meth:`publish`.  Set it if the sender chooses the
    ids of messages, or if the broker knows a message again by an id.  Without meaning for an inline driver."""
    hands_over: bool = False
    """True if the engine calls :meth:`hand_over`.  Set it if any thread can begin a request without waiting.
    Without meaning if :attr:`wants_ids`."""

    max_batch_messages: int = 1000
    """Most messages in one request."""
    max_batch_bytes: int | None = None
    """Most bytes in one request, as :func:`message_size` counts them; ``None`` for no bound.  A single message may be
    larger: the capability ``limits.max_message_bytes`` bounds it."""
    max_settle_batch: int = 1000
    """Most settlements in one call of :meth:`Source.settle`."""
    settle_unit: int = 1
    """Number of settlements that share one request of the broker, if it takes money for each request.  The engine then
    calls :meth:`Source.settle` with multiples of it when it can, and holds single settlements back for a moment."""
    longest_pause: float = 30.0
    """Most seconds between two tries of a request during an outage (rule F1: outages).  Many brokers are back within
    seconds."""
    publish_max_inflight: int = 4
    """Most requests to publish that are out at once (rule P5: batching)."""
    publish_max_full: int | None = None
    """Most requests to publish that are out at once if all but :attr:`publish_max_inflight` of them are full, with
    :attr:`max_batch_messages`.  Set it if few messages fit in a request: then four requests are slow on a network, and
    more than four that are not full cost more than they gain.  ``None`` for :attr:`publish_max_inflight`."""
    publish_max_keys: int | None = None
    """Most requests with an ordering key that are out at once, each of another key.  ``None`` if they share
    :attr:`publish_max_inflight`.  Set it if a request carries only one key.  If all messages have different keys, this
    many leave in the time of one round trip."""

    maintenance_interval: float | None = None
    """Seconds between two calls of :meth:`maintain`; ``None`` if there is nothing to do.  Without meaning for an inline
    driver."""

    capabilities: Capabilities
    """The promises of this configuration; set by ``__init__``."""
    address: str = ""
    """The broker's address, for errors and logs; without secrets."""
    connection_restored: Callable[[], None] = staticmethod(lambda: None)
    """Set by the engine.  A driver may call it, at home, when its connection was lost and is there again.  Every
    request that waits for its next try then tries at once."""

    def __init__(self, topic_name: str, project_id: str, options: OptionsT) -> None:
        """Validate; no I/O, no thread, no import of an SDK.

        *Called* once, in the thread that creates the client.

        :raises ConfigurationError: for what the options class cannot check by itself, such as the topic's name.
        """
        self.topic_name = topic_name
        self.project_id = project_id
        self.options = options

    @abstractmethod
    async def open(self) -> None:
        """Import the SDK, connect, and create the topic and the configured subscription.

        Create only what the options allow (rule Q2: creation).

        *Called* at the first use of the client.  After a failure it is called again, after a success never.  Overlaps
        no other method.

        *Cancelled* after ``connect_timeout``, or sooner if the operation that connects has less time; and when the
        client closes.

        :raises BrokerError: when it failed.  The engine tries again if it is ``retryable`` and there is time.

        After a failure or a cancellation the driver is as if it had never been opened.
        """

    def objection(self, message: EventMessage) -> str:
        """Return the reason why the broker would refuse *message*, or ``""``.

        The engine checks ``capabilities.limits`` itself; this is for other reasons, such as a reserved attribute.

        *Called* for each message that is sent, in the caller's thread, also before :meth:`open`, and by several threads
        at once.  It does not wait, does no I/O and does not raise.
        """
        return ""

    @abstractmethod
    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        """Store *messages* in order; return when they are stored, as durably as declared.

        Return one result for each message, in order: its id, or the reason why this message alone was not stored.  Such
        a reason is final, unless it is ``retryable`` and :attr:`retries_results`.  After a message that failed, later
        ones of its key must not be stored: their result is ``NOT_ATTEMPTED``, and it is ``retryable`` if the reason is.
        The engine sends such a message again if the failed one is of another call.

        *Called* with messages of one ordering key, or with messages without a key, unless :attr:`mixed_keys` or
        :attr:`one_of_each_key`.  An inline driver gets up to 1000 messages of one send, of any keys.  Overlaps every
        method but :meth:`open` and :meth:`close`, also itself, but never for one key unless the driver is inline.

        *Cancelled* when the last of *messages* has reached its ``send_timeout``, and when the client closes.  The
        messages may then be stored or not.

        :raises BrokerError: when none was stored, or that is unknown.  If ``retryable``, the engine sends the same
            messages again.  If the code is ``INVALID``, it sends the two halves, until only the offenders fail.
        """

    async def publish_with_ids(
        self, messages: Sequence[EventMessage], ids: Sequence[str]
    ) -> Sequence[str | BrokerError]:
        """Do what :meth:`publish` does, with an id for each message.

        *Called* in place of :meth:`publish` if :attr:`wants_ids`.  A message that is sent again has the same id again.

        :param ids: 32 hexadecimal digits each, chosen at random.
        """
        return await self.publish(messages)

    def hand_over(self, messages: Sequence[EventMessage], report: Callable[[Sequence[str] | Publishing], None]) -> bool:
        """Begin to publish *messages*, and return True; or return False, and home calls :meth:`publish`.

        So a lone send need not wait for home to begin its request, nor to see the answer.

        *Called* if :attr:`hands_over`, in the thread of the caller, for messages of one send.  No other send is in
        progress then, and the broker has already answered at least one request.  It does not wait and does not raise.
        Overlaps every method but :meth:`open`.  Once :meth:`close` has begun, nothing may be sent.

        :param report: takes the outcome.  If this method returns True, call *report* once, from any thread.  Call it
            with the ids, in order, when all messages are stored.  If one fails, or takes more than a moment, call it
            with a function.  Home then calls the function in place of :meth:`publish`.  The function returns, raises
            and is cancelled as :meth:`publish` is for these messages.  *report* does not wait and does not raise.
        """
        return False

    @abstractmethod
    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:
        """Join *subscription*, or make an ephemeral one for ``None``; create what is missing, as options allow.

        The source receives everything that is published after this method has returned.

        *Called* for each receiver.  Overlaps every method but :meth:`open` and :meth:`close`, also itself.

        *Cancelled* when ``connect_timeout`` is over, and when the client closes.  It then leaves nothing behind.  If
        only the caller is cancelled, the engine lets it finish and closes the new source.

        :param wake: call it, from any thread, when :meth:`Source.fetch` of an inline source may find more.  A source
            with :attr:`Source.safe_until` calls it when buffered messages may be handed out again.
        :raises BrokerError: for example ``NOT_FOUND``, ``PERMISSION_DENIED``, or ``INVALID`` for a subscription that
            contradicts the options.  Nothing is left behind.
        """

    async def has_subscription(self) -> bool | None:
        """Return whether the topic has a subscription; ``None`` if the broker cannot tell.

        The engine warns if there is none, because what was sent is lost.

        *Called* once, after the first message was stored.  Overlaps every method but :meth:`open` and :meth:`close`.
        *Cancelled* after 5 seconds, and when the client closes.

        :raises BrokerError: when it cannot be found out; then there is no warning.
        """
        return None

    async def keep_dead_letters(self, subscription: str) -> bool | None:
        """Create *subscription* of ``options.dead_letter_topic`` if that topic has no durable one.

        It keeps the letters (rule R12: dead letters).  The options must allow that.  An ephemeral subscription does not
        count, because it ends with its receiver.  The new subscription never expires, and starts with the oldest letter
        that the broker still has.

        *Called* before each :meth:`subscribe` of a client that has such a topic.  Overlaps every method but
        :meth:`open` and :meth:`close`, also itself.  *Cancelled* when ``connect_timeout`` is over, and when the client
        closes.

        :returns: True if the topic has a durable subscription now; ``None`` if the broker cannot tell.
        :raises BrokerError: when that failed.  The engine logs it and goes on; ``PERMISSION_DENIED`` at DEBUG.
        """
        return None

    @abstractmethod
    async def delete_subscription(self, subscription: str) -> None:
        """Delete *subscription* with all messages that it has not delivered.

        *Called* once for each request of the application, without a retry.  Overlaps every method but :meth:`open` and
        :meth:`close`.  *Cancelled* when ``connect_timeout`` is over, and when the client closes: the subscription may
        then be deleted or not.

        :raises BrokerError: ``NOT_FOUND`` when there is none.
        """

    @abstractmethod
    async def ping(self) -> None:
        """Return after one authenticated, read-only answer of the broker.

        *Called* once for each request of the application, without a retry.  Overlaps every method but :meth:`open` and
        :meth:`close`.  *Cancelled* when the caller's time is up, and when the client closes.

        :raises BrokerError: when there was no answer.
        """

    async def maintain(self) -> None:
        """Do what is due from time to time, for example remove what the clients of killed processes have left behind.

        *Called* about every :attr:`maintenance_interval` seconds while the client is open, whether it is used or not.
        The time varies, also before the first call, so that many clients do not ask the broker together.  Overlaps
        every method but :meth:`open`, :meth:`close` and itself.  *Cancelled* when ``connect_timeout`` is over, and when
        the client closes.

        :raises BrokerError: the engine logs it at DEBUG, and calls again when it is time.
        """

    async def run_native(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Call *work* with the broker's own connection, await it, and return its result (rule N1: native objects).

        The backend's client declares the type of the connection, and documents it.  The connection may be the driver's
        own, or one that is opened for *work*.  It is valid until *work* has ended.

        *Called* for each request of the application, without a retry.  Overlaps every method but :meth:`open` and
        :meth:`close`, also itself.  *Cancelled* when the client closes.  The engine bounds and ends *work* itself, and
        *work* raises nothing here.  In an inline driver, *work* may suspend: this is the only method that may.

        :raises BrokerError: ``UNSUPPORTED`` by default; when there is no connection.
        """
        raise BrokerError("this backend gives no access to its own connection", ErrorCode.UNSUPPORTED)

    def native_message(self, delivery: Delivery) -> Any:
        """Return the broker's own form of a message, made from *delivery* when it is asked for.

        This is rule N1: native objects.  *Called* in the caller's thread, by several threads at once, also for
        deliveries that are settled.  It does not wait and does no I/O.

        :raises BrokerError: ``UNSUPPORTED`` by default.
        """
        raise BrokerError("this backend has no message of its own", ErrorCode.UNSUPPORTED)

    @abstractmethod
    async def close(self) -> None:
        """Release everything.

        *Called* once, also after an :meth:`open` that failed, and never if the client was never used.  Its sources have
        been closed, and all its other coroutines have ended, unless they ignore cancellation.

        *Cancelled* when the client has no more time to close.  It must have released what it can by then.

        :raises BrokerError: the engine logs it, and every other exception, as a warning.
        """
