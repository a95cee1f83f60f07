"""What one receiver has: which deliveries are buffered, held, settled, gone.  Pure, fed with ``now``.

Everything that moves a delivery from one state to another is in this file::

    BUFFERED ──take──▶ HELD ──begin──▶ SETTLING ──finish──▶ ACKNOWLEDGED | NACKED | REJECTED
       │                │ ▲               │
       │                │ └──finish(error)┘
       └──expire/close──┴──expire/close/nack of a predecessor──▶ RETURNED

The rules of the contract it keeps: R5 (bounds), R6 (expiry), R7 (duplicates), R8 and R10 (order per key), S2 and S3
(what settling twice or too late means).
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

from events_core.engine.backoff import redelivery_delay
from events_core.engine.driver import BrokerError, Delivery, Outcome, Settlement, State
from events_core.engine.keyed_queue import KeyedQueue
from events_core.engine.limits import message_size
from events_core.errors import ErrorCode
from events_core.message import ReceivedMessage

__all__ = ["Begun", "Ledger"]

REMEMBERED = 10_000
"""Ids of which it is known how their last delivery ended (S3)."""

# Reading a member off its class takes ten times as long as a global (CPython 3.11), and this is done for every message.
BUFFERED, HELD, SETTLING, ACKNOWLEDGED, NACKED, RETURNED, REJECTED = State
ACK, NACK, RETURN, REJECT = Outcome


class Begun:
    """What has come of a call to settle."""

    __slots__ = ("asked", "awaited", "refused")

    def __init__(self) -> None:
        self.asked: list[Settlement] = []
        """What the broker must be told, in this order."""
        self.awaited: list[Settlement] = []
        """What the caller waits for; what others have begun too."""
        self.refused: dict[str, BrokerError] = {}
        """Why messages cannot be settled so, by id."""


class Ledger:
    """The deliveries of one receiver.  Not thread-safe: its owner locks."""

    def __init__(
        self,
        *,
        max_messages: int,
        max_bytes: int,
        max_lease_duration: float,
        redelivers_locally: bool = False,
        local_attempts: int | None = None,
        eager: bool = False,
        keeps_order: bool = True,
    ) -> None:
        """Begin empty.

        :param keeps_order: whether the subscription keeps the order of keys; otherwise they mean nothing here.
        """
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_lease = max_lease_duration
        self._local = redelivers_locally
        self._local_attempts = local_attempts
        self._eager = eager
        self._keeps_order = keeps_order
        self._buffer: KeyedQueue[Delivery] = KeyedQueue()
        self._buffer.keeps_order = keeps_order
        # By id and, since each entry moves to the end when its deadline is set anew, by deadline.
        self._live: OrderedDict[str, Delivery] = OrderedDict()
        self._over: OrderedDict[str, State] = OrderedDict()
        self._held_by_key: dict[str, dict[Delivery, None]] = {}
        self._bytes = 0
        self.held = 0
        self.duplicates = 0
        self.closing = False

    def keep_order(self, keeps_order: bool) -> None:
        """Keep the order of keys or not, as the broker says; it takes effect once nothing earlier is here."""
        if keeps_order is not self._keeps_order and not self._live:
            self._keeps_order = self._buffer.keeps_order = keeps_order

    @property
    def buffered(self) -> int:
        """Deliveries fetched and not handed out."""
        return len(self._buffer)

    def room(self, prefetch: int | None) -> int:
        """How many deliveries to fetch now; small refills wait until they are worth a request, unless *eager*."""
        if self._bytes >= self._max_bytes:
            return 0
        room = self._max_messages - self.held - self.buffered
        ahead = self._max_messages if prefetch is None else min(prefetch, self._max_messages)
        ready = self.buffered - self._buffer.blocked_size  # what is blocked must not keep other keys from coming (R8)
        room = min(room, ahead - ready)
        return room if self._eager or not ready or room * 4 >= ahead else 0

    def is_full(self) -> bool:
        """Whether R5 alone keeps more from being fetched."""
        return self.held >= self._max_messages or self._bytes >= self._max_bytes

    def blocked_keys(self) -> list[str]:
        """Keys of which something is buffered and waits for what is held."""
        return list(self._buffer.blocked())

    def held_ids(self, key: str | None = None) -> list[str]:
        """Ids handed out and not settled, of *key* or all."""
        held: Iterable[Delivery] = self._live.values() if key is None else self._held_by_key.get(key, ())
        return [delivery.message_id for delivery in held if delivery._state in (HELD, SETTLING)]

    # Arriving and handing out

    def arrive(self, deliveries: Sequence[Delivery], now: float, lease_until: float = math.inf) -> None:
        """Buffer what was fetched; a redelivery of what is here already only brings a newer token (R7).

        A redelivery of a message that is being given back is the broker's answer to that, whatever its confirmation
        says.  A message that is being dead-lettered is not given back: a redelivery takes that outcome too, because
        otherwise it would come after its successors.
        """
        for delivery in deliveries:
            delivery.lease_until = lease_until
            known = self._live.get(delivery.message_id)
            if known is not None and known._settlement is not None and not self.is_last(known._settlement):
                self._retire(known, _done(known._settlement.outcome))
                known = None
            if known is None:
                self._admit(delivery, now)
                self._buffer.push(delivery)
            else:
                known.lease_until = lease_until
                self.duplicates += 1
                if known._is_out:  # the driver may read the token as late as it likes
                    known._newer_token = (delivery.token,)
                else:
                    known.token = delivery.token

    def is_last(self, settlement: Settlement) -> bool:
        """Return whether the message leaves the subscription: it is acknowledged, or dead-lettered by the source."""
        outcome = settlement.outcome
        if outcome is NACK:
            return self._local and self._has_failed_too_often(settlement.delivery)
        return outcome is ACK or outcome is REJECT

    @staticmethod
    def came_again(delivery: Delivery) -> bool:
        """Take the newer token into use, now that no request is out; return whether there was one."""
        if delivery._newer_token is None:
            return False
        (delivery.token,), delivery._newer_token = delivery._newer_token, None
        return True

    def hold(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Take in what was fetched for the very call that gets it, past the buffer."""
        deadline = now + self._max_lease
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
        deadline = now + self._max_lease
        for delivery in taken:
            delivery._deadline = deadline
            self._live.move_to_end(delivery.message_id)
            self._hand_out(delivery)
        return taken

    def ready(self, now: float) -> bool:
        """Whether :meth:`take` would hand anything out."""
        return not self.closing and self._buffer.ready(now)

    def next_due(self) -> float | None:
        """When a delayed delivery may be handed out."""
        return self._buffer.next_due()

    def _admit(self, delivery: Delivery, now: float) -> None:
        delivery._owner = self
        delivery._deadline = now + self._max_lease
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
        """Start settling *targets*, of which none is expired by *now*."""
        begun = Begun()
        for target in targets:
            delivery = self._find(target)
            if delivery is None or delivery._state is not HELD:
                refusal = self._refusal(target, delivery, outcome)
                if refusal is not None:
                    begun.refused[_id(target)] = refusal
                    continue
            elif outcome is ACK or outcome is REJECT or self._key(delivery) is None:
                begun.asked.append(_begin(delivery, outcome, delay, reason))
            else:
                begun.asked += self._begin_run(delivery, outcome, delay, now)
            if delivery is not None and delivery._settlement is not None:
                begun.awaited.append(delivery._settlement)
        return begun

    def _key(self, delivery: Delivery) -> str | None:
        """Return the key of *delivery*, if the subscription keeps the order of keys."""
        return delivery.ordering_key if self._keeps_order else None

    def _find(self, target: ReceivedMessage | str) -> Delivery | None:
        """The delivery that *target* names: a message's own, or the one of an id that is handed out now (S2)."""
        if isinstance(target, ReceivedMessage):
            delivery = target.delivery
            return delivery if isinstance(delivery, Delivery) and delivery._owner is self else None
        live = self._live.get(target)
        return None if live is None or live._state is BUFFERED else live

    def _refusal(
        self, target: ReceivedMessage | str, delivery: Delivery | None, outcome: Outcome
    ) -> BrokerError | None:
        """Why what is not held cannot be settled; ``None`` where the same has happened or is under way (S2, S3)."""
        if delivery is not None:
            state: State | None = delivery._state
        else:
            state = self._over.get(target) if isinstance(target, str) else None
        if state is None:
            return _unknown(_id(target))
        if state is RETURNED:
            return _expired(_id(target)) if outcome is ACK or outcome is REJECT else None
        if delivery is not None and delivery._settlement is not None:
            first = delivery._settlement.outcome
        else:
            first = ACK if state is ACKNOWLEDGED else REJECT if state is REJECTED else NACK
        return None if first is outcome else _already_settled(_id(target), first)

    def _begin_run(self, delivery: Delivery, outcome: Outcome, delay: float | None, now: float) -> list[Settlement]:
        """R10: the delivery that goes back, and with it every later one of its key."""
        assert delivery.ordering_key is not None
        later = self._successors(delivery, delivery.ordering_key)
        if not self._local or self.closing:
            return [_begin(delivery, outcome, delay), *self._give_back(later, delivery.ordering_key)]
        if outcome is NACK and self._has_failed_too_often(delivery):
            asked = [_begin(delivery, NACK, delay)]
            if later:
                self._redeliver(later, RETURN, None, now)  # once the key is free: when this one is settled
            return asked
        self._redeliver([delivery, *later], outcome, delay, now)
        return []

    def _has_failed_too_often(self, delivery: Delivery) -> bool:
        return self._local_attempts is not None and (delivery.delivery_attempt or 1) >= self._local_attempts

    def _successors(self, delivery: Delivery, key: str) -> list[Delivery]:
        """What was handed out of *key* after *delivery* and is not being settled."""
        later = itertools.dropwhile(lambda other: other is not delivery, self._held_by_key[key])
        return [other for other in itertools.islice(later, 1, None) if other._state is HELD]

    def _give_back(self, held: Sequence[Delivery], key: str) -> list[Settlement]:
        """Return *held* and all that is buffered of *key*, in order."""
        buffered = self._buffer.waiting(key)
        for delivery in held:
            self._retire(delivery, RETURNED)
        self._drop(buffered)
        return [Settlement(delivery, RETURN) for delivery in (*held, *buffered)]

    def _redeliver(
        self, run: Sequence[Delivery], outcome: Outcome, delay: float | None, now: float, *, expired: bool = False
    ) -> None:
        """Put a run back into the buffer as new deliveries; the old ones are over."""
        again = [_copy(delivery) for delivery in run]
        if outcome is NACK:
            again[0]._nacks += 1
            if again[0].delivery_attempt is not None:
                again[0].delivery_attempt += 1
        elif delay is None:
            delay = 0.0
        due = now + (redelivery_delay(again[0]._nacks) if delay is None else delay)
        again[0]._kept_until = due + self._max_lease
        for old, new in zip(run, again, strict=True):
            self._retire(old, _done(outcome) if old is run[0] and not expired else RETURNED, release=False)
            self._admit(new, now)
        self._buffer.restore(again, due)

    def finish(self, settlement: Settlement, error: BrokerError | None) -> Sequence[Settlement]:
        """The broker has answered: settled, gone, or as before.

        :returns: what must go back too, behind a message that comes again (R10).
        """
        delivery = settlement.delivery
        if delivery._settlement is settlement:
            delivery._settlement = None
        late = delivery._state is HELD and error is None  # the caller's time was up, the broker's was not
        if delivery._state is not SETTLING and not late:
            return ()  # returned with its predecessor
        if error is None:
            self._retire(delivery, _done(settlement.outcome))
        elif error.code is ErrorCode.EXPIRED or (
            settlement.outcome is ACK and error.code in (ErrorCode.NOT_FOUND, ErrorCode.INVALID)
        ):
            return self._return(delivery)
        else:
            delivery._state = HELD
        return ()

    def _return(self, delivery: Delivery) -> list[Settlement]:
        """A handed-out delivery is over, and its message comes again; what goes back behind it (R10)."""
        key = self._key(delivery)
        later = self._successors(delivery, key) if key is not None else []
        self._retire(delivery, RETURNED)
        return self._give_back(later, key) if key is not None else []

    def _retire(self, delivery: Delivery, state: State, *, release: bool = True) -> None:
        """A handed-out delivery is over."""
        delivery._state = state
        self.held -= 1
        self._leave(delivery)
        key = delivery.ordering_key
        if key is not None and self._keeps_order:
            held = self._held_by_key[key]
            del held[delivery]
            if not held:
                del self._held_by_key[key]
            if release and delivery.order:  # it came through the buffer
                self._buffer.release(delivery)
        over = self._over
        over.pop(delivery.message_id, None)
        over[delivery.message_id] = state
        if len(over) > REMEMBERED:
            over.popitem(last=False)

    def _leave(self, delivery: Delivery) -> None:
        self._bytes -= delivery.size
        if self._live.get(delivery.message_id) is delivery:
            del self._live[delivery.message_id]

    def _drop(self, buffered: Sequence[Delivery]) -> None:
        """Buffered deliveries are over, never handed out."""
        self._buffer.remove(buffered)
        for delivery in buffered:
            delivery._state = RETURNED
            self._leave(delivery)

    # Leases

    def expire(self, now: float) -> list[Settlement]:
        """Give back what is past its deadline (R6); keyed, with all its successors (R10).

        Where the broker would lose the order of keys, a run stays here instead, and comes again as after a nack.
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
        """Return whether an overdue delivery stays here: its run comes again, or waits for the delay of a nack."""
        key = delivery.ordering_key
        if key is None:
            return False
        if delivery._state is BUFFERED:
            first = self._buffer.first(key)
            if first is None or first._kept_until <= now:
                return False
            delivery._deadline = now + self._max_lease
            self._live.move_to_end(delivery.message_id)
            return True
        if delivery._state is not HELD or self._has_failed_too_often(delivery):
            return False
        self._redeliver([delivery, *self._successors(delivery, key)], NACK, None, now, expired=True)
        return True

    def lose(self, deliveries: Collection[Delivery]) -> list[Settlement]:
        """The broker has taken *deliveries* back; what must go back with them, behind them (R10)."""
        live = {delivery: None for delivery in deliveries if self._live.get(delivery.message_id) is delivery}
        return [each for each in self._expelled(list(live), RETURN) if each.delivery not in live]

    def lose_buffered(self, is_lost: Callable[[Delivery], bool]) -> list[Settlement]:
        """Drop what was never handed out and *is_lost*; return what must go back behind it (R10).

        What is held stays with the application: if its message comes again, it only brings a newer token (F2, R7).
        """
        return self.lose([each for each in self._live.values() if each._state is BUFFERED and is_lost(each)])

    def next_deadline(self) -> float | None:
        """When the next delivery expires."""
        return next(iter(self._live.values()))._deadline if self._live else None

    def renewals(self, before: float) -> list[Delivery]:
        """Live deliveries that the broker would deliver again *before* then."""
        return [delivery for delivery in self._live.values() if delivery.lease_until <= before]

    # Closing

    def close(self) -> list[Settlement]:
        """Hand out nothing more; give back what never was, except behind held deliveries of its key (C1)."""
        self.closing = True
        free = [
            delivery
            for delivery in self._live.values()
            if delivery._state is BUFFERED and delivery.ordering_key not in self._held_by_key
        ]
        free.sort(key=lambda delivery: delivery.order)
        self._drop(free)
        return [Settlement(delivery, RETURN) for delivery in free]

    def surrender(self) -> list[Settlement]:
        """Give back everything that is not being settled, in order per key (C1)."""
        rest = sorted(self._live.values(), key=lambda delivery: delivery.order)
        return self._expelled(rest, RETURN)

    def _expelled(self, deliveries: Sequence[Delivery], outcome: Outcome) -> list[Settlement]:
        """Settlements that return *deliveries* and the successors of each, with *outcome* for those handed out."""
        settlements: list[Settlement] = []
        for delivery in deliveries:
            key = self._key(delivery)
            if delivery._state is BUFFERED:
                run = [other for other in self._buffer.waiting(key) if other.order >= delivery.order] if key else []
                self._drop(run or [delivery])
                settlements += [Settlement(other, RETURN) for other in run or [delivery]]
            elif delivery._state is HELD:
                settlements.append(Settlement(delivery, outcome))
                settlements += self._return(delivery)
        return settlements


def _done(outcome: Outcome | None) -> State:
    # Not a dictionary: hashing a member of an enumeration takes longer than all of this.
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
        f"the delivery of message {message_id!r} is over: it expired or was returned, and the message comes "
        "again; settle it sooner or raise max_lease_duration",
        ErrorCode.EXPIRED,
    )


def _unknown(message_id: str) -> BrokerError:
    return BrokerError(
        f"message {message_id!r} is not held by this receiver, nor was it settled lately; settle it with the receiver "
        "that received it",
        ErrorCode.NOT_FOUND,
    )
