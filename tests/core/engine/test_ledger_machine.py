"""In any order of events no message is lost, no acknowledged one comes back, and each key keeps its order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery, Outcome, Settlement
from events_core.engine.driver import State
from events_core.engine.ledger import Ledger

from .settling import begin, view

AWAY = BrokerError("away", ErrorCode.UNAVAILABLE, retryable=True)
KEYS = ("a", "b")
MAX_LEASE = 50.0
ATTEMPTS = 2
ENDS = (Outcome.ACK, Outcome.REJECT)
"""The outcomes after which a message leaves the subscription."""


class Broker:
    """A broker that keeps the order of each key; a message goes back to its place, or is buried after its attempts."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.sent = 0
        self.waiting: list[tuple[str, int]] = []
        self.out: set[tuple[str, int]] = set()
        self.acknowledged: set[tuple[str, int]] = set()
        self.buried: set[tuple[str, int]] = set()

    def send(self, key: str) -> None:
        self.waiting.append((key, self.sent))
        self.sent += 1

    def deliver(self, limit: int) -> list[Delivery]:
        some, self.waiting = self.waiting[:limit], self.waiting[limit:]
        self.out.update(some)
        return [Delivery(f"{key}{number}", b"x", {}, key, None, 1, (key, number)) for key, number in some]

    def answer(self, settlement: Settlement) -> None:
        message = settlement.delivery.token
        self.out.discard(message)
        if settlement.outcome is Outcome.ACK:
            self.acknowledged.add(message)
        elif settlement.outcome is Outcome.REJECT or (
            settlement.outcome is Outcome.NACK and (settlement.delivery.delivery_attempt or 1) >= self.attempts
        ):
            self.buried.add(message)
        else:
            self.waiting = sorted([*self.waiting, message], key=lambda each: each[1])

    @property
    def over(self) -> set[tuple[str, int]]:
        return self.acknowledged | self.buried


class LedgerMachine(RuleBasedStateMachine):
    """One receiver's ledger between an application and a broker that answers late, and sometimes not at all."""

    settings_of_ledger: ClassVar[dict[str, object]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.broker = Broker(int(str(self.settings_of_ledger.get("local_attempts", ATTEMPTS))))
        self.requests: deque[Settlement] = deque()
        self.held: list[Delivery] = []
        self.ledger = Ledger(
            max_messages=12,
            max_bytes=1000,
            max_lease_duration=MAX_LEASE,
            **self.settings_of_ledger,  # type: ignore[arg-type]
        )

    @initialize(keys=st.lists(st.sampled_from(KEYS), min_size=4, max_size=16))
    def begin(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.broker.send(key)

    @rule(key=st.sampled_from(KEYS))
    def send(self, key: str) -> None:
        self.broker.send(key)

    @rule()
    def fetch(self) -> None:
        room = self.ledger.room(None)
        if room > 0 and not self.requests:  # what is going back must not be passed by what comes behind it
            self.ledger.arrive(self.broker.deliver(room), self.now)

    @rule(limit=st.integers(1, 5), answered=st.booleans())
    def take(self, limit: int, answered: bool = False) -> None:
        if answered:
            self.answer(len(self.requests), False)
        self.fetch()
        busy = {delivery.ordering_key for delivery in self._open()}
        taken = self.ledger.take(limit, self.now)
        for delivery in taken:
            assert delivery.ordering_key not in busy, "a key is with one caller at a time"
            assert delivery.token not in self.broker.over, "what is settled does not come back"
        self._in_order(taken)
        self.held += taken

    def _open(self) -> list[Delivery]:
        return [delivery for delivery in self.held if delivery._state in (State.HELD, State.SETTLING)]

    def _in_order(self, taken: Iterable[Delivery]) -> None:
        """Check that *taken* begins with the first message of a key that is not over, and leaves no gap."""
        ahead = set(self.broker.over) | {each.delivery.token for each in self.requests if each.outcome in ENDS}
        for delivery in taken:
            key, number = delivery.token
            earlier = {message for message in self._known() if message[0] == key and message[1] < number}
            assert earlier <= ahead, f"{delivery.token} passed {earlier - ahead}"
            ahead.add(delivery.token)

    def _known(self) -> set[tuple[str, int]]:
        return {*self.broker.waiting, *self.broker.out, *self.broker.over}

    @precondition(lambda self: self._open())
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), delay=st.sampled_from([None, 0.0, 5.0]))
    def settle(self, data: st.DataObject, outcome: Outcome, delay: float | None) -> None:
        delivery = data.draw(st.sampled_from(self._open()))
        self._expire()
        begun = begin(self.ledger, delivery, outcome, delay if outcome is Outcome.NACK else None, self.now)
        if isinstance(begun, BrokerError):
            return
        self.requests += begun
        if outcome not in ENDS:
            later = [each for each in self.held if each._state is State.HELD and _follows(each, delivery)]
            assert later == [], "what goes back takes its successors with it"

    @precondition(lambda self: self._open())
    @rule(data=st.data(), is_noted=st.booleans())
    def acknowledge_at_once(self, data: st.DataObject, is_noted: bool) -> None:
        """Let the broker take a note of acknowledgements, or not."""
        targets = data.draw(st.lists(st.sampled_from(self._open())))
        self._expire()
        begun, others = self.ledger.begin_at_once([view(delivery) for delivery in targets])
        assert len(begun) == len(set(begun)), "a message that is named twice is acknowledged once"
        assert len(begun) + len(others) == len(targets)
        if not is_noted:
            self.ledger.hold_again(begun)
            return
        for delivery in begun:
            self.broker.answer(Settlement(delivery, Outcome.ACK))
        assert not self.ledger.finish_at_once(begun, ())

    @precondition(lambda self: self.requests)
    @rule(count=st.integers(1, 5), fails=st.booleans())
    def answer(self, count: int, fails: bool) -> None:
        """Let the broker answer some requests; a failed one goes to the application or back to the queue."""
        for _ in range(min(count, len(self.requests))):
            settlement = self.requests.popleft()
            if fails and settlement.delivery._state is State.SETTLING:
                self.ledger.finish(settlement, AWAY)
            else:
                self.broker.answer(settlement)
                self.ledger.finish(settlement, None)

    @precondition(lambda self: self._leaving())
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        """Let the broker deliver a message again before it confirms that the message leaves the subscription."""
        delivery = data.draw(st.sampled_from(self._leaving())).delivery
        key, number = delivery.token
        copy = Delivery(delivery.message_id, b"x", {}, key, None, 1, (key, number))
        before = self.ledger.duplicates
        self.ledger.arrive([copy], self.now)
        assert self.ledger.duplicates == before + 1, "it takes the outcome that is under way"

    def _leaving(self) -> list[Settlement]:
        """Return the requests to acknowledge a message, or to bury it."""
        return [
            each
            for each in self.requests
            if each.delivery._state is State.SETTLING
            and (each.outcome in ENDS or (each.outcome is Outcome.NACK and self._is_buried(each.delivery)))
        ]

    def _is_buried(self, delivery: Delivery) -> bool:
        return "local_attempts" in self.settings_of_ledger and (delivery.delivery_attempt or 1) >= self.broker.attempts

    @rule(seconds=st.sampled_from([1.0, 2.0, 3.0, 6.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._expire()

    def _expire(self) -> None:
        self.requests += self.ledger.expire(self.now)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Check that every message is at exactly one place: at the broker, at the receiver, or over."""
        asked = {each.delivery.token for each in self.requests}
        here = {delivery.token for delivery in self.ledger._live.values()}
        assert self.broker.out <= here | asked
        assert len(self.broker.waiting) + len(self.broker.out) + len(self.broker.over) == self.broker.sent
        assert self.ledger.held == len(self._open())
        assert self.ledger.held + self.ledger.buffered <= 12

    def teardown(self) -> None:
        """Let the application acknowledge everything; it gets everything, in order."""
        for _ in range(4 * self.broker.sent + 10):
            self.now += 61.0  # whatever was held or delayed is free
            self._expire()
            while self.requests:
                self.answer(1, False)
            self.fetch()
            before = len(self.held)
            self.take(100)
            for delivery in self.held[before:]:
                begun = begin(self.ledger, delivery, Outcome.ACK, None, self.now)
                assert not isinstance(begun, BrokerError)
                self.requests += begun
        assert len(self.broker.over) == self.broker.sent


class LocalLedgerMachine(LedgerMachine):
    """A receiver that redelivers runs itself, and buries what failed too often."""

    settings_of_ledger: ClassVar[dict[str, object]] = {"redelivers_locally": True, "local_attempts": ATTEMPTS}


class BuryingLedgerMachine(LocalLedgerMachine):
    """A receiver that buries a message after its first failure."""

    settings_of_ledger: ClassVar[dict[str, object]] = {"redelivers_locally": True, "local_attempts": 1}


def _follows(later: Delivery, delivery: Delivery) -> bool:
    return later.ordering_key == delivery.ordering_key and later.token > delivery.token and later.order > delivery.order


_SETTINGS = settings(
    max_examples=150, stateful_step_count=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedger = LedgerMachine.TestCase
TestLedger.settings = _SETTINGS
TestLocalLedger = LocalLedgerMachine.TestCase
TestLocalLedger.settings = _SETTINGS
TestBuryingLedger = BuryingLedgerMachine.TestCase
TestBuryingLedger.settings = _SETTINGS
