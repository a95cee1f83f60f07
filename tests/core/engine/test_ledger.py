"""The ledger: it knows which deliveries are buffered, held, settled or gone."""

from __future__ import annotations

import math

import pytest

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery, Outcome, Settlement
from events_core.engine.driver import State
from events_core.engine.ledger import Ledger

from .settling import begin


def ledger(**changes: object) -> Ledger:
    settings = {"max_messages": 10, "max_bytes": 1000, "max_lease_duration": 60.0, **changes}
    return Ledger(**settings)  # type: ignore[arg-type]  # a test's shorthand


def delivery(name: str, token: object = None) -> Delivery:
    return Delivery(name, b"x", {}, name[0] if name[0].isalpha() else None, token=token)


def held(target: Ledger, *names: str, now: float = 0.0) -> list[Delivery]:
    target.arrive([delivery(name) for name in names], now)
    return target.take(100_000, now)


def begun(result: list[Settlement] | BrokerError) -> list[tuple[str, Outcome]]:
    assert not isinstance(result, BrokerError)
    return [(each.delivery.message_id, each.outcome) for each in result]


def code(result: list[Settlement] | BrokerError) -> ErrorCode:
    assert isinstance(result, BrokerError)
    return result.code


def settle(target: Ledger, what: Delivery, outcome: Outcome, error: BrokerError | None = None) -> None:
    """Settle one delivery, and let the broker answer."""
    result = begin(target, what, outcome)
    assert not isinstance(result, BrokerError)
    for each in result:
        target.finish(each, error)


def ids(deliveries: list[Delivery]) -> list[str]:
    return [each.message_id for each in deliveries]


def test_bounds_stop_fetching() -> None:
    """R5: held and buffered messages both count, in number and in bytes."""
    target = ledger()
    assert target.room(None) == 10
    held(target, *"12345678")
    assert target.room(None) == 2
    held(target, "9", "0")
    assert target.room(None) == 0
    assert target.is_full()


def test_a_full_byte_bound_stops_fetching() -> None:
    """R5: a message that is larger than the bound comes alone."""
    target = ledger(max_bytes=1)
    held(target, "1")
    assert target.room(None) == 0


def test_a_duplicate_of_what_is_held_is_suppressed() -> None:
    """R7: the held delivery only gets the newer token."""
    target = ledger()
    (first,) = held(target, "1")
    target.arrive([delivery("1", token="newer")], 1.0)
    assert (target.buffered, target.duplicates, first.token) == (0, 1, "newer")


def test_the_same_outcome_twice_is_nothing_and_the_other_is_refused() -> None:
    """S2: settling a message again succeeds with the same outcome, and fails with another one."""
    target = ledger()
    acknowledged, nacked = held(target, "1", "2")
    settle(target, acknowledged, Outcome.ACK)
    settle(target, nacked, Outcome.NACK)
    assert begin(target, acknowledged, Outcome.ACK) == []
    assert begin(target, nacked, Outcome.NACK) == []
    assert code(begin(target, acknowledged, Outcome.NACK)) is ErrorCode.ALREADY_SETTLED
    assert code(begin(target, nacked, Outcome.ACK)) is ErrorCode.ALREADY_SETTLED


def test_a_message_that_an_earlier_outcome_has_ended_is_not_held() -> None:
    """S5: an acknowledgement got no answer in time, and the broker says so when the message is nacked."""
    target = ledger()
    (message,) = held(target, "1")
    settle(target, message, Outcome.ACK, BrokerError("no answer", ErrorCode.TIMEOUT, retryable=True))
    settle(target, message, Outcome.NACK, BrokerError("acknowledged", ErrorCode.ALREADY_SETTLED))
    assert target.held == 0
    assert begin(target, message, Outcome.ACK) == []
    assert code(begin(target, message, Outcome.NACK)) is ErrorCode.ALREADY_SETTLED
    rejected, *_ = held(target, "2")
    settle(target, rejected, Outcome.ACK, BrokerError("rejected", ErrorCode.ALREADY_SETTLED))
    assert begin(target, rejected, Outcome.REJECT) == []


def test_an_id_names_the_newest_delivery_handed_out() -> None:
    """S2: the id does not name a redelivery that is still buffered."""
    target = ledger()
    (first,) = held(target, "1")
    settle(target, first, Outcome.NACK)
    target.arrive([delivery("1")], 0.0)
    assert code(begin(target, "1", Outcome.ACK)) is ErrorCode.ALREADY_SETTLED
    (second,) = target.take(1, 0.0)
    (asked,) = begin(target, "1", Outcome.ACK)  # type: ignore[misc]  # no error
    assert asked.delivery is second


def test_unknown_ids_are_unknown_and_settled_ones_remembered() -> None:
    """S3: the ledger remembers at least the last 10,000 settled ids, and forgets older ones some time."""
    target = ledger(max_messages=20_000, max_bytes=10**9)
    *most, last = held(target, *(str(number) for number in range(20_000)))
    for each in most:
        settle(target, each, Outcome.ACK)
    assert begin(target, "9999", Outcome.ACK) == []
    settle(target, last, Outcome.ACK)
    assert begin(target, "10000", Outcome.ACK) == []
    assert code(begin(target, "0", Outcome.ACK)) is ErrorCode.NOT_FOUND
    assert code(begin(target, "nope", Outcome.ACK)) is ErrorCode.NOT_FOUND


def test_a_message_of_another_receiver_is_unknown() -> None:
    """S2: it does not matter that this receiver holds a message of the same id."""
    target = ledger()
    held(target, "1")
    (foreign,) = held(ledger(), "1")
    assert code(begin(target, foreign, Outcome.ACK)) is ErrorCode.NOT_FOUND


def test_a_delivery_expires_at_its_deadline_counted_from_hand_out() -> None:
    """R6, S3: acknowledging an expired delivery raises EXPIRED; nacking it succeeds and does nothing."""
    target = ledger()
    target.arrive([delivery("1")], 0.0)
    (only,) = target.take(1, 50.0)
    assert target.expire(109.9) == []
    assert begun(target.expire(110.0)) == [("1", Outcome.NACK)]
    refused = begin(target, only, Outcome.ACK, now=110.0)
    assert code(refused) is ErrorCode.EXPIRED
    assert "its message usually comes again" in str(refused)
    assert begin(target, only, Outcome.NACK, now=110.0) == []


def test_the_bound_of_the_broker_counts_from_the_arrival() -> None:
    """A delivery that the broker would take back expires before that, although it was handed out late."""
    target = ledger(longest_hold=50.0)
    target.arrive([delivery("1")], 0.0, math.inf)
    target.take(1, 40.0)
    assert target.expire(49.0) == []
    assert begun(target.expire(50.0)) == [("1", Outcome.NACK)]


def test_what_was_never_handed_out_expires_uncounted() -> None:
    """R6: its time begins when it arrives, and it goes back without a counted attempt."""
    target = ledger()
    target.arrive([delivery("1")], 0.0)
    assert begun(target.expire(60.0)) == [("1", Outcome.RETURN)]
    assert target.buffered == 0


def test_a_key_is_with_one_caller_at_a_time() -> None:
    """R8: the later messages of a key wait until the earlier one is settled; other keys do not."""
    target = ledger()
    target.arrive([delivery(name) for name in ("a1", "a2", "b1")], 0.0)
    (first,) = target.take(1, 0.0)
    assert ids(target.take(10, 0.0)) == ["b1"]
    assert target.blocked_keys() == ["a"]
    settle(target, first, Outcome.ACK)
    assert ids(target.take(10, 0.0)) == ["a2"]


def test_blocked_messages_do_not_keep_other_keys_from_coming() -> None:
    """R8: messages that wait for their key do not count as fetched ahead, up to the bounds of R5."""
    target = ledger(max_messages=100)
    target.arrive([delivery(f"a{number}") for number in range(20)], 0.0)
    assert target.room(10) == 0
    target.take(1, 0.0)
    assert target.room(10) == 10


def test_a_nack_returns_later_messages_of_its_key() -> None:
    """R10: they go back in order and uncounted; nacking one of them too does nothing, acknowledging it is too late."""
    target = ledger()
    target.arrive([delivery(f"a{number}") for number in range(1, 5)], 0.0)
    _, second, third = target.take(3, 0.0)
    result = begin(target, second, Outcome.NACK)
    assert begun(result) == [("a2", Outcome.NACK), ("a3", Outcome.RETURN), ("a4", Outcome.RETURN)]
    assert begin(target, third, Outcome.NACK) == []
    assert code(begin(target, third, Outcome.ACK)) is ErrorCode.EXPIRED
    assert target.buffered == 0


@pytest.mark.parametrize("outcome", [Outcome.NACK, Outcome.RETURN])
def test_what_comes_again_before_the_broker_has_answered_is_handed_out(outcome: Outcome) -> None:
    """R9: it is a new delivery; only an acknowledgement covers later copies too (S2)."""
    target = ledger()
    (first,) = held(target, "a1")
    (asked,) = begin(target, first, outcome)  # type: ignore[misc]  # no error
    (second,) = held(target, "a1")
    assert target.finish(asked, None) == ()
    assert (second._state, target.held) == (State.HELD, 1)


def test_what_came_again_is_over_whatever_becomes_of_the_answer() -> None:
    """S5, R8: a nack that was applied and never confirmed does not keep its key busy."""
    target = ledger()
    (first,) = held(target, "a1")
    (asked,) = begin(target, first, Outcome.NACK)  # type: ignore[misc]  # no error
    target.arrive([delivery("a1")], 0.0)
    target.finish(asked, BrokerError("no answer", ErrorCode.TIMEOUT, retryable=True))
    assert target.held == 0
    assert begin(target, first, Outcome.NACK) == begin(target, "a1", Outcome.NACK) == []
    assert ids(target.take(1, 0.0)) == ["a1"]


def test_what_comes_again_expires_after_what_came_before_it() -> None:
    """R6: the new delivery has a whole lease, and the others still expire at their own time."""
    target = ledger()
    first, _ = held(target, "1", "2")
    begin(target, first, Outcome.NACK)
    target.arrive([delivery("1")], 30.0)
    assert begun(target.expire(60.0)) == [("2", Outcome.NACK)]
    assert begun(target.expire(90.0)) == [("1", Outcome.RETURN)]


def test_a_run_kept_here_comes_again_in_order_after_its_delay() -> None:
    """R10, R11: if the broker would lose the order, the ledger hands the run out again itself."""
    target = ledger(redelivers_locally=True)
    target.arrive([delivery(f"a{number}") for number in range(1, 5)], 0.0)
    first, _ = target.take(2, 0.0)
    assert begin(target, first, Outcome.NACK, 5.0, 0.0) == []
    assert ids(target.take(10, 4.9)) == []
    assert ids(target.take(10, 5.0)) == ["a1", "a2", "a3", "a4"]
    assert first._state is State.NACKED


def test_a_failed_settlement_leaves_the_message_held() -> None:
    """S5: afterwards the message can be settled with either outcome."""
    target = ledger()
    (only,) = held(target, "1")
    settle(target, only, Outcome.ACK, BrokerError("no answer", ErrorCode.TIMEOUT, retryable=True))
    assert (only._state, target.held) == (State.HELD, 1)
    settle(target, only, Outcome.NACK)
    assert target.held == 0


def test_a_late_confirmation_still_counts() -> None:
    """S5: a success that comes after the caller's timeout still settles the message."""
    target = ledger()
    (only,) = held(target, "1")
    (settlement,) = begin(target, only, Outcome.ACK)  # type: ignore[misc]
    target.finish(settlement, BrokerError("no answer", ErrorCode.TIMEOUT, retryable=True))
    target.finish(settlement, None)
    assert only._state is State.ACKNOWLEDGED


def test_a_message_that_comes_again_takes_its_successors_with_it() -> None:
    """R10: if the broker has ended the delivery of a message, the later ones of its key go back too."""
    target = ledger()
    first, *_ = held(target, "a1", "a2")
    target.arrive([delivery("a3")], 0.0)
    (asked,) = begin(target, first, Outcome.ACK)  # type: ignore[misc]  # no error
    later = target.finish(asked, BrokerError("over", ErrorCode.EXPIRED))
    assert begun(list(later)) == [("a2", Outcome.RETURN), ("a3", Outcome.RETURN)]
    assert target.held == target.buffered == 0


def test_a_message_that_failed_too_often_goes_to_the_source_with_its_data() -> None:
    """R12: the last failure goes to the source, whether it is a nack or an expiry; successors wait."""
    target = ledger(redelivers_locally=True, local_attempts=1, max_lease_duration=5.0)
    first, second = held(target, "a1", "a2")
    (asked,) = begin(target, first, Outcome.NACK)  # type: ignore[misc]  # no error
    assert (asked.delivery.data, second._state) == (b"x", State.RETURNED)
    assert target.take(10, 1.0) == []
    target.finish(asked, None)
    assert ids(target.take(10, 1.0)) == ["a2"]
    (expired,) = target.expire(100.0)
    assert (expired.outcome, expired.delivery.data) == (Outcome.NACK, b"x")


def test_a_run_that_is_kept_here_expires_here() -> None:
    """R6, R10: the old deliveries are over, only the first one counts as failed, and the run comes again here."""
    target = ledger(redelivers_locally=True)
    first, second = held(target, "a1", "a2")
    target.arrive([delivery("a3")], 50.0)
    assert target.expire(60.0) == []
    assert code(begin(target, first, Outcome.ACK, now=60.0)) is ErrorCode.EXPIRED
    assert begin(target, second, Outcome.NACK, now=60.0) == []
    assert ids(target.take(10, 60.0)) == []  # as after a nack, it comes again later each time
    assert ids(target.take(10, 61.0)) == ["a1", "a2", "a3"]


def test_a_delay_may_be_longer_than_a_lease() -> None:
    """R11, R6: the message and its successors wait for the delay, and then for as long as a lease."""
    target = ledger(redelivers_locally=True, max_lease_duration=5.0)
    (first,) = held(target, "a1")
    target.arrive([delivery("a2")], 0.0)
    begin(target, first, Outcome.NACK, 100.0)
    for now in (5.0, 50.0, 99.0, 104.0):
        assert target.expire(now) == []
    assert ids(target.take(10, 104.0)) == ["a1", "a2"]
    begin(target, "a1", Outcome.NACK, 100.0, 104.0)
    assert target.expire(208.0) == []
    assert begun(target.expire(213.0)) == [("a1", Outcome.RETURN), ("a2", Outcome.RETURN)]


@pytest.mark.parametrize("outcome", [Outcome.NACK, Outcome.RETURN])
def test_without_order_keys_mean_nothing(outcome: Outcome) -> None:
    """R8, R10, R12: no message waits for another or goes back with it, and the broker sees each failure."""
    target = ledger(redelivers_locally=True, keeps_order=False)
    target.arrive([delivery("a1"), delivery("a2"), delivery("a3")], 0.0)
    (first,) = target.take(1, 0.0)
    (second,) = target.take(1, 0.0)
    assert begun(begin(target, first, outcome)) == [("a1", outcome)]
    assert second._state is State.HELD
    assert begun(target.close()) == [("a3", Outcome.RETURN)]
    assert begun(target.surrender()) == [("a2", Outcome.RETURN)]


def test_order_is_learned_when_nothing_is_here() -> None:
    """A source may learn only from its messages whether the subscription keeps order."""
    target = ledger()
    (first,) = held(target, "a1")
    target.keep_order(False)
    target.arrive([delivery("a2")], 0.0)
    assert target.take(1, 0.0) == []
    settle(target, first, Outcome.ACK)
    settle(target, *target.take(1, 0.0), Outcome.ACK)
    target.keep_order(False)
    target.arrive([delivery("a3"), delivery("a4")], 0.0)
    assert [ids(target.take(1, 0.0)), ids(target.take(1, 0.0))] == [["a3"], ["a4"]]


def test_what_comes_again_while_it_is_dead_lettered_stays_before_its_successors() -> None:
    """R10, R12: the copy takes the same outcome; if that fails, the message is still held."""
    target = ledger(redelivers_locally=True, local_attempts=1)
    first, _ = held(target, "a1", "a2")
    (asked,) = begin(target, first, Outcome.NACK)  # type: ignore[misc]  # no error
    target.arrive([delivery("a1", token="newer")], 0.0)
    assert target.take(10, 1.0) == []
    target.finish(asked, BrokerError("no topic", ErrorCode.NOT_FOUND))
    assert (first._state, first.token, target.duplicates) == (State.HELD, "newer", 1)
    settle(target, first, Outcome.ACK)
    assert ids(target.take(10, 1.0)) == ["a2"]


def test_what_the_broker_took_back_is_not_given_back() -> None:
    """R10: only its successors go back, also if the receiver counts the attempts."""
    target = ledger(redelivers_locally=True, local_attempts=3)
    first, *_ = held(target, "a1", "a2")
    assert begun(target.lose([first])) == [("a2", Outcome.RETURN)]


def test_what_is_lost_before_it_was_handed_out_is_forgotten() -> None:
    """F2: the broker is told nothing, there is room again, and the message may come again."""
    target = ledger()
    target.arrive([delivery("1", token="old"), delivery("2", token="kept")], 0.0)
    assert target.lose(target.find_buffered(lambda each: each.token == "old")) == []
    assert target.buffered == 1
    target.arrive([delivery("1", token="new")], 0.0)
    assert [each.token for each in target.take(10, 0.0)] == ["kept", "new"]


def lost_run() -> Ledger:
    """Return a ledger that keeps runs here, with a run of which the broker has taken back both messages."""
    target = ledger(redelivers_locally=True, local_attempts=3, max_lease_duration=9)
    held(target, "a1", "a2")
    target.mark_lost(lambda _: True)
    return target


def test_what_is_lost_while_it_is_held_does_not_stay_here() -> None:
    """F2, R10: another receiver may have it, when it is nacked and when it expires."""
    going_back = [("a1", Outcome.NACK), ("a2", Outcome.RETURN)]
    nacked, expired = lost_run(), lost_run()
    assert begun(nacked.begin(["a1"], Outcome.NACK, 0.0, 1.0).to_send) == going_back
    assert begun(expired.expire(9.0)) == going_back
    assert nacked.buffered == expired.buffered == 0


def test_what_was_lost_and_has_come_again_stays_here() -> None:
    """F2, R10: the broker has delivered the run to this receiver once more."""
    target = lost_run()
    target.arrive([delivery("a1", token="new"), delivery("a2", token="new")], 1.0)
    assert target.begin(["a1"], Outcome.NACK, 0.0, 1.0).to_send == []
    assert ids(target.take(10, 2.0)) == ["a1", "a2"]
    assert target.buffered == 0


def test_closing_gives_back_what_is_free_then_the_rest_in_order() -> None:
    """C1: buffered messages of a key wait for the held one before them."""
    target = ledger()
    target.arrive([delivery(name) for name in ("a1", "1", "a2", "b1", "a3")], 0.0)
    target.take(2, 0.0)
    assert begun(target.close()) == [("1", Outcome.RETURN), ("b1", Outcome.RETURN)]
    assert begun(target.surrender()) == [(name, Outcome.RETURN) for name in ("a1", "a2", "a3")]
    assert (target.held, target.buffered) == (0, 0)


def test_renewals_are_those_whose_lease_ends_soon() -> None:
    """R6: a lease that has long to run is not renewed, because most messages are settled before."""
    target = ledger()
    soon = delivery("1")
    target.arrive([soon], 0.0, lease_until=10.0)
    target.arrive([delivery("2")], 0.0, lease_until=50.0)
    assert target.renewals(20.0) == [soon]


def test_a_run_that_was_nacked_goes_back_before_the_broker_takes_it() -> None:
    """R6: the hold counts from the arrival, although each redelivery here has a new lease."""
    target = ledger(redelivers_locally=True, longest_hold=100.0)
    first, _ = held(target, "a1", "a2")
    assert begin(target, first, Outcome.NACK, delay=500.0, now=90.0) == []
    assert target.outstayed(99.0) == []
    assert begun(target.outstayed(100.0)) == [("a1", Outcome.RETURN), ("a2", Outcome.RETURN)]
    assert target.room(None) == 10


def test_without_a_bound_of_the_broker_nothing_goes_back_for_its_age() -> None:
    """R6: leases alone decide then."""
    target = ledger()
    held(target, "1")
    assert target.outstayed(1e9) == []
