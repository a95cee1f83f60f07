"""The deliveries of one receiver: which are buffered, held, settled or gone.

This module does no I/O and reads no clock: its callers pass ``now``.

Only this file moves a delivery from one state to another::

    BUFFERED ──take──▶ HELD ──begin──▶ SETTLING ──finish──▶ ACKNOWLEDGED | NACKED | REJECTED
       │                │ ▲               │
       │                │ └──finish(error)┘
       └──expire/close──┴──expire/close/nack of a predecessor──▶ RETURNED

A delivery that is over never comes back.  If its message comes again, that is a new delivery.

It keeps these rules of the contract: R5 (bounds), R6 (expiry), R7 (duplicates), R8 and R10 (order per key), S2 and S3
(settling twice or too late).  Its caller holds the lock (``inbox.py``).
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

from events_core.engine.backoff import redelivery_delay
from events_core.engine.dead_letter import LocalAttempts
from events_core.engine.delays import Delays
from events_core.engine.driver import BrokerError, Delivery, Outcome, Settlement, State
from events_core.engine.keyed_queue import KeyedQueue
from events_core.engine.limits import message_size
from events_core.errors import ErrorCode
from events_core.message import ReceivedMessage

__all__ = ["Begun", "Ledger"]

REMEMBERED = 10_000
"""The number of message ids of which the ledger at least remembers how their last delivery ended (S3)."""

# Reading a member off its class takes ten times as long as a global (CPython 3.11), and this is done for every message.
BUFFERED, HELD, SETTLING, ACKNOWLEDGED, NACKED, RETURNED, REJECTED = State
ACK, NACK, RETURN, REJECT = Outcome


class Begun:
    """The first result of a call to settle several messages."""

    __slots__ = ("awaited", "refused", "to_send")

    def __init__(self) -> None:
        self.to_send: list[Settlement] = []
        """The settlements to send to the broker, in this order."""
        self.awaited: list[Settlement] = []
        """The settlements that the caller waits for, including those that other calls have begun."""
        self.refused: dict[str, BrokerError] = {}
        """The errors of messages that cannot be settled in this way, by id."""


class Ledger:
    """The deliveries of one receiver.  It is not thread-safe: its owner locks."""

    def __init__(
        self,
        *,
        max_messages: int,
        max_bytes: int,
        max_lease_duration: float,
        longest_hold: float | None = None,
        keeps_delays: bool = True,
        redelivers_locally: bool = False,
        local_attempts: int | None = None,
        eager: bool = False,
        keeps_order: bool = True,
    ) -> None:
        """Begin empty.

        :param max_messages: the largest number of deliveries that are buffered or held.
        :param max_bytes: no more is fetched while the deliveries here have that many bytes.
        :param max_lease_duration: seconds after which a delivery is given up.
        :param longest_hold: seconds after its arrival by which a delivery must be given up; ``None`` for no bound.
        :param keeps_delays: whether the broker delays nacked messages.  If not, they wait in :attr:`delays`.
        :param redelivers_locally: see :class:`~events_core.engine.Source`, also for ``local_attempts``.
        :param eager: fetch whenever there is room, however little.
        :param keeps_order: whether the subscription keeps the order of keys.  If not, the ledger ignores keys.
        """
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._longest_hold = math.inf if longest_hold is None else longest_hold
        self.max_lease = min(max_lease_duration, self._longest_hold)
        """Seconds after which a delivery is given up."""
        # A delivery may be buffered for one lease and held for another, if the broker leaves it here for both.
        self._restarts = 2 * max_lease_duration <= self._longest_hold
        self._delays_here = not keeps_delays
        self.delays = Delays(self._longest_hold)
        self._local = redelivers_locally
        self._attempts = LocalAttempts(redelivers_locally, local_attempts)
        self._eager = eager
        self._keeps_order = keeps_order
        self._buffer: KeyedQueue[Delivery] = KeyedQueue()
        self._buffer.keeps_order = keeps_order
        # By message id.  It is sorted by deadline too, because an entry moves to the end when its deadline is set, and
        # all leases are equally long.  So expire() looks only at the first ones.
        self._live: OrderedDict[str, Delivery] = OrderedDict()
        # The last states of messages whose deliveries are over.  Once the newest ones are REMEMBERED, they become the
        # older ones, and those are dropped.  To drop them one by one would take three times as long.
        self._over: dict[str, State] = {}
        self._older: dict[str, State] = {}
        # Dictionaries as ordered sets: in the order in which they were handed out, and quick to remove from.
        self._held_by_key: dict[str, dict[Delivery, None]] = {}
        self._bytes = 0
        self.held = 0
        """The number of deliveries that are handed out and not over."""
        self.duplicates = 0
        """The number of deliveries that repeated one that was here already (R7)."""
        self.renewing: Collection[str] = ()
        """The ids of the messages whose leases are being renewed.  The lease keeper alone writes it, at home."""
        self.closing = False

    def keep_order(self, keeps_order: bool) -> None:
        """Keep the order of keys or not, as the broker says.

        A change waits until no delivery is here.  Otherwise a key that is busy now would never be released.
        """
        if keeps_order is not self._keeps_order and not self._live:
            self._keeps_order = self._buffer.keeps_order = keeps_order

    @property
    def buffered(self) -> int:
        """The number of deliveries that are here and not handed out."""
        return len(self._buffer) + len(self.delays)

    def room(self, prefetch: int | None) -> int:
        """Return the number of deliveries to fetch now.

        A small refill waits until it is worth a request, unless the ledger is *eager*.

        :param prefetch: the number of deliveries to have ready; ``None`` for as many as the bounds allow.
        """
        # Below the bound, fetch whatever comes: a message that is larger than the bound must be received too (R5).
        if self._bytes + self.delays.bytes >= self._max_bytes:
            return 0
        room = self._max_messages - self.held - self.buffered
        ahead = self._max_messages if prefetch is None else min(prefetch, self._max_messages)
        # Blocked deliveries do not count as ready.  Otherwise one busy key could keep all others from coming (R8).
        ready = len(self._buffer) - self._buffer.blocked_size
        room = min(room, ahead - ready)
        # A request is worth its cost if it may bring a quarter of what is fetched ahead.
        return room if self._eager or not ready or room * 4 >= ahead else 0

    def is_full(self) -> bool:
        """Return whether the bounds of R5 alone keep more from being fetched."""
        return self.held >= self._max_messages or self._bytes >= self._max_bytes

    def blocked_keys(self) -> list[str]:
        """Return the keys of which a buffered delivery waits for a held one."""
        return list(self._buffer.blocked())

    def held_ids(self, key: str | None = None) -> list[str]:
        """Return the ids of the messages that are handed out and not settled: those of *key*, or all."""
        held: Iterable[Delivery] = self._live.values() if key is None else self._held_by_key.get(key, ())
        return [delivery.message_id for delivery in held if delivery._state in (HELD, SETTLING)]

    # Arriving and handing out

    def arrive(self, deliveries: Sequence[Delivery], now: float, lease_until: float = math.inf) -> None:
        """Buffer what was fetched.  A delivery whose message is here already only gets the newer token (R7).

        Two cases are special:

        * The message is being given back, and comes again before the broker has confirmed that.  It is a new delivery,
          and the old one is over.  The confirmation no longer matters.
        * The message is being dead-lettered, and comes again.  The newer copy is dead-lettered with it: as a new
          delivery, it would be handed out after its successors.
        """
        live = self._live
        some_wait = len(self.delays) > 0  # usually none does
        for delivery in deliveries:
            delivery.lease_until = lease_until
            delivery._arrived = now
            known = live.get(delivery.message_id) or (self.delays.find(delivery.message_id) if some_wait else None)
            if known is not None and known._settlement is not None and not self.is_last(known._settlement):
                self._retire([known], _final_state(known._settlement.outcome))
                known = None
            if known is None:
                self._admit(delivery, now)
                self._buffer.push(delivery)
            else:
                known.lease_until = lease_until
                known._arrived = now
                known._is_lost = False
                self.duplicates += 1
                if known._is_out:
                    # The driver may still read the token.  In a tuple, because a token may be None.
                    known._newer_token = (delivery.token,)
                else:
                    known.token = delivery.token

    def is_last(self, settlement: Settlement) -> bool:
        """Return whether *settlement* ends the message: it is acknowledged, or the source dead-letters it."""
        return self._attempts.ends_message(settlement)

    @staticmethod
    def use_newer_token(delivery: Delivery) -> None:
        """Use the newer token of *delivery* from now on, if it has one.  No request with the older one may be out."""
        if delivery._newer_token is not None:
            (delivery.token,), delivery._newer_token = delivery._newer_token, None

    def hold(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Hand out deliveries that were fetched for the running call, without buffering them."""
        deadline = now + self.max_lease
        live = self._live
        for delivery in deliveries:
            delivery._owner = self
            delivery._deadline = deadline
            delivery.size = delivery.size or message_size(delivery)
            self._bytes += delivery.size
            live[delivery.message_id] = delivery
            self._hand_out(delivery)

    def take(self, limit: int, now: float) -> list[Delivery]:
        """Hand out up to *limit* deliveries, in order per key (R8)."""
        if self.closing:
            return []
        taken = self._buffer.pop(limit, now)
        deadline = now + self.max_lease
        for delivery in taken:
            if self._restarts:
                # The time of the application begins now; the time in the buffer does not count (R6).
                delivery._deadline = deadline
                self._live.move_to_end(delivery.message_id)
            self._hand_out(delivery)
        return taken

    def ready(self, now: float) -> bool:
        """Return whether :meth:`take` would hand anything out."""
        return not self.closing and self._buffer.ready(now)

    def next_due(self) -> float | None:
        """Return when a delayed delivery may be handed out; ``None`` if none is delayed."""
        return self._buffer.next_due()

    def _admit(self, delivery: Delivery, now: float) -> None:
        delivery._owner = self
        delivery._deadline = now + self.max_lease
        if not delivery.size:
            delivery.size = message_size(delivery)
        self._bytes += delivery.size
        self._live[delivery.message_id] = delivery

    def _hand_out(self, delivery: Delivery) -> None:
        delivery._state = HELD
        self.held += 1
        if delivery.ordering_key is not None and self._keeps_order:
            self._held_by_key.setdefault(delivery.ordering_key, {})[delivery] = None

    # Settling

    def begin(
        self,
        targets: Iterable[ReceivedMessage | str],
        outcome: Outcome,
        delay: float | None,
        now: float,
        reason: str = "",
    ) -> Begun:
        """Begin to settle *targets*.  Call :meth:`expire` first, with the same *now*."""
        begun = Begun()
        for target in targets:
            delivery = self._find(target)
            if delivery is None or delivery._state is not HELD:
                refusal = self._refusal(target, delivery, outcome)
                if refusal is not None:
                    begun.refused[_id(target)] = refusal
                    continue
            elif outcome is ACK or outcome is REJECT or self._key(delivery) is None:
                begun.to_send.append(_begin(delivery, outcome, delay, reason))
            else:
                begun.to_send += self._begin_run(delivery, outcome, delay, now)
            if delivery is not None and delivery._settlement is not None:
                begun.awaited.append(delivery._settlement)
        return begun

    def begin_at_once(
        self, targets: Iterable[ReceivedMessage | str]
    ) -> tuple[list[Delivery], list[ReceivedMessage | str]]:
        """Begin to acknowledge those of *targets* that are held, without settlements.

        End that with :meth:`finish_at_once` or :meth:`hold_again` before the lock is released.

        :returns: the deliveries of those, and the other targets.
        """
        begun: list[Delivery] = []
        others: list[ReceivedMessage | str] = []
        for target in targets:
            delivery = self._find(target)
            if delivery is not None and delivery._state is HELD:
                delivery._state = SETTLING
                begun.append(delivery)
            else:
                others.append(target)
        return begun, others

    @staticmethod
    def hold_again(deliveries: Iterable[Delivery]) -> None:
        """Take back :meth:`begin_at_once`."""
        for delivery in deliveries:
            delivery._state = HELD

    def finish_at_once(self, deliveries: Sequence[Delivery], lost: Collection[Delivery]) -> list[Settlement]:
        """Record that *deliveries* are acknowledged, except those of them that were *lost*.

        :returns: the settlements for later deliveries of the lost ones' keys, which must go back too (R10).
        """
        # First those that are acknowledged: they do not go back, even if one before them is lost.
        self._retire([each for each in deliveries if each not in lost] if lost else deliveries, ACKNOWLEDGED)
        return [behind for delivery in lost for behind in self._return(delivery)]

    def _key(self, delivery: Delivery) -> str | None:
        """Return the key of *delivery*, if the subscription keeps the order of keys."""
        return delivery.ordering_key if self._keeps_order else None

    def _find(self, target: ReceivedMessage | str) -> Delivery | None:
        """Return the delivery that *target* names (S2).

        A message names its own delivery.  An id names the delivery that is handed out now; ``None`` if there is none.
        """
        if isinstance(target, ReceivedMessage):
            delivery = target.delivery
            return delivery if isinstance(delivery, Delivery) and delivery._owner is self else None
        live = self._live.get(target)
        return None if live is None or live._state is BUFFERED else live

    def _refusal(
        self, target: ReceivedMessage | str, delivery: Delivery | None, outcome: Outcome
    ) -> BrokerError | None:
        """Return the reason why a message that is not held cannot be settled (S2, S3).

        Return ``None`` if the message has the same outcome already, or is being settled with it.  Settling it again is
        then a success.
        """
        if delivery is not None:
            state: State | None = delivery._state
        else:
            state = self._last_state(target) if isinstance(target, str) else None
        if state is None:
            return _unknown(_id(target))
        if state is RETURNED:
            return _expired(_id(target)) if outcome is ACK or outcome is REJECT else None
        if delivery is not None and delivery._settlement is not None:
            first = delivery._settlement.outcome
        else:
            first = ACK if state is ACKNOWLEDGED else REJECT if state is REJECTED else NACK
        return None if first is outcome else _already_settled(_id(target), first)

    def _last_state(self, message_id: str) -> State | None:
        return self._over.get(message_id) or self._older.get(message_id)

    def delay_here(self, settlement: Settlement) -> float:
        """Return the seconds for which a nack waits in :attr:`delays` before the broker is told; 0 if it does not.

        A nack with a key never does: the ledger itself hands that message out again.
        """
        delivery = settlement.delivery
        if (
            not self._delays_here
            or settlement.outcome is not NACK
            or delivery._state is not SETTLING  # it goes back because its time is over, or its delay is
            or self.closing
            or self._key(delivery) is not None
            or self._attempts.are_used_up(delivery)
        ):
            return 0.0
        return redelivery_delay(delivery.delivery_attempt or 1) if settlement.delay is None else settlement.delay

    def _begin_run(self, delivery: Delivery, outcome: Outcome, delay: float | None, now: float) -> list[Settlement]:
        """Give back *delivery*, and with it every later one of its key (R10); return the settlements to send."""
        assert delivery.ordering_key is not None
        later = self._successors(delivery, delivery.ordering_key)
        if not self._local or self.closing or delivery._is_lost:
            # The broker keeps the order if it gets the run in one request.  When closing, nothing is handed out again.
            # What is lost may be with another receiver.
            return [_begin(delivery, outcome, delay), *self._give_back(later, delivery.ordering_key)]
        if outcome is NACK and self._attempts.are_used_up(delivery):
            last = [_begin(delivery, NACK, delay)]
            if later:
                # They are handed out again when the key is free, after the source has moved the dead letter.
                self._redeliver(later, RETURN, None, now)
            return last
        self._redeliver([delivery, *later], outcome, delay, now)
        return []

    def _successors(self, delivery: Delivery, key: str) -> list[Delivery]:
        """Return what was handed out of *key* after *delivery*, is still held and is not being settled."""
        later = itertools.dropwhile(lambda other: other is not delivery, self._held_by_key[key])
        return [other for other in itertools.islice(later, 1, None) if other._state is HELD]

    def _give_back(self, held: Sequence[Delivery], key: str) -> list[Settlement]:
        """Give back *held* and everything that is buffered of *key*, in order; return the settlements to send."""
        buffered = self._buffer.waiting(key)
        self._retire(held, RETURNED)
        self._drop(buffered)
        return [Settlement(delivery, RETURN) for delivery in (*held, *buffered)]

    def _redeliver(
        self, run: Sequence[Delivery], outcome: Outcome, delay: float | None, now: float, *, expired: bool = False
    ) -> None:
        """Put a run back into the buffer, as new deliveries; the old ones are over.

        :param outcome: the outcome of the first one.  A NACK counts an attempt, and the delay grows with the attempts.
        :param expired: True if the run goes back because its time is up, not because the application settles it.
        """
        # New objects, because the application may still have the old ones, and may settle them too late (S3).
        again = [_copy(delivery) for delivery in run]
        if outcome is NACK:
            again[0]._nacks += 1
            if again[0].delivery_attempt is not None:
                again[0].delivery_attempt += 1
        elif delay is None:
            delay = 0.0
        due = now + (redelivery_delay(again[0]._nacks) if delay is None else delay)
        again[0]._kept_until = due + self.max_lease
        for old, new in zip(run, again, strict=True):
            self._retire([old], _final_state(outcome) if old is run[0] and not expired else RETURNED, release=False)
            self._admit(new, now)
        self._buffer.restore(again, due)

    def finish(self, settlement: Settlement, error: BrokerError | None) -> Sequence[Settlement]:
        """Record the end of *settlement*: the delivery is settled, gone, or held as before.

        :param error: the broker's answer, or why there was none.
        :returns: the settlements for later deliveries of the key, which must go back too (R10).
        """
        delivery = settlement.delivery
        if delivery._settlement is settlement:
            delivery._settlement = None
        # The caller's time was up, so the delivery became held again.  Then the broker's success came.
        late = delivery._state is HELD and error is None
        if delivery._state is not SETTLING and not late:
            return ()  # it is over already, perhaps given back with its predecessor
        if error is None:
            self._retire([delivery], _final_state(settlement.outcome))
        elif error.code is ErrorCode.EXPIRED or (
            settlement.outcome is ACK and error.code in (ErrorCode.NOT_FOUND, ErrorCode.INVALID)
        ):
            # The broker does not know this delivery any more, so its message comes again.
            return self._return(delivery)
        elif error.code is ErrorCode.ALREADY_SETTLED:
            # The caller of another outcome had no more time, and the broker has applied it all the same (S5).
            self._retire([delivery], REJECTED if settlement.outcome is ACK else ACKNOWLEDGED)
        else:
            delivery._state = HELD
        return ()

    def _return(self, delivery: Delivery) -> list[Settlement]:
        """End a handed-out delivery whose message comes again; return settlements for its successors (R10)."""
        key = self._key(delivery)
        later = self._successors(delivery, key) if key is not None else []
        self._retire([delivery], RETURNED)
        return self._give_back(later, key) if key is not None else []

    def _retire(self, deliveries: Sequence[Delivery], state: State, *, release: bool = True) -> None:
        """End handed-out deliveries.

        :param release: whether to free their keys.  Pass False if the run goes back into the buffer.
        """
        self.held -= len(deliveries)
        over = self._over
        for delivery in deliveries:
            delivery._state = state
            self._leave(delivery)
            if delivery.ordering_key is not None and self._keeps_order:
                self._leave_key(delivery, delivery.ordering_key, release)
            over[delivery.message_id] = state
        if len(over) >= REMEMBERED:
            self._over, self._older = {}, over

    def _leave_key(self, delivery: Delivery, key: str, release: bool) -> None:
        held = self._held_by_key[key]
        del held[delivery]
        if not held:
            del self._held_by_key[key]
        if release and delivery.order:  # 0 if it did not come through the buffer, which then has no such key
            self._buffer.release(delivery)

    def _leave(self, delivery: Delivery) -> None:
        self._bytes -= delivery.size
        # A newer delivery of the message may have taken the place.
        if self._live.get(delivery.message_id) is delivery:
            del self._live[delivery.message_id]

    def _drop(self, buffered: Sequence[Delivery]) -> None:
        """End *buffered* deliveries, which were never handed out."""
        self._buffer.remove(buffered)
        for delivery in buffered:
            delivery._state = RETURNED
            self._leave(delivery)

    # Leases

    def expire(self, now: float) -> list[Settlement]:
        """End what is past its deadline (R6), and its successors if it has a key (R10).

        If the broker would lose the order of the key, the run stays here instead, and comes again as after a nack.

        :returns: the settlements that give the deliveries back.
        """
        over = []
        for delivery in self._live.values():
            if delivery._deadline > now:
                break
            over.append(delivery)
        if over and self._local and self._keeps_order and not self.closing:
            over = [delivery for delivery in over if not self._stays(delivery, now)]
        return self._expelled(over, NACK) if over else []

    def _stays(self, delivery: Delivery, now: float) -> bool:
        """Return whether an overdue delivery stays here, and move it if it does.

        A held delivery stays: it goes back into the buffer with its successors.  A buffered delivery stays while the
        first one of its key waits for the delay of a nack.  That delay may be longer than a lease.
        """
        key = delivery.ordering_key
        if key is None:
            return False
        if delivery._state is BUFFERED:
            first = self._buffer.first(key)
            if first is None or first._kept_until <= now:
                return False
            delivery._deadline = now + self.max_lease
            self._live.move_to_end(delivery.message_id)
            return True
        if delivery._state is not HELD or delivery._is_lost or self._attempts.are_used_up(delivery):
            return False
        self._redeliver([delivery, *self._successors(delivery, key)], NACK, None, now, expired=True)
        return True

    def outstayed(self, now: float) -> list[Settlement]:
        """End what the broker would soon take, however often it was handed out, and what waits for its delay.

        Leases do not show that.  A run that stays here after a nack has a new one each time.

        :returns: the settlements that give the deliveries back.
        """
        if math.isinf(self._longest_hold):
            return []
        over = [each for each in self._live.values() if each._arrived + self._longest_hold <= now]
        return [*self.delays.give_back_overdue(now), *self._expelled(over, NACK)]

    def lose(self, deliveries: Collection[Delivery]) -> list[Settlement]:
        """End *deliveries*, which the broker has taken back; return settlements for their successors (R10)."""
        # A delivery that is over cannot be lost.  One whose settlement is out may be settled already: its answer tells.
        # The broker knows what it took back, so those need no settlement.
        live = {
            delivery: None
            for delivery in deliveries
            if self._live.get(delivery.message_id) is delivery and not delivery._is_out
        }
        for delivery in deliveries:
            if self.delays.find(delivery.message_id) is delivery:
                delivery.lease_until = math.inf  # there is nothing to renew until it comes again
        return [each for each in self._expelled(list(live), RETURN) if each.delivery not in live]

    def find_buffered(self, is_meant: Callable[[Delivery], bool]) -> list[Delivery]:
        """Return the buffered deliveries for which *is_meant* returns True.

        If they are lost (:meth:`lose`), a held delivery stays with the application.  If its message comes again, it
        only gets a newer token (F2, R7).
        """
        return [each for each in self._live.values() if each._state is BUFFERED and is_meant(each)]

    def mark_lost(self, is_lost: Callable[[Delivery], bool]) -> None:
        """Take note that the broker has taken back the handed-out deliveries for which *is_lost* returns True.

        They do not stay here after a nack, or when they expire: another receiver may have their messages.
        """
        for delivery in self._live.values():
            if delivery._state is not BUFFERED and is_lost(delivery):
                delivery._is_lost = True

    def next_deadline(self) -> float | None:
        """Return when the next delivery expires; ``None`` if nothing is here."""
        return next(iter(self._live.values()))._deadline if self._live else None

    def renewals(self, before: float) -> list[Delivery]:
        """Return the deliveries whose leases end at the time *before* or earlier.

        One that is going back is left out: the renewal could reach the broker later, and end the delay of a nack.
        """
        here = itertools.chain(self._live.values(), self.delays.deliveries)
        return [each for each in here if each.lease_until <= before and not (each._is_out and self._goes_back(each))]

    def _goes_back(self, delivery: Delivery) -> bool:
        settlement = delivery._settlement  # None if its callers have given up; then the request ends now
        return settlement is None or not self.is_last(settlement)

    # Closing

    def close(self) -> list[Settlement]:
        """Hand out nothing more, give back what was never handed out (C1), and end all delays.

        A buffered delivery stays while an earlier one of its key is held: it must not be delivered before that one.
        """
        self.closing = True
        free = [
            delivery
            for delivery in self._live.values()
            if delivery._state is BUFFERED and delivery.ordering_key not in self._held_by_key
        ]
        free.sort(key=lambda delivery: delivery.order)
        self._drop(free)
        return [*self.delays.end(), *(Settlement(delivery, RETURN) for delivery in free)]

    def surrender(self) -> list[Settlement]:
        """Give back everything that is not being settled, in order per key (C1)."""
        rest = sorted(self._live.values(), key=lambda delivery: delivery.order)
        return self._expelled(rest, RETURN)

    def _expelled(self, deliveries: Sequence[Delivery], outcome: Outcome) -> list[Settlement]:
        """End *deliveries* and the successors of each; return the settlements that give them back.

        :param outcome: the outcome of those that were handed out; the others are returned.
        """
        settlements: list[Settlement] = []
        for delivery in deliveries:
            key = self._key(delivery)
            if delivery._state is BUFFERED:
                # With the later ones of the key.  Otherwise this one would come again after them.
                run = [other for other in self._buffer.waiting(key) if other.order >= delivery.order] if key else []
                self._drop(run or [delivery])
                settlements += [Settlement(other, RETURN) for other in run or [delivery]]
            elif delivery._state is HELD:
                settlements.append(Settlement(delivery, outcome))
                settlements += self._return(delivery)
        return settlements


def _final_state(outcome: Outcome | None) -> State:
    # Not a dictionary: hashing a member of an enumeration takes longer than both comparisons.
    if outcome is ACK:
        return ACKNOWLEDGED
    if outcome is REJECT:
        return REJECTED
    return NACKED if outcome is NACK else RETURNED


def _copy(delivery: Delivery) -> Delivery:
    copy = Delivery(
        delivery.message_id,
        delivery.data,
        delivery.attributes,
        delivery.ordering_key,
        delivery.publish_time,
        delivery.delivery_attempt,
        delivery.token,
        delivery.size,
    )
    copy.order, copy.lease_until, copy._nacks = delivery.order, delivery.lease_until, delivery._nacks
    copy._arrived, copy._is_lost = delivery._arrived, delivery._is_lost
    return copy


def _begin(delivery: Delivery, outcome: Outcome, delay: float | None, reason: str = "") -> Settlement:
    delivery._state = SETTLING
    delivery._settlement = settlement = Settlement(delivery, outcome, delay, reason)
    return settlement


def _id(target: ReceivedMessage | str) -> str:
    return target if isinstance(target, str) else target.message_id


def _already_settled(message_id: str, outcome: Outcome) -> BrokerError:
    word = "acknowledged" if outcome is ACK else "rejected" if outcome is REJECT else "nacked"
    return BrokerError(f"message {message_id!r} was already {word}", ErrorCode.ALREADY_SETTLED)


def _expired(message_id: str) -> BrokerError:
    return BrokerError(
        f"the delivery of message {message_id!r} is over: it expired or was returned, and its message usually "
        "comes again; settle it sooner or raise max_lease_duration",
        ErrorCode.EXPIRED,
    )


def _unknown(message_id: str) -> BrokerError:
    return BrokerError(
        f"message {message_id!r} is not held by this receiver, and was not settled recently; settle it with the "
        "receiver that received it",
        ErrorCode.NOT_FOUND,
    )
