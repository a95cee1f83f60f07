"""What a broker must fill in: a driver for the connection, a source for each receiver.

The engine does the rest: batching, back-pressure, order per key, leases, settlement, retries, reconnection, closing.
So a driver stays dumb: it asks the broker once, and raises :class:`BrokerError` when that failed.  It never retries,
never sleeps and never logs an outage.

The coroutines of one driver all run in one place: on the event loop of the engine's thread, never the application's;
or, for an ``inline`` driver, in whichever thread calls, without ever suspending.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

import attrs

from events_core.capabilities import Capabilities
from events_core.errors import ErrorCode
from events_core.message import EventMessage
from events_core.options import CommonOptions

__all__ = ["BrokerError", "Delivery", "Driver", "Outcome", "Settlement", "Source", "State"]

OptionsT = TypeVar("OptionsT", bound=CommonOptions)


class BrokerError(Exception):
    """What a driver raises or returns, in place of the broker's own exceptions.

    The engine turns it into the error class of the operation.  Raise it ``from`` the native exception.

    :param text: what was asked, what was found, what to do; without secrets.
    :param code: why.
    :param retryable: whether the same request may succeed later, unchanged; the engine then retries it.
    """

    def __init__(self, text: str, code: ErrorCode, *, retryable: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.retryable = retryable


class State(enum.Enum):
    """Where a delivery stands; only the ledger moves it."""

    BUFFERED = enum.auto()
    HELD = enum.auto()
    SETTLING = enum.auto()
    ACKNOWLEDGED = enum.auto()
    NACKED = enum.auto()
    RETURNED = enum.auto()


class Outcome(enum.Enum):
    """What becomes of a delivery."""

    ACK = enum.auto()
    """Done; the message leaves the subscription."""
    NACK = enum.auto()
    """Failed; a counted attempt.  Comes again, or is dead-lettered when it failed too often."""
    RETURN = enum.auto()
    """Never the message's fault: comes again at once, uncounted where the broker can, and is never dead-lettered."""


@attrs.define(eq=False)
class Delivery:
    """One hand-over of a message, as :meth:`Source.fetch` returns it.

    The driver fills in what is positional and keeps its own handle in ``token``; the rest is the engine's.
    """

    message_id: str
    """The id that :meth:`Driver.publish` returned."""
    data: bytes
    """As it was sent."""
    attributes: Mapping[str, str]
    """Handed to the application as it is, read-only; a plain ``dict`` of the driver's own will do."""
    ordering_key: str | None = None
    """As it was sent."""
    publish_time: datetime | None = None
    """Aware, in UTC; ``None`` where the broker does not tell."""
    delivery_attempt: int | None = None
    """1 for the first; ``None`` where nobody counts."""
    token: Any = None
    """The driver's handle: whatever :meth:`Source.settle` needs."""
    size: int = 0
    """As :func:`~events_core.engine.message_size` counts; 0 lets the engine count."""
    state: State = attrs.field(default=State.BUFFERED, init=False)
    owner: object = attrs.field(default=None, init=False)
    settlement: Settlement | None = attrs.field(default=None, init=False)
    """The newest one that is under way."""
    nacks: int = attrs.field(default=0, init=False)
    """Failures that only this receiver knows of."""
    order: int = attrs.field(default=0, init=False)
    due: float = attrs.field(default=0.0, init=False)
    """When it may be handed out."""
    deadline: float = attrs.field(default=0.0, init=False)
    """When the receiver gives it up (R6)."""
    kept_until: float = attrs.field(default=0.0, init=False)
    """The receiver does not give it up before: it waits for its delay, and then to be handed out (R11)."""
    lease_until: float = attrs.field(default=0.0, init=False)
    """When the broker would deliver it again."""
    is_out: bool = attrs.field(default=False, init=False)
    """Whether a request to settle it is out.  Its ``token`` does not change meanwhile: the driver may read it late."""
    newer_token: tuple[Any] | None = attrs.field(default=None, init=False)
    """The token of a redelivery that came while a request was out."""
    was_acknowledged: bool = attrs.field(default=False, init=False)
    """Whether the broker has confirmed an acknowledgement with an older token."""

    def has_token(self, token: object) -> bool:
        """Return whether *token* is the newest one."""
        return self.token is token and self.newer_token is None


@attrs.define(eq=False)
class Settlement:
    """One delivery and its outcome.

    The driver reads what is positional; the rest is the engine's.
    """

    delivery: Delivery
    """As :meth:`Source.fetch` returned it."""
    outcome: Outcome
    """What to tell the broker."""
    delay: float | None = None
    """For a NACK: seconds until it may come again; ``None`` for the broker's backoff, else
    :func:`~events_core.engine.redelivery_delay`."""
    tickets: tuple[Any, ...] = attrs.field(default=(), init=False)
    """Who waits for it."""
    given_up: bool = attrs.field(default=False, init=False)


class Source(ABC):
    """The broker's side of one receiver."""

    subscription: str
    """Name of the subscription, generated where it is ephemeral."""
    capabilities: Capabilities
    """As the broker confirmed them."""
    lease: float | None = None
    """Seconds for which a fetched delivery is safe without :meth:`extend`; ``None`` where the driver itself, or a live
    connection, keeps it safe."""
    prefetch: int | None = None
    """How many deliveries the engine buffers ahead of the application; ``None`` for as many as the bounds allow."""
    pushes: bool = False
    """Whether the broker sends by itself, up to the bounds that it was told.  The engine then fetches while there is
    any room, since what is not fetched lies where nobody keeps it safe; else it waits until a request is worth it."""
    redelivers_locally: bool = False
    """Whether the engine keeps a nacked or expired keyed delivery and its successors, and hands them out again itself,
    because the broker would lose their order.  Otherwise it settles the run in one call: the nacked delivery first,
    then its successors as RETURN, in order, and the broker must keep that order.  Without meaning where
    ``capabilities.ordering`` is ``none``: the engine then settles each delivery alone, whatever its key."""
    local_attempts: int | None = None
    """Where :attr:`redelivers_locally`: at which ``delivery_attempt`` a nacked keyed delivery comes to
    :meth:`settle` all the same, as NACK, to be dead-lettered there while its successors wait.  The driver numbers first
    deliveries, the engine goes on counting."""

    safe_until: float | None = None
    """Where :attr:`lease` is ``None`` and a session must be renewed: the :func:`~events_core.engine.uptime` until which
    the broker certainly gives none of its deliveries to another receiver.  After that time the engine hands out nothing
    that is buffered.  So renew the session, set this, from any thread, and call the ``wake`` of
    :meth:`Driver.subscribe`.  The engine looks at the clock before it hands out a message, because a process that was
    stopped, or a machine that was suspended, does not notice it."""
    _tell_lost: Callable[[Callable[[Delivery], bool]], None] | None = None

    def lost(self, is_lost: Callable[[Delivery], bool]) -> None:
        """Tell the engine which deliveries this receiver has lost: a session ended, a partition went to another.

        Call it as soon as that is known, from any thread, and before :meth:`fetch` returns what the broker has
        delivered since; do not override it.  The engine never hands out what it had buffered of the lost deliveries.
        Those that the application holds stay with it: settle them as ``EXPIRED``, unless the broker delivers the
        message to this receiver again, which brings the delivery a new token (F2, R7).

        :param is_lost: is asked of deliveries that :meth:`fetch` returned, under a lock: it looks at ``token``, and
            neither waits nor calls the engine.
        """
        if self._tell_lost is not None:
            self._tell_lost(is_lost)

    @abstractmethod
    async def fetch(self, limit: int) -> Sequence[Delivery]:
        """Wait until the broker has messages for this receiver and return some, in order per key.

        Returns at most *limit*, except that one response of the broker may overshoot.  An inline source never waits:
        it returns what is ready, which may be nothing.  Other sources return nothing if the last call failed and the
        broker has answered since: the engine then knows that the outage is over.

        Called by one task at a time.  Cancelled when the receiver closes, and again if it goes on: what was fetched
        and not returned must go back with :meth:`close`.

        :raises BrokerError: retryable ones make the engine wait and call again, which reconnects.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        """Tell the broker the outcome of deliveries; returns when it has confirmed, where it can.

        One result for each settlement, in order: ``None`` for success.  A delivery that no longer belongs to this
        receiver is ``EXPIRED`` and changes nothing.

        Called concurrently with :meth:`fetch`; calls of :meth:`settle` do not overlap.  Cancelled after
        ``ack_timeout``, and when the receiver has no more time to close: outcomes may then be applied or not, and be
        told again.

        :raises BrokerError: when the whole request failed.
        """

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        """Keep *deliveries* safe for another :attr:`lease` seconds; called only where that is a number.

        Called concurrently with :meth:`fetch` and :meth:`settle`; calls of :meth:`extend` do not overlap.
        Cancelled when there is no answer in time, and when the receiver closes.

        :returns: those that the broker has taken back, and will deliver again.
        :raises BrokerError: when the request failed; the engine asks again before the leases run out.
        """
        return ()

    async def withheld(self) -> Collection[str]:
        """Ordering keys of which the broker keeps back messages while earlier ones are held; for a warning."""
        return ()

    def next_due(self) -> float | None:
        """For an inline source: the ``time.monotonic()`` at which :meth:`fetch` may find more without a wake-up."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Give back what was fetched and never returned, delete what is ephemeral, release everything.

        Called once, after the engine has settled all it had, and after :meth:`fetch`, :meth:`settle` and
        :meth:`extend` have ended, unless they ignore cancellation.  Cancelled when the receiver has no more time to
        close.  An error is logged and ignored.
        """


class Driver(ABC, Generic[OptionsT]):
    """The broker's side of one client."""

    inline: ClassVar[bool] = False
    """Whether every coroutine of this driver and its sources returns without suspending or blocking, in any thread.
    The engine then needs no thread of its own."""
    blocking: ClassVar[bool] = False
    """Whether its coroutines block the loop that they run on for more than a moment, as for a disk.  Each client then
    has a thread of its own; all others of a process share one."""
    mixed_keys: ClassVar[bool] = False
    """Whether one request may carry several ordering keys.  Requests then leave one at a time, in order."""

    max_batch_messages: int = 1000
    """Most messages in one request."""
    max_batch_bytes: int | None = None
    """Most bytes in one request, as :func:`message_size` counts them."""
    max_settle_batch: int = 1000
    """Most settlements in one request."""
    publish_max_inflight: int = 4
    """Requests to publish that are out at once (P5)."""
    publish_max_keys: int | None = None
    """Requests with an ordering key that are out at once, each of another key; ``None`` where they share
    :attr:`publish_max_inflight`.  Set it if a request carries only one key: of messages that all have different keys,
    so many leave in the time of one round trip."""

    capabilities: Capabilities
    """What this configuration promises."""
    address: str = ""
    """Where the broker is, for errors and logs; without secrets."""
    connection_restored: Callable[[], None] = staticmethod(lambda: None)
    """Set by the engine.  A driver may call it, at home, when its connection was lost and is there again.  All that
    waits for its next try then tries at once."""

    def __init__(self, topic_name: str, project_id: str, options: OptionsT) -> None:
        """Validate; no I/O, no thread, no import of an SDK.

        :raises ConfigurationError: for what the options class cannot check by itself, such as the topic's name.
        """
        self.topic_name = topic_name
        self.project_id = project_id
        self.options = options

    @abstractmethod
    async def open(self) -> None:
        """Import the SDK, connect, and create the topic and the configured subscription where options allow (Q2).

        Called again after a failure; never twice at once.  Cancelled after ``connect_timeout``, or sooner where the
        call that connects has less time: what it has begun must be undone then too.

        :raises BrokerError: when it failed; the driver is then as if never opened.
        """

    def objection(self, message: EventMessage) -> str:
        """What the broker has against *message* beyond its limits, ``""`` when nothing."""
        return ""

    @abstractmethod
    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        """Store *messages* in order; returns when they are stored, as durably as declared.

        Unless :attr:`mixed_keys`, all are of one ordering key or of none.  Called concurrently, never twice at once
        for one key.  One result for each message, in order: its id, or why it alone was not stored, which is
        final; after a failed message, later ones of its key must not be stored (``NOT_ATTEMPTED``).

        Cancelled when the last of *messages* has reached its ``send_timeout``, and when the client is torn down: the
        messages may then be stored or not.

        :raises BrokerError: when none was stored, or that is unknown.  ``INVALID`` for a batch makes the engine send
            its halves, until only the offenders fail.
        """

    @abstractmethod
    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:
        """Join *subscription*, or make an ephemeral one for ``None``; creates what is missing as options allow.

        What is published after this returned is received.  Cancelled when ``connect_timeout`` is over, it leaves
        nothing behind.

        :param wake: an inline source calls it, from any thread, when :meth:`Source.fetch` may find more; a source with
            :attr:`Source.safe_until`, when buffered messages may be handed out again.
        :raises BrokerError: ``NOT_FOUND``, ``PERMISSION_DENIED``, ``INVALID`` for one that contradicts the options.
        """

    async def has_subscription(self) -> bool | None:
        """Return whether the topic has a subscription; ``None`` if the broker cannot tell.

        The engine asks once, after the first message was stored, and warns if nobody will receive it.  Called
        concurrently with everything but :meth:`open` and :meth:`close`.  Cancelled after 5 seconds, and when the client
        closes.

        :raises BrokerError: when asking failed; then there is no warning.
        """
        return None

    async def keep_dead_letters(self, subscription: str) -> bool | None:
        """Create *subscription* of ``options.dead_letter_topic`` if that topic has no durable one (R12).

        Options must allow that.  An ephemeral subscription does not count, because it ends with its receiver.  Called
        before each :meth:`subscribe` of a client that has such a topic.  The new subscription never expires, and
        starts with the oldest letter that the broker still has.  Cancelled when ``connect_timeout`` is over.

        :returns: whether the topic has a durable subscription now; ``None`` if the broker cannot tell.
        :raises BrokerError: when that failed.  The engine logs it and goes on; ``PERMISSION_DENIED`` at DEBUG.
        """
        return None

    @abstractmethod
    async def delete_subscription(self, subscription: str) -> None:
        """Delete it with all it has not delivered.  Cancelled when ``connect_timeout`` is over.

        :raises BrokerError: ``NOT_FOUND`` when there is none.
        """

    @abstractmethod
    async def ping(self) -> None:
        """Return after one authenticated, read-only answer of the broker.  Cancelled when the caller's time is up.

        :raises BrokerError: when there was none.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release everything; its sources have been closed.  Called once, also after a failed :meth:`open`.

        Cancelled when the client has no more time to close.
        """
