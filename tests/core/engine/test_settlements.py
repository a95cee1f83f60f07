"""Settlements on their way to the broker, and the calls that wait for them."""

from __future__ import annotations

from collections.abc import Sequence

from events_core import ErrorCode, ReceivedMessage
from events_core.engine import BrokerError, Delivery, Outcome
from events_core.engine.ledger import Ledger
from events_core.engine.settlements import Settlements, Ticket

AWAY = BrokerError("away", ErrorCode.UNAVAILABLE, retryable=True)
LATE = BrokerError("no answer", ErrorCode.TIMEOUT, retryable=True)


class Receiver:
    """A receiver that holds messages, without a broker."""

    def __init__(self, *names: str) -> None:
        self.ledger = Ledger(max_messages=100, max_bytes=1000, max_lease_duration=60.0)
        self.settlements = Settlements(self.ledger)
        self.ledger.arrive([Delivery(name, b"x", {}) for name in names], 0.0)
        self.held = {
            delivery.message_id: ReceivedMessage(b"x", message_id=delivery.message_id, delivery=delivery)
            for delivery in self.ledger.take(100, 0.0)
        }

    def acknowledge(self, *names: str) -> Ticket:
        """Begin to acknowledge messages; return the ticket of the call."""
        return self.settle(Outcome.ACK, *names)

    def settle(self, outcome: Outcome, *names: str) -> Ticket:
        begun = self.ledger.begin([self.held[name] for name in names], outcome, None, 0.0)
        ticket = Ticket(begun)
        self.settlements.enqueue(begun.to_send)
        ticket.register(begun.awaited)
        return ticket

    def leave(self, limit: int = 100) -> list[str]:
        """Let a request leave; return the ids of its messages."""
        assert self.settlements.claim()
        return ids(self.settlements.next(limit, 0.0))


def ids(settlements: Sequence[object]) -> list[str]:
    return [each.delivery.message_id for each in settlements]  # type: ignore[attr-defined]


def test_what_gathers_while_a_request_is_out_leaves_together() -> None:
    """S4: one request is out at a time."""
    receiver = Receiver("1", "2", "3")
    receiver.acknowledge("1")
    assert receiver.leave() == ["1"]
    receiver.acknowledge("2")
    receiver.acknowledge("3")
    assert not receiver.settlements.claim()
    receiver.settlements.answered([None])
    assert ids(receiver.settlements.next(100, 0.0)) == ["2", "3"]


def test_a_request_has_a_limit() -> None:
    """The settlements beyond it follow with the next one, in order."""
    receiver = Receiver("1", "2", "3")
    receiver.acknowledge("1", "2", "3")
    assert receiver.leave(limit=2) == ["1", "2"]
    receiver.settlements.answered([None, None])
    assert ids(receiver.settlements.next(2, 0.0)) == ["3"]


def test_a_request_that_failed_leaves_again_before_the_others() -> None:
    """S5: its settlements keep their order."""
    receiver = Receiver("1", "2", "3")
    receiver.acknowledge("1", "2")
    receiver.leave()
    receiver.acknowledge("3")
    receiver.settlements.put_back()
    assert ids(receiver.settlements.next(100, 0.0)) == ["1", "2", "3"]


def test_a_nack_that_waits_for_a_renewal_holds_no_acknowledgement_up() -> None:
    """R11, S4: only what goes back waits, in order."""
    receiver = Receiver("1", "2", "3", "4")
    receiver.ledger.renewing = {"2"}
    receiver.acknowledge("1")
    receiver.settle(Outcome.NACK, "2", "3")
    receiver.acknowledge("4")
    assert receiver.leave() == ["1", "4"]
    receiver.settlements.answered([None, None])
    assert receiver.settlements.next(100, 0.0) == []
    receiver.ledger.renewing = ()
    assert receiver.leave() == ["2", "3"]


def test_a_settlement_that_is_refused_for_a_while_does_not_hold_others_up() -> None:
    """S5: it follows when it is retried."""
    receiver = Receiver("1", "2")
    ticket = receiver.acknowledge("1", "2")
    receiver.leave()
    receiver.settlements.answered([AWAY, None])
    assert (ticket.pending, receiver.settlements.has_deferred) == (1, True)
    assert receiver.settlements.next(100, 0.0) == []
    assert not receiver.settlements.is_idle
    receiver.settlements.retry()
    assert receiver.leave() == ["1"]
    receiver.settlements.answered([None])
    assert (ticket.pending, ticket.failed) == (0, {})


def test_two_calls_that_settle_one_message_both_learn_the_result() -> None:
    """S2: the broker is told once."""
    receiver = Receiver("1")
    tickets = [receiver.acknowledge("1"), receiver.acknowledge("1")]
    assert receiver.leave() == ["1"]
    error = BrokerError("no", ErrorCode.PERMISSION_DENIED)
    receiver.settlements.answered([error])
    assert [ticket.failed for ticket in tickets] == [{"1": error}, {"1": error}]


def test_a_settlement_that_is_given_up_does_not_leave() -> None:
    """S5: the message is held again, and its call learns why."""
    receiver = Receiver("1", "2")
    ticket = receiver.acknowledge("1")
    receiver.acknowledge("2")
    receiver.settlements.give_up(ticket, LATE)
    assert (ticket.pending, ticket.failed) == (0, {"1": LATE})
    assert receiver.leave() == ["2"]
    assert receiver.ledger.held == 2


def test_what_is_perhaps_acknowledged_is_not_lost() -> None:
    """S5, R6: its call has given up, and the broker may refuse to renew it because it is acknowledged."""
    receiver = Receiver("1")
    ticket = receiver.acknowledge("1")
    receiver.leave()
    receiver.settlements.give_up(ticket, LATE)
    assert receiver.ledger.lose([receiver.held["1"].delivery]) == []  # type: ignore[list-item]
    assert receiver.ledger.held == 1
    receiver.settlements.answered([None])
    receiver.acknowledge("1")
    assert receiver.settlements.next(100, 0.0) == []
    assert receiver.ledger.held == 0


def test_a_settlement_goes_on_while_another_call_waits_for_it() -> None:
    """S5: only the call whose time is up has failed."""
    receiver = Receiver("1")
    impatient, patient = receiver.acknowledge("1"), receiver.acknowledge("1")
    receiver.settlements.give_up(impatient, LATE)
    assert receiver.leave() == ["1"]
    receiver.settlements.answered([None])
    assert (impatient.failed, patient.failed) == ({"1": LATE}, {})


def test_closing_fails_everything_that_is_under_way() -> None:
    """C2: what is out, what is queued and what was deferred."""
    receiver = Receiver("1", "2", "3")
    tickets = [receiver.acknowledge("1")]
    receiver.leave()
    receiver.settlements.answered([AWAY])
    receiver.settlements.next(100, 0.0)
    tickets.append(receiver.acknowledge("2"))
    receiver.leave()
    tickets.append(receiver.acknowledge("3"))
    closed = BrokerError("closed", ErrorCode.CLOSED)
    receiver.settlements.give_all_up(closed)
    assert [ticket.failed for ticket in tickets] == [{"1": closed}, {"2": closed}, {"3": closed}]
