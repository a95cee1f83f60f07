"""Settlements on their way to the broker, and the callers that wait for them.  This module does no I/O.

A settlement is one delivery with its outcome.  It goes this way::

    enqueue ──▶ queued ──next──▶ out ──answered──▶ ended
                 ▲ ▲              │ │
                 │ └──put_back────┘ └──answered: refused for a while──▶ deferred
                 └──────────────────────────retry───────────────────────────┘

* One request is out at a time.  While it is out, further settlements gather in the queue, and travel together in the
  next one (S4).  A second request could overtake the first one, and break the order of a key.
* If each request of the broker costs, settlements wait a moment so that they fill one (``gathering.py``).
* A nack may wait for its delay first, if the broker has no delays (``delays.py``).  Its callers do not wait for that.
* When a request fails as a whole, its settlements go back to the front of the queue, in order.
* When the broker refuses one settlement for a while, that one is deferred.  The others go on, and it follows later.
* A caller waits with a :class:`Ticket`.  Several callers may wait for one settlement (S2).  If the last of them gives
  up before the settlement has left, it never leaves (S5).

The settler drives this at home (``settler.py``): :meth:`Settlements.claim`, :meth:`Settlements.wait` until it returns
0, then :meth:`Settlements.next`, the request, and :meth:`Settlements.answered` or :meth:`Settlements.put_back`.  Then
it waits again, until ``next`` returns nothing.
A timer of the settler calls :meth:`Settlements.retry`.  The receiver's lock guards all of it (``inbox.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from events_core.engine.driver import BrokerError, Outcome, Settlement
from events_core.engine.gathering import Gathering
from events_core.engine.ledger import Begun, Ledger
from events_core.engine.wakeable import Wakeable
from events_core.errors import ErrorCode

__all__ = ["Settlements", "Ticket", "error_for_callers"]


class Ticket:
    """One call that waits for several settlements."""

    __slots__ = ("awaited", "failed", "is_noted", "pending", "waiter")

    def __init__(self, begun: Begun) -> None:
        self.awaited = begun.awaited
        self.failed = begun.refused
        """The errors of messages that were not settled, by message id."""
        self.is_noted = False
        """Whether the source has acknowledged some at once."""
        self.pending = 0
        """The number of settlements that have not ended."""
        self.waiter: Wakeable | None = None

    def extend(self, begun: Begun) -> None:
        """Wait also for the settlements that the same call has *begun* later."""
        self.awaited += begun.awaited
        self.failed.update(begun.refused)

    def register(self, settlements: Iterable[Settlement]) -> None:
        """Let each of *settlements* report its end here."""
        for settlement in settlements:
            if self not in settlement._tickets:
                settlement._tickets += (self,)
                self.pending += 1

    def report(self, message_id: str, error: BrokerError | None) -> None:
        """Record the end of one settlement."""
        if error is not None:
            self.failed[message_id] = error
        self.pending -= 1
        if not self.pending and self.waiter is not None:
            self.waiter.wake()


class Settlements:
    """The settlements of one receiver that are under way."""

    def __init__(self, ledger: Ledger, unit: int = 1) -> None:
        """Begin with nothing under way.

        :param unit: the number of settlements that share one request of the broker.
        """
        self._ledger = ledger
        self._unit = unit
        self._gathering = Gathering(unit)
        self.is_waiting = False
        """Whether what is queued waits for further settlements."""
        self.queued: deque[Settlement] = deque()
        """The settlements that leave next.  Only this class changes it."""
        self._out: Sequence[Settlement] = ()
        """The settlements of the newest request.  Ending one of them twice does nothing, so no one clears it."""
        self._deferred: list[Settlement] = []
        self._is_busy = False
        """Whether a request is out, or about to leave."""
        self.is_stopped = False
        """Whether nothing leaves any more."""

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is under way."""
        return not self.queued and not self._deferred and not self._is_busy

    @property
    def may_leave(self) -> bool:
        """Return whether a request can leave now."""
        return bool(self.queued) and not self._is_busy

    @property
    def is_worth_it(self) -> bool:
        """Return whether what is queued need not wait for more: it fills a request, or is all that is held."""
        return len(self.queued) >= self._unit or not self._is_more_held

    @property
    def _is_more_held(self) -> bool:
        return self._ledger.held > len(self.queued) + len(self._deferred) and not self._ledger.closing

    @property
    def has_deferred(self) -> bool:
        """Return whether the broker has refused some for a while."""
        return bool(self._deferred)

    def enqueue(self, settlements: Iterable[Settlement]) -> None:
        """Queue *settlements* for the next request, in order."""
        for settlement in settlements:
            settlement.delivery._settlement = settlement
            self.queued.append(settlement)

    def claim(self) -> bool:
        """Claim the one request; return False if one is out already, or nothing is queued."""
        if not self.may_leave:
            return False
        self._is_busy = True
        return True

    def wait(self, now: float) -> float:
        """Return the seconds to wait for further settlements before :meth:`next`."""
        seconds = self._gathering.wait(len(self.queued), self._is_more_held, now)
        self.is_waiting = seconds > 0
        return seconds

    def next(self, limit: int, now: float) -> list[Settlement]:
        """Return up to *limit* settlements that leave now.  If there are none, end the claim.

        Nacks that wait for their delay here do not leave now, and have ended for their callers.  What goes back does
        not leave while its lease is being renewed, nor does what goes back behind it.  The renewal could overtake it,
        and the broker would keep the message.  Acknowledgements need not wait.
        """
        batch: list[Settlement] = []
        waiting: list[Settlement] = []
        limit = min(limit, self._gathering.take(len(self.queued), self._is_more_held))
        renewing = self._ledger.renewing
        while self.queued and not self.is_stopped and len(batch) < limit:
            settlement = self.queued.popleft()
            if settlement._given_up:
                continue
            delay = self._ledger.delay_here(settlement)
            if delay:
                self._end(settlement, None)
                self._ledger.delays.keep(settlement.delivery, now + delay)
            elif (
                renewing
                and (waiting or settlement.delivery.message_id in renewing)
                and not self._ledger.is_last(settlement)
            ):
                waiting.append(settlement)
            else:
                settlement.delivery._is_out = True
                batch.append(settlement)
        self.queued.extendleft(reversed(waiting))
        self._is_busy = bool(batch)
        self._out = batch
        return batch

    def put_back(self) -> None:
        """Move the settlements of a request that failed as a whole back to the front of the queue."""
        self._gathering.answered(len(self.queued))
        for settlement in self._out:
            settlement.delivery._is_out = False
            self._ledger.use_newer_token(settlement.delivery)
        self.queued.extendleft(reversed(self._out))

    def answered(self, results: Iterable[BrokerError | None]) -> None:
        """Record the broker's answers to what is out."""
        self._gathering.answered(len(self.queued))
        for settlement, error in zip(self._out, results, strict=True):
            delivery = settlement.delivery
            delivery._is_out = False
            if delivery._newer_token is not None and self._repeats_with_newer_token(settlement, error):
                if not settlement._given_up:
                    self.queued.append(settlement)
            elif error is not None and error.retryable:
                self._deferred.append(settlement)
            else:
                self._end(settlement, error)

    def retry(self) -> None:
        """Queue the deferred settlements again, at the end: one before them may be why the broker has refused them."""
        self.queued += self._deferred
        self._deferred.clear()

    def abort(self) -> None:
        """Record that the request was cancelled, or has failed in an unforeseen way."""
        self._is_busy = False

    def stop(self) -> None:
        """Let no request leave from now on."""
        self.is_stopped = True

    def give_up(self, ticket: Ticket, error: BrokerError) -> None:
        """End the wait of *ticket* with *error*; the messages stay held unless another caller waits too (S5)."""
        for settlement in ticket.awaited:
            if ticket not in settlement._tickets:
                continue
            others = tuple(other for other in settlement._tickets if other is not ticket)
            if others or settlement.delivery._settlement is not settlement:
                settlement._tickets = others
                ticket.report(settlement.delivery.message_id, error)
            else:
                settlement._given_up = True
                self._end(settlement, error)

    def give_all_up(self, error: BrokerError) -> None:
        """End everything that is under way with *error*."""
        for settlement in (*self._out, *self.queued, *self._deferred):
            settlement._given_up = True
            self._end(settlement, error)

    def _repeats_with_newer_token(self, settlement: Settlement, error: BrokerError | None) -> bool:
        """Use the newer token of a message that came again before the answer; return whether to settle with it (S2).

        The newer copy takes the outcome of the older one.
        """
        delivery = settlement.delivery
        self._ledger.use_newer_token(delivery)
        if not self._ledger.is_last(settlement):
            return False
        if error is None:
            delivery._was_acknowledged = True
            if settlement.outcome is not Outcome.ACK:
                # The message was dead-lettered.  The same outcome for the newer copy would make a second letter.
                self.queued.append(Settlement(delivery, Outcome.ACK))
                return False
            # If the caller's time was up and it has not asked again, the late success counts.
            return not settlement._given_up or delivery._settlement is not None
        return error.code is ErrorCode.EXPIRED

    def _end(self, settlement: Settlement, error: BrokerError | None) -> None:
        delivery = settlement.delivery
        if error is not None and error.code is ErrorCode.EXPIRED and delivery._was_acknowledged:
            error = None  # an older token was acknowledged, so the broker has deleted the message and its newer copy
        newer = delivery._settlement
        if newer is settlement or newer is None:
            behind = self._ledger.finish(settlement, error)
            if behind:
                self.enqueue(behind)
        elif error is None and newer.outcome is settlement.outcome:
            newer._given_up = True  # the caller gave the first one up and asked again; the first one has succeeded
            self._end(newer, None)
        result = error_for_callers(settlement, error)
        for ticket in settlement._tickets:
            ticket.report(delivery.message_id, result)
        settlement._tickets = ()


def error_for_callers(settlement: Settlement, error: BrokerError | None) -> BrokerError | None:
    """Return the error that the callers of *settlement* get; ``None`` for a success.

    Giving a message back is a success if the broker has already taken it back (S3).
    """
    # Success first: this runs for each settlement, and reading a member of an enumeration is slow (CPython 3.11).
    if error is None or error.code is not ErrorCode.EXPIRED:
        return error
    gives_back = settlement.outcome is Outcome.NACK or settlement.outcome is Outcome.RETURN
    return None if gives_back else error
