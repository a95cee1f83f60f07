"""The receiver of every backend on the engine: an :class:`EventReceiver` over a source.

``inbox.py`` opens with the rules of its lock, and ``closing.py`` with the steps of closing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar

from events_core.arguments import checked_delay, checked_seconds, checked_text, described
from events_core.capabilities import Capabilities
from events_core.engine.closing import SHORTEST_CLOSE, CloseTime
from events_core.engine.driver import BrokerError, Delivery, Outcome, Source
from events_core.engine.failure import UNFORESEEN, is_meant
from events_core.engine.feed import Feed, PrefetchingFeed
from events_core.engine.inbox import Inbox
from events_core.engine.ledger import Ledger
from events_core.engine.settlements import Ticket
from events_core.engine.settler import Settler
from events_core.engine.surroundings import Surroundings
from events_core.engine.translation import translate
from events_core.engine.waiting import SingleFlight, Waiter, WaitingRoom
from events_core.errors import AcknowledgeError, ErrorCode, EventError, EventRuntimeError, ReceiveError
from events_core.interface import EventReceiver, ReceiverStats
from events_core.message import EventMessage, ReceivedMessage
from events_core.observing import UNOBSERVED

__all__ = ["EngineReceiver"]

_log = logging.getLogger("events_core.receiver")

AT_ONCE = 1000
"""The number of settlements that one call begins before other tasks of the loop have their turn."""
BLOCKED_WARNING = 10.0
"""Seconds after which a receive warns if it only waits for a bound, or for held messages of a key (R8)."""


class EngineReceiver(EventReceiver):
    """The receiver of every backend on the engine.

    A feed brings deliveries in, and a settler tells the broker their outcomes.  Both work at home, and share the inbox
    with the application's calls.

    A message is handed out in the thread of the coroutine that receives it, at the moment when that coroutine runs.
    There is no ``await`` between handing out and returning.  So a cancelled receive loses nothing.
    """

    _settler_class: ClassVar[type[Settler]] = Settler

    def __init__(self, source: Source, waiting: WaitingRoom, surroundings: Surroundings) -> None:
        """Begin to receive from *source*; at home.

        :param waiting: the room in which receives wait.  The source wakes them too.
        """
        self._source = source
        self._waiting = waiting
        self._home = surroundings.home
        self._check = surroundings.check_process
        self._is_observed = surroundings.is_observed
        self._observed = surroundings.observed
        self._located = surroundings.located
        self._forget = surroundings.forget
        options = surroundings.options
        self._ledger = Ledger(
            max_messages=options.max_outstanding_messages,
            max_bytes=options.max_outstanding_bytes,
            max_lease_duration=options.max_lease_duration,
            longest_hold=source.longest_hold,
            keeps_delays=source.keeps_delays,
            redelivers_locally=source.redelivers_locally,
            local_attempts=source.local_attempts,
            eager=source.pushes,
            keeps_order=source.capabilities.ordering != "none",
        )
        self._inbox = inbox = Inbox(self._ledger, surroundings.settle_unit)
        self._lock = inbox.lock
        self._settler = self._settler_class(
            source,
            inbox,
            home=self._home,
            link=surroundings.link,
            limit=surroundings.settle_limit,
            timeout=options.ack_timeout,
            progressed=self._progressed,
        )
        self._feed = self._begin_feed(source, surroundings)
        self._dead_letter_topic = options.dead_letter_topic
        self._closing = False
        """Whether nothing is handed out any more."""
        self._closed = False
        """Whether nothing is settled any more either."""
        self._ending = False
        """Whether a task closes the source, or has closed it."""
        self._close_time = CloseTime()
        self._shutting = SingleFlight(self._home.run)
        self._empty: Waiter | None = None
        """The waiter of a close that waits for settlements to end."""

    def _begin_feed(self, source: Source, surroundings: Surroundings) -> Feed:
        return PrefetchingFeed(
            source,
            self._inbox,
            self._settler,
            waiting=self._waiting,
            surroundings=surroundings,
            left=lambda: self._home.spawn(self.close(timeout=0)),
        )

    @property
    def subscription(self) -> str:
        return self._source.subscription

    @property
    def capabilities(self) -> Capabilities:
        return self._source.capabilities

    @property
    def stats(self) -> ReceiverStats:
        now = time.monotonic()
        with self._lock:
            return ReceiverStats(
                held=self._ledger.held,
                buffered=self._ledger.buffered,
                blocked_keys=len(self._ledger.blocked_keys()),
                reconnects=self._feed.reconnects,
                duplicates=self._ledger.duplicates,
                last_message_age=_age(self._feed.last_message, now),
                last_alive_age=_age(self._feed.last_alive, now),
            )

    # Receiving

    async def receive_message(self, timeout: float | None = None) -> ReceivedMessage | None:
        messages = await self.receive_messages(1, timeout)
        return messages[0] if messages else None

    async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
        if not isinstance(limit, int):
            raise TypeError(f"limit must be an int, not {described(limit)}")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {described(limit)}")
        if not self._is_observed():
            return await self._receive(limit, timeout)
        with self._observed("receive", subscription=self.subscription) as operation:
            received = await self._receive(limit, timeout)
            if operation is not None:
                operation.messages, operation.received = len(received), tuple(received)
            return received

    async def _receive(self, limit: int, timeout: float | None) -> list[ReceivedMessage]:
        began = time.monotonic()
        ends = math.inf if timeout is None else began + checked_seconds("timeout", timeout)
        warns = began + BLOCKED_WARNING
        while True:
            # Read before looking: if something happens in between, enter() below returns None, and we look again.
            events = self._waiting.events
            taken = self._take(limit)
            now = time.monotonic()
            if taken or now >= ends:
                if not taken:
                    # Perhaps this receive alone had a timer for the next delivery that falls due.  Another one sets its
                    # own when it is woken.
                    self._waiting.wake()
                return [_message(delivery) for delivery in taken]
            waiter = self._waiting.enter(events)
            if waiter is None:
                continue
            try:
                await self._waiting.wait(waiter, self._time_to_wait(min(ends, warns)))
            except asyncio.CancelledError:
                self._waiting.wake()  # perhaps this one was woken for a message; pass that on
                raise
            if time.monotonic() >= warns:
                warns = math.inf
                self._warn_if_blocked()

    def _take(self, limit: int) -> Sequence[Delivery]:
        """Hand out up to *limit* deliveries that are ready now."""
        self._check()
        with self._lock:
            if self._closing:
                raise self._located(EventRuntimeError("the receiver is closed", code=ErrorCode.CLOSED))
            now = time.monotonic()
            self._inbox.give_back_overdue(now)
            try:
                taken = self._feed.take(limit, now)
            except BrokerError as error:
                raise self._located(translate(error, ReceiveError)) from error.__cause__
            more = bool(taken) and self._feed.may_have_more(now)
        if more:
            # One event wakes one receive of each loop, and a burst of messages is one event.  So each receive that has
            # found something wakes the next one.
            self._waiting.wake()
        self._settler.pump()
        return taken

    def _time_to_wait(self, until: float) -> float | None:
        """Return the seconds until something falls due in the feed, at the latest *until*; ``None`` for no bound."""
        with self._lock:
            due = self._feed.next_due()
        first = until if due is None else min(until, due)
        return None if first == math.inf else first - time.monotonic()

    def _warn_if_blocked(self) -> None:
        with self._lock:
            full, ids = self._ledger.is_full(), self._ledger.held_ids()
            keys = self._ledger.blocked_keys()
        if full:
            _log.warning(
                "%s: nothing is fetched while max_outstanding_messages or max_outstanding_bytes is reached; held: %s",
                self.subscription,
                _some(ids),
            )
        elif keys:
            self._warn_of_keys(keys)
        else:  # in a task at home, so that no receive waits for the broker's answer
            self._home.wake(lambda: self._home.spawn(self._warn_of_withheld()))

    async def _warn_of_withheld(self) -> None:
        try:
            async with self._home.timeout(BLOCKED_WARNING):
                keys = await self._source.withheld()
        except UNFORESEEN as error:
            if is_meant(error):
                raise
            _log.debug("%s: could not find out which keys the broker holds back: %r", self.subscription, error)
        else:
            self._warn_of_keys(keys)

    def _warn_of_keys(self, keys: Collection[str]) -> None:
        for key in list(keys)[:1]:
            with self._lock:
                ids = self._ledger.held_ids(key)
            _log.warning("%s: ordering key %r waits for held messages: %s", self.subscription, key, _some(ids))

    def __aiter__(self) -> AsyncIterator[ReceivedMessage]:
        return _Messages(self)

    # Settling

    async def acknowledge(self, message: ReceivedMessage | str) -> None:
        await self._settle([message], Outcome.ACK, None, single=True)

    async def acknowledge_messages(self, messages: Iterable[ReceivedMessage | str]) -> None:
        await self._settle(messages, Outcome.ACK, None)

    async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
        await self._settle([message], Outcome.NACK, self._checked(delay), single=True)

    async def nack_messages(self, messages: Iterable[ReceivedMessage | str], *, delay: float | None = None) -> None:
        await self._settle(messages, Outcome.NACK, self._checked(delay))

    async def reject(self, message: ReceivedMessage | str, reason: str = "") -> None:
        self._check()
        checked_text("reason", reason)
        if self._dead_letter_topic is None or not self.capabilities.reject:
            raise self._located(EventRuntimeError(self._why_not_reject(), code=ErrorCode.UNSUPPORTED))
        await self._settle([message], Outcome.REJECT, None, single=True, reason=reason)

    def _why_not_reject(self) -> str:
        if self._dead_letter_topic is None:
            return "reject was asked, and there is no dead-letter topic; set the option dead_letter_topic"
        return "reject was asked; this backend cannot dead-letter a message at once, so nack it"

    async def hand_back(self, message: ReceivedMessage) -> None:
        await self._settle([message], Outcome.RETURN, None, single=True)

    def observe_processing(self, message: ReceivedMessage) -> AbstractContextManager[object]:
        if not self._is_observed():
            return UNOBSERVED
        return self._observed("process", subscription=self.subscription, messages=1, received=(message,))

    def abandon(self, message: ReceivedMessage) -> None:
        self._inbox.abandoned.append(message)

    def _checked(self, delay: float | None) -> float | None:
        if delay is None:
            return None
        delay = checked_delay("delay", delay)
        longest = self.capabilities.limits.max_nack_delay
        if longest is not None and delay > longest:
            raise self._located(
                EventRuntimeError(
                    f"a delay of {delay!r} s was asked of nack; this backend can delay {longest:g} s at most",
                    code=ErrorCode.UNSUPPORTED,
                )
            )
        return delay

    async def _settle(
        self,
        messages: Iterable[ReceivedMessage | str],
        outcome: Outcome,
        delay: float | None,
        *,
        single: bool = False,
        reason: str = "",
    ) -> None:
        self._check()
        targets = list(messages)
        for target in targets:
            if not isinstance(target, (ReceivedMessage, str)):
                raise TypeError(f"settle a ReceivedMessage or a message id, not a {type(target).__name__}")
        if not self._is_observed():
            await self._settle_checked(targets, outcome, delay, single, reason)
            return
        with self._observed(
            "settle", subscription=self.subscription, messages=len(targets), received=targets, outcome=outcome
        ):
            await self._settle_checked(targets, outcome, delay, single, reason)

    async def _settle_checked(
        self,
        targets: Sequence[ReceivedMessage | str],
        outcome: Outcome,
        delay: float | None,
        single: bool,
        reason: str,
    ) -> None:
        if len(targets) <= AT_ONCE:
            ticket = self._begin(targets, outcome, delay, reason)
        else:
            ticket = await self._begin_gently(targets, outcome, delay, reason)
        await self._settler.finished(ticket)
        if ticket.failed:
            raise await self._failed(dict(ticket.failed), single)

    def _begin(
        self,
        targets: Sequence[ReceivedMessage | str],
        outcome: Outcome,
        delay: float | None,
        reason: str,
        ticket: Ticket | None = None,
    ) -> Ticket:
        """Begin to settle *targets*; return the ticket to wait with, which is *ticket* if there is one already."""
        with self._lock:
            if self._closed:
                raise self._located(EventRuntimeError("the receiver is closed", code=ErrorCode.CLOSED))
            now = time.monotonic()
            self._inbox.give_back_overdue(now)
            return self._settler.begin(targets, outcome, delay, now, reason, ticket)

    async def _begin_gently(
        self, targets: Sequence[ReceivedMessage | str], outcome: Outcome, delay: float | None, reason: str
    ) -> Ticket:
        """Do what :meth:`_begin` does for many *targets*, and let other tasks run in between."""
        ticket: Ticket | None = None
        for start in range(0, len(targets), AT_ONCE):
            if ticket is not None:
                self._settler.pump()
                await asyncio.sleep(0)
            ticket = self._begin(targets[start : start + AT_ONCE], outcome, delay, reason, ticket)
        assert ticket is not None
        return ticket

    def _progressed(self) -> None:
        """Wake all that may wait for the end of a settlement: fetching, a receive whose key was held, a close."""
        self._feed.fetch_again()
        self._waiting.wake()
        # Read after the change was made under the lock: a close that has not seen it has set this before (inbox.py).
        waiter = self._empty
        if waiter is not None:
            waiter.wake()

    async def _failed(self, failed: dict[str, BrokerError], single: bool) -> EventError:
        errors: dict[str, EventError] = {}
        for message_id, failure in failed.items():
            if errors and len(errors) % AT_ONCE == 0:
                await asyncio.sleep(0)
            errors[message_id] = self._located(translate(failure, AcknowledgeError))
        first = next(iter(failed.values()))
        if single and first.code is ErrorCode.CLOSED:
            return errors.popitem()[1]
        text = str(first) if single else f"{len(failed)} messages could not be settled; first: {first}"
        error = AcknowledgeError(
            text,
            code=first.code,
            retryable=all(other.retryable for other in failed.values()),
            failed=errors,
        )
        error.__cause__ = first.__cause__
        return self._located(error)

    # Closing

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:  # perhaps of the garbage collector, which cannot await the close below
            self._inbox.is_left = True
        await super().__aexit__(kind, error, trace)

    async def close(self, timeout: float = 15.0) -> None:
        self._check()
        timeout = checked_seconds("timeout", timeout)
        with self._lock:
            self._closing = True
        self.hasten_close(timeout)
        self._waiting.wake_all()
        try:
            await self._shutting.run(self._shut, lambda: self._closed, max(timeout, SHORTEST_CLOSE))
        except TimeoutError:
            await self._home.overdue(self.end, f"the receiver of {self.subscription!r}")
            self.give_up()
        except BrokerError:
            pass  # its client has closed it in the meantime

    def hasten_close(self, timeout: float) -> None:
        """Let a close take *timeout* seconds from now at most.  Of several callers the least patient one decides."""
        with self._lock:
            self._close_time.hasten(timeout)
            waiter = self._empty
        if waiter is not None:
            waiter.wake()

    async def _shut(self) -> None:
        """Stop fetching, give back what is free, wait for what is held, and end."""
        try:
            with self._lock:
                self._close_time.begin()
            await self._feed.stop_fetching(self._close_time.step())
            with self._lock:
                self._inbox.give_back_overdue(time.monotonic())
                self._inbox.settlements.enqueue(self._ledger.close())
            self._settler.pump()
            self._feed.finish_fetching()
            # Settling goes on: messages that the application holds can end here instead of coming again.
            await self._until(self._is_quiet, self._close_time.patience)
        except asyncio.CancelledError:  # there is no more time to wait for the application
            await self.end()
            raise
        await self.end()

    async def end(self) -> None:
        """Give back everything and close the source, once; at home, after :meth:`hasten_close`.

        If another task does so already, wait for that task.  When this returns, the client takes the receiver for
        closed, and cancels what still runs.
        """
        # The receiver's close and its client's may both come here, in different threads if the home is inline.
        with self._lock:
            begins = not self._ending
            if begins:
                self._ending = self._closing = True
                self._close_time.begin()
        if not begins:
            await self._until_closed()
            return
        self._waiting.wake_all()
        # First the feed, so that nothing arrives behind what is given back.
        await self._feed.stop_fetching(self._close_time.step())
        self._feed.finish_fetching()
        with self._lock:
            self._inbox.settlements.enqueue((*self._ledger.close(), *self._ledger.surrender()))
        self._settler.pump()
        await self._until(self._is_told, self._close_time.flush)
        # Leases are kept until all that can be told has been told: a lapsed one would make the settlement EXPIRED.
        await self._settler.stop(self._close_time.step())
        await self._feed.stop(self._close_time.step())
        # The second half of the step is for a closing that ignores its cancellation.
        within = self._close_time.step(2 * self._source.close_time)
        self._source.close_time = within / 2
        await self._home.close_quietly(self._source.close(), repr(self.subscription), within)
        self.give_up()
        self._forget(self)

    def _is_quiet(self) -> bool:
        """Return whether nothing is held, and nothing more will come.  Under the lock."""
        return not self._ledger.held and self._feed.has_finished

    def _is_told(self) -> bool:
        """Return whether the broker knows all that was settled, and nothing more will come.  Under the lock."""
        return self._inbox.settlements.is_idle and self._feed.has_finished

    async def _until_closed(self) -> None:
        ends = time.monotonic() + SHORTEST_CLOSE
        while (left := ends - time.monotonic()) > 0:
            events = self._waiting.events
            if self._closed:
                return
            waiter = self._waiting.enter(events)
            if waiter is not None:
                await self._waiting.wait(waiter, left)

    def give_up(self) -> None:
        """Refuse every call from now on, and fail the calls that wait; in any thread, without the lock."""
        with self._lock:
            if self._closed:
                return
            self._closing = self._closed = True
        # After the flag: a call that is woken finds it set, and a settlement that begins later is refused.
        self._waiting.wake_all()
        self._settler.close()

    async def _until(self, done: Callable[[], bool], seconds: Callable[[], float]) -> None:
        """Wait until *done* returns True, or until *seconds* are over; another caller may shorten them."""
        while True:
            with self._lock:
                left = seconds()
                if done() or left <= 0:
                    return
                waiter = self._empty = Waiter()
            await waiter.wait(left)


class _Messages(AsyncIterator[ReceivedMessage]):
    """An iterator over messages.  Unlike a generator it goes on after an error."""

    def __init__(self, receiver: EngineReceiver) -> None:
        self._receiver = receiver

    async def __anext__(self) -> ReceivedMessage:
        try:
            message = await self._receiver.receive_message()
        except EventRuntimeError as error:
            if error.code is ErrorCode.CLOSED:
                raise StopAsyncIteration from None
            raise
        assert message is not None
        return message


def _age(instant: float, now: float) -> float | None:
    return None if math.isnan(instant) else now - instant


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:10])
    return f"{shown} and {len(ids) - 10} more" if len(ids) > 10 else shown


class _Unfrozen(EventMessage):
    """A message that is being made.

    It has the slots of a :class:`ReceivedMessage`, and becomes one when they are set.  To set them on the frozen class
    would take three times as long.
    """

    __slots__ = ("delivery", "delivery_attempt", "publish_time")
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__  # without it, CPython takes the slow way for both


def _message(delivery: Delivery) -> ReceivedMessage:
    """Return the application's view of *delivery*, made without the checks for what an application passes."""
    message: Any = object.__new__(_Unfrozen)
    attributes = delivery.attributes
    message.data = delivery.data
    message.attributes = MappingProxyType(attributes) if type(attributes) is dict else attributes
    message.ordering_key = delivery.ordering_key
    message.message_id = delivery.message_id
    message.publish_time = delivery.publish_time
    message.delivery_attempt = delivery.delivery_attempt
    message.delivery = delivery
    message.__class__ = ReceivedMessage
    received: ReceivedMessage = message
    return received
