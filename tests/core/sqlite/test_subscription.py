"""The state of a subscription in the file: who holds a message, when it comes again, and when it is deleted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from events_core import ErrorCode, EventMessage
from events_core.backends.sqlite import subscription as subscription_module
from events_core.backends.sqlite import sweep, taking
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.subscription import Subscription
from events_core.engine import BrokerError, Delivery, Outcome, Settlement

Stores = Callable[..., Store]
DEAD = {"max_delivery_attempts": "2", "dead_letter_topic": "failed"}


def publish(store: Store, *texts: str, key: str | None = None) -> None:
    store.publish([EventMessage.from_string(text, ordering_key=key) for text in texts])


def texts(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.data.decode() for delivery in deliveries]


def settle(
    subscription: Subscription, outcome: Outcome, *deliveries: Delivery, delay: float | None = 0.0
) -> list[BrokerError | None]:
    return subscription.settle([Settlement(delivery, outcome, delay) for delivery in deliveries])


def nack_run(subscription: Subscription, *deliveries: Delivery, delay: float | None = 0.0) -> None:
    """Nack the first delivery and return the others, as the engine does with a run."""
    first, *later = deliveries
    subscription.settle([Settlement(first, Outcome.NACK, delay), *(Settlement(each, Outcome.RETURN) for each in later)])


def lapse(store: Store) -> None:
    """Let each session look as if its process had died."""
    store.connection.execute("UPDATE sessions SET expires_at = 0")


def count(store: Store, table: str) -> int:
    found: int = store.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return found


def test_receivers_of_one_subscription_share_its_messages(store: Stores) -> None:
    """No message goes to two of them, whichever connection they use."""
    publish(store(), "a", "b", "c")
    first, second = Subscription(store(start="earliest"), "s"), Subscription(store(), "s")
    assert texts(first.take(2)) == ["a", "b"]
    assert texts(second.take(9)) == ["c"]
    assert first.take(9) == []


@pytest.mark.parametrize("retention", ["0", "60", "1e18", "1e308"])
def test_a_subscription_that_starts_early_gets_what_is_kept(store: Stores, retention: str) -> None:
    """The retention may be longer than the clock can tell."""
    opened = store(start="earliest", retention=retention)
    Subscription(opened, "s")
    publish(opened, "a")
    assert texts(Subscription(opened, "t").take(9)) == ["a"]


def test_subscriptions_each_get_every_message(store: Stores) -> None:
    """They do not disturb each other."""
    opened = store()
    first, second = Subscription(opened, "s"), Subscription(opened, "t")
    publish(opened, "a")
    settle(first, Outcome.ACK, *first.take(9))
    assert texts(second.take(9)) == ["a"]


def test_reopened_file_knows_delays_and_attempts(store: Stores) -> None:
    """A nack outlives the process that sent it."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "soon", "late")
    soon, late = subscription.take(9)
    settle(subscription, Outcome.NACK, soon)
    settle(subscription, Outcome.NACK, late, delay=3600)
    subscription.leave()
    again = Subscription(store(), "s").take(9)
    assert [(each.data, each.delivery_attempt) for each in again] == [(b"soon", 2)]


def test_nack_without_delay_waits_longer_each_time(store: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 s, 0.2 s, 0.4 s, as the contract says."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "a")
    for delay in (0.1, 0.2, 0.4):
        settle(subscription, Outcome.NACK, *subscription.take(9), delay=None)
        assert subscription.next_due() == pytest.approx(now + delay)
        now += delay


def test_returned_message_counts_no_attempt_and_comes_first(store: Stores) -> None:
    """It comes before messages that were never fetched."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "a", "b", "c")
    settle(subscription, Outcome.RETURN, *subscription.take(2))
    assert [(each.data, each.delivery_attempt) for each in subscription.take(9)] == [(b"a", 1), (b"b", 1), (b"c", 1)]


def test_key_is_with_one_receiver_until_its_run_is_settled(store: Stores) -> None:
    """No receiver gets its later messages, not even the one that holds the earlier ones; other keys go on."""
    opened = store()
    first, second = Subscription(opened, "s"), Subscription(opened, "s")
    publish(opened, "k1", "k2", "k3", key="k")
    publish(opened, "j1", key="j")
    run = first.take(2)
    assert texts(run) == ["k1", "k2"]
    assert texts(second.take(9)) == ["j1"]
    settle(first, Outcome.ACK, run[0])
    assert second.take(9) == first.take(9) == []
    settle(first, Outcome.ACK, run[1])
    assert texts(second.take(9)) == ["k3"]


def test_nacked_message_goes_before_its_successors(store: Stores) -> None:
    """In every process, and the messages behind it count no attempt."""
    opened, other = store(), store()
    first, second = Subscription(opened, "s"), Subscription(other, "s")
    publish(opened, "1", "2", key="k")
    run = first.take(9)
    publish(opened, "3", key="k")
    nack_run(first, *run)
    taken = second.take(9)
    assert [(each.data, each.delivery_attempt) for each in taken] == [(b"1", 2), (b"2", 1)]
    settle(second, Outcome.ACK, *taken)
    assert texts(second.take(9)) == ["3"]


def test_delay_of_a_key_holds_back_its_successors(store: Stores) -> None:
    """It also holds back messages that are sent later."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "1", "2", key="k")
    nack_run(subscription, *subscription.take(9), delay=3600)
    publish(opened, "3", key="k")
    assert subscription.take(9) == []
    assert subscription.next_due() > 0


def test_run_ends_before_a_message_with_a_delay_of_its_own(store: Stores) -> None:
    """The messages before it need not wait for it."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "1", "2", key="k")
    first, second = subscription.take(9)
    settle(subscription, Outcome.NACK, second, delay=3600)
    settle(subscription, Outcome.RETURN, first)
    assert texts(subscription.take(9)) == ["1"]


def test_acknowledged_successor_does_not_come_again(store: Stores) -> None:
    """Within a run as well, an acknowledged message does not come again."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "1", "2", "3", key="k")
    first, second, third = subscription.take(9)
    settle(subscription, Outcome.ACK, second)
    nack_run(subscription, first, third)
    assert texts(subscription.take(9)) == ["1", "3"]


def test_long_key_leaves_room_for_others(store: Stores) -> None:
    """One fetch takes a limited number of its messages."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, *map(str, range(taking.RUN + 50)), key="long")
    publish(opened, "other", key="k")
    taken = subscription.take(200)
    assert len(taken) == taking.RUN + 1
    assert texts(taken)[-1] == "other"


def test_fetch_looks_at_a_bounded_number_of_messages(store: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocked messages are remembered, and not looked at again."""
    monkeypatch.setattr(taking, "RUN", 1)
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, *map(str, range(taking.SCAN)), key="k")
    publish(opened, "free")
    assert texts(subscription.take(9)) == ["0"]
    assert texts(subscription.take(9)) == ["free"]
    assert subscription.next_due() > 1


def test_fetch_takes_a_bounded_number_of_bytes(store: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is larger than the limit comes alone."""
    monkeypatch.setattr(taking, "TAKE_BYTES", 10)
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "x" * 20, "y" * 6, "z" * 6, "last")
    assert [len(subscription.take(9)) for _ in range(4)] == [1, 2, 1, 0]


@pytest.mark.usefixtures("impatient")
def test_dead_receivers_messages_have_failed_once_more(store: Stores) -> None:
    """Of a key only the first one has failed, because the others waited behind it; their order stays."""
    opened = store()
    dead, alive = Subscription(opened, "s"), Subscription(opened, "s")
    publish(opened, "1", "2", key="k")
    publish(opened, "a")
    held = dead.take(9)
    assert alive.take(9) == []
    lapse(opened)
    assert [(each.data, each.delivery_attempt) for each in alive.take(9)] == [(b"1", 2), (b"2", 1), (b"a", 2)]
    errors = settle(dead, Outcome.ACK, *held)
    assert [error.code for error in errors if error] == [ErrorCode.EXPIRED] * 3


@pytest.mark.usefixtures("impatient")
def test_receiver_taken_for_dead_goes_on(store: Stores) -> None:
    """It goes on with a new session, for example after its machine was suspended."""
    opened = store()
    asleep, awake = Subscription(opened, "s"), Subscription(opened, "s")
    publish(opened, "a")
    asleep.take(9)
    lapse(opened)
    settle(awake, Outcome.RETURN, *awake.take(9))
    asleep.renew()
    again = asleep.take(9)
    assert settle(asleep, Outcome.ACK, *again) == [None]


def test_lapsed_session_is_its_own_while_nobody_took_over(store: Stores) -> None:
    """The messages that it holds may still be settled."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "a")
    held = subscription.take(9)
    lapse(opened)
    assert subscription.take(9) == []
    assert settle(subscription, Outcome.ACK, *held) == [None]


def test_clock_that_is_set_forward_kills_nobody(store: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """R6: running receivers have time to renew their sessions before others take over."""
    opened = store(session_timeout="10")
    holding, other = Subscription(opened, "s"), Subscription(opened, "s")
    publish(opened, "a")
    held = holding.take(9)
    set_forward = time.time() + 3600
    passed = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: set_forward)
    monkeypatch.setattr(time, "monotonic", lambda: passed)
    assert other.take(9) == []
    assert 0 < other.next_due() - set_forward <= 5.0, "it looks again when the dead may be taken over"
    holding.renew()
    passed += 5.0
    assert other.take(9) == []
    assert settle(holding, Outcome.ACK, *held) == [None]


class Clock:
    """The clocks of the module ``time``, set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now, self._passed = time.time(), time.monotonic()
        monkeypatch.setattr(time, "time", lambda: self._now)
        monkeypatch.setattr(time, "monotonic", lambda: self._passed)

    def pass_by(self, seconds: float) -> None:
        """Let time pass on all clocks."""
        self._now += seconds
        self._passed += seconds

    def set_forward(self, seconds: float) -> None:
        """Set the system's clock, without moving the monotonic one."""
        self._now += seconds


def test_receiver_that_joins_after_the_clock_was_set_forward_kills_nobody(
    store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6: it cannot know that the clock was set, so it gives all receivers time to renew their sessions."""
    opened = store(session_timeout="10")
    clock = Clock(monkeypatch)
    holding = Subscription(opened, "s")
    publish(opened, "a")
    held = holding.take(9)
    clock.set_forward(3600)
    joining = Subscription(store(session_timeout="10"), "s")
    assert joining.take(9) == []
    clock.pass_by(2.5)
    holding.renew()
    clock.pass_by(2.5)
    assert joining.take(9) == []
    assert settle(holding, Outcome.ACK, *held) == [None]


def test_clock_that_is_set_forward_by_less_than_the_timeout_kills_nobody(
    store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6: a receiver that has just renewed its session takes over from none that is about to renew its own."""
    opened = store(session_timeout="10")
    clock = Clock(monkeypatch)
    holding, other = Subscription(opened, "s"), Subscription(opened, "s")
    for _ in range(4):
        clock.pass_by(2.5)
        holding.renew()
        other.renew()
    publish(opened, "a")
    held = holding.take(9)
    clock.pass_by(2)
    other.renew()
    clock.set_forward(9)
    assert other.take(9) == []
    holding.renew()
    assert settle(holding, Outcome.ACK, *held) == [None]


def test_clock_that_is_set_forward_delays_what_the_dead_held(store: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """R9: it delays them by half of the session timeout."""
    opened = store(session_timeout="10")
    dead, alive = Subscription(opened, "s"), Subscription(opened, "s")
    publish(opened, "a")
    dead.take(9)
    set_forward = time.time() + 3600
    passed = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: set_forward)
    monkeypatch.setattr(time, "monotonic", lambda: passed)
    assert alive.take(9) == []
    passed += 5.0
    assert texts(alive.take(9)) == ["a"]


def test_leaving_returns_what_is_held_uncounted(store: Stores) -> None:
    """They come in order."""
    opened = store()
    leaving, staying = Subscription(opened, "s"), Subscription(opened, "s")
    publish(opened, "1", "2", key="k")
    leaving.take(9)
    leaving.leave()
    assert [(each.data, each.delivery_attempt) for each in staying.take(9)] == [(b"1", 1), (b"2", 1)]
    assert count(opened, "sessions") == 1


def test_dead_letter_moves_with_its_origin(store: Stores) -> None:
    """One transaction removes it from the subscription and stores it in its new topic."""
    opened = store(**DEAD)
    subscription = Subscription(opened, "s")
    watching = Subscription(store("failed"), "watch")
    (sent,) = opened.publish([EventMessage(b"a", ordering_key="k")])
    settle(subscription, Outcome.NACK, *subscription.take(9))
    settle(subscription, Outcome.NACK, *subscription.take(9))
    assert subscription.take(9) == []
    (letter,) = watching.take(9)
    assert (letter.data, letter.ordering_key) == (b"a", "k")
    assert letter.attributes == {
        "dead_letter_source_topic": "orders",
        "dead_letter_source_subscription": "s",
        "dead_letter_source_message_id": sent,
        "dead_letter_delivery_attempts": "2",
    }
    assert count(opened, "deliveries") == 1
    assert count(opened, "messages") == 1


def test_dead_letter_is_stored_or_the_message_stays(store: Stores) -> None:
    """If storing the letter fails, the message stays in the subscription."""
    opened = store(**DEAD)
    subscription = Subscription(opened, "s")
    publish(opened, "a")
    settle(subscription, Outcome.NACK, *subscription.take(9))
    held = subscription.take(9)
    opened.connection.execute(
        "CREATE TEMP TRIGGER refuse BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )
    with pytest.raises(Exception, match="refused"):
        settle(subscription, Outcome.NACK, *held)
    opened.connection.execute("DROP TRIGGER refuse")
    assert settle(subscription, Outcome.ACK, *held) == [None]


@pytest.mark.usefixtures("impatient")
def test_message_that_kills_its_receiver_is_dead_lettered(store: Stores) -> None:
    """The receiver that takes over moves it, and the later messages of its key go on."""
    opened = store(**DEAD)
    alive = Subscription(opened, "s")
    watching = Subscription(store("failed"), "watch")
    publish(opened, "poison", "good", key="k")
    for _ in range(2):
        Subscription(opened, "s").take(9)
        lapse(opened)
    assert texts(alive.take(9)) == ["good"]
    assert texts(watching.take(9)) == ["poison"]


@pytest.mark.usefixtures("impatient")
def test_message_that_kills_its_receivers_takes_no_others_with_it(store: Stores) -> None:
    """R12: messages that they had only fetched are not dead-lettered, and no receiver looks for them in vain."""
    opened = store(**DEAD)
    watching = Subscription(store("failed"), "watch")
    Subscription(opened, "s")
    publish(opened, "a", "poison", "b", "c")
    handled = []
    for _ in range(4):
        receiver = Subscription(opened, "s")
        while taken := receiver.take(9):
            assert receiver.next_due() > time.time()
            for delivery in taken:
                if delivery.data == b"poison":
                    break
                handled += texts([delivery])
                settle(receiver, Outcome.ACK, delivery)
            else:
                continue
            break
        lapse(opened)
    assert texts(watching.take(9)) == ["poison"]
    assert handled == ["a", "b", "c"]


def test_a_receiver_that_vanished_hears_nothing(store: Stores) -> None:
    """P1: an expired ephemeral subscription does not count, even before a sweep deletes it."""
    opened = store()
    Subscription(opened, None)
    assert opened.is_heard()
    opened.connection.execute("UPDATE subscriptions SET expires_at = 1")
    assert not opened.is_heard()


def test_dead_letter_topic_must_exist_where_it_may_not_be_created(store: Stores) -> None:
    """Otherwise joining fails."""
    store()
    with pytest.raises(BrokerError, match="no topic 'failed'") as caught:
        Subscription(store(create="subscription", **DEAD), "s")
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_returned_message_is_never_dead_lettered(store: Stores) -> None:
    """Even if it was nacked often before."""
    opened = store(max_delivery_attempts="1", dead_letter_topic="failed")
    subscription = Subscription(opened, "s")
    publish(opened, "a")
    for _ in range(3):
        settle(subscription, Outcome.RETURN, *subscription.take(9))
    assert texts(subscription.take(9)) == ["a"]


def test_acknowledged_message_is_deleted_when_nobody_needs_it(store: Stores) -> None:
    """The last subscription that acknowledges it deletes it."""
    opened = store()
    first, second = Subscription(opened, "s"), Subscription(opened, "t")
    publish(opened, "a")
    held = second.take(9)
    settle(first, Outcome.ACK, *first.take(9))
    assert count(opened, "messages") == 1
    settle(second, Outcome.ACK, *held)
    assert count(opened, "messages") == count(opened, "deliveries") == 0


def test_ids_are_never_used_again(store: Stores) -> None:
    """Not even the highest id, after its message was deleted and the file was opened again."""
    opened = store()
    subscription = Subscription(opened, "s")
    (first,) = opened.publish([EventMessage(b"a")])
    settle(subscription, Outcome.ACK, *subscription.take(9))
    (second,) = store().publish([EventMessage(b"b")])
    assert int(second) > int(first)


def test_ids_are_never_used_again_by_the_next_file(store: Stores, file: Path) -> None:
    """So a receiver that holds messages of an earlier file does not take messages of this one for them."""
    former = store()
    taken = Subscription(former, "s")
    sent = former.publish([EventMessage(b"x")] * 1000)
    former.close()
    file.unlink()
    opened = store()
    subscription = Subscription(opened, "s")
    assert int(opened.publish([EventMessage(b"x")])[0]) > int(sent[-1])
    assert subscription._session > taken._session


def test_closing_twice_leaves_the_log_of_others_alone(store: Stores, file: Path) -> None:
    """The second close finds a log of others, and leaves it there."""
    former = store()
    former.publish([EventMessage(b"x")])
    with Path(f"{file}-wal").open("rb"):  # so that the next log certainly gets another inode
        former.close()
        other = store()
        subscription = Subscription(other, "s")
        publish(other, "1")
        former.close()
        publish(other, "2")
        assert texts(subscription.take(9)) == ["1", "2"]


def test_retention_keeps_messages_for_later_subscriptions(store: Stores) -> None:
    """When they are too old, a sweep deletes those that are acknowledged."""
    opened = store(retention="3600", start="earliest")
    subscription = Subscription(opened, "s")
    publish(opened, "done", "open")
    done, _ = subscription.take(9)
    settle(subscription, Outcome.ACK, done)
    opened.sweep()
    assert texts(Subscription(opened, "replay").take(9)) == ["done", "open"]
    opened.delete_subscription("replay")
    opened.connection.execute("UPDATE messages SET publish_time = publish_time - 3601")
    opened.sweep()
    assert [data for (data,) in opened.connection.execute("SELECT data FROM messages")] == [b"open"]


def test_retention_is_the_topics(store: Stores) -> None:
    """A client that does not set it leaves it as it is."""
    store(retention="3600")
    opened = store()
    publish(opened, "a")
    opened.sweep()
    assert count(opened, "messages") == 1
    store(retention="0").sweep()
    assert count(opened, "messages") == 0


def test_sweep_goes_in_steps_and_ends(store: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages without a subscription are deleted; messages that a subscription has not looked at stay."""
    monkeypatch.setattr(sweep, "SWEEP", 3)
    opened = store()
    publish(opened, *"abcdefgh")
    subscription = Subscription(opened, "s")
    publish(opened, "i")
    assert [opened.sweep() for _ in range(3)] == [True, True, False]
    assert texts(subscription.take(9)) == ["i"]
    assert count(opened, "messages") == 1


def test_large_subscription_is_deleted_in_steps(store: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone at once, also for its receivers; its deliveries are deleted step by step."""
    monkeypatch.setattr(sweep, "SWEEP", 3)
    opened = store()
    subscription, kept = Subscription(opened, "s"), Subscription(opened, "kept")
    publish(opened, *"abcdefgh")
    settle(subscription, Outcome.RETURN, *subscription.take(8))
    held = subscription.take(2)
    kept.take(8)
    opened.delete_subscription("s")
    assert [each.code for each in settle(subscription, Outcome.ACK, *held) if each] == [ErrorCode.EXPIRED] * 2
    left = [count(opened, "deliveries") - 8]
    while opened.sweep():
        left.append(count(opened, "deliveries") - 8)
    assert left == [6, 3, 0]
    assert Subscription(store(), "s").take(9) == []


def test_deletion_that_was_cut_short_is_finished_by_others(store: Stores) -> None:
    """Also by clients of other topics."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, *"abc")
    settle(subscription, Outcome.RETURN, *subscription.take(3))
    opened.delete_subscription("s")
    assert count(opened, "deliveries") == 3
    store("payments").sweep()
    assert count(opened, "deliveries") == 0


def test_ephemeral_subscription_ends_with_its_receiver(store: Stores) -> None:
    """Its messages are deleted with it."""
    opened = store()
    ephemeral = Subscription(opened, None)
    publish(opened, "a", "b")
    ephemeral.take(1)
    ephemeral.leave()
    opened.sweep()
    assert [count(opened, table) for table in ("subscriptions", "sessions", "deliveries", "messages")] == [0, 0, 0, 0]


def test_ephemeral_subscription_of_a_dead_process_is_swept_after_an_idle_time(
    store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is longer than a session, so a process that was only stopped finds it again."""
    opened = store(session_timeout="1")
    clock = Clock(monkeypatch)
    Subscription(opened, None)
    named = Subscription(opened, "s")
    for elapsed, left in ((2, 2), (subscription_module.IDLE_TIMEOUTS, 2), (1, 1)):
        clock.pass_by(elapsed)
        opened.sweep()
        assert count(opened, "subscriptions") == left
    named.leave()


def test_clock_that_is_set_forward_leaves_ephemeral_subscriptions_of_the_living(
    store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: a new client and an old one both leave receivers time to renew their subscriptions."""
    opened = store(session_timeout="10")
    clock = Clock(monkeypatch)
    living = Subscription(opened, None)
    opened.sweep()
    publish(opened, "a")
    for _ in range(3):
        clock.set_forward(3600)
        sweeping = (opened, store(session_timeout="10"))
        for each in sweeping:
            each.sweep()
        clock.pass_by(2.5)
        living.renew()
        clock.pass_by(7.5)
        for each in sweeping:
            each.sweep()
        living.renew()
    assert texts(living.take(9)) == ["a"]


def test_deleted_subscription_is_created_anew_where_allowed(store: Stores) -> None:
    """A receiver that is still there creates it; the messages that it held are expired."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "a")
    held = subscription.take(9)
    opened.delete_subscription("s")
    assert subscription.next_due() == 0
    assert subscription.take(9) == []
    publish(opened, "b")
    assert texts(subscription.take(9)) == ["b"]
    (error,) = settle(subscription, Outcome.ACK, *held)
    assert error is not None
    assert error.code is ErrorCode.EXPIRED


def test_deleted_subscription_is_not_found_where_it_may_not_be_created(store: Stores) -> None:
    """Each fetch of the receiver says so."""
    Subscription(store(), "s")
    opened = store(create="never")
    subscription = Subscription(opened, "s")
    opened.delete_subscription("s")
    for _ in range(2):
        with pytest.raises(BrokerError, match="no subscription 's'") as caught:
            subscription.take(9)
        assert caught.value.code is ErrorCode.NOT_FOUND


def test_withheld_names_keys_that_wait_for_what_is_held(store: Stores) -> None:
    """It does not name keys that wait for a delay."""
    opened = store()
    subscription = Subscription(opened, "s")
    publish(opened, "1", "2", key="held")
    publish(opened, "1", "2", key="delayed")
    run = subscription.take(1)
    nack_run(subscription, *subscription.take(9), delay=3600)
    assert subscription.withheld() == ["held"]
    settle(subscription, Outcome.ACK, *run)
    assert subscription.withheld() == []


def test_any_text_and_bytes_come_back_as_sent(store: Stores) -> None:
    """For example zero bytes, quotes and other scripts."""
    opened = store()
    subscription = Subscription(opened, "s")
    attributes = {"": "", "a\0b": 'x"y', "ключ": json.dumps("值")}
    sent = EventMessage(bytes(range(256)), attributes, ordering_key="k\0'ё")
    opened.publish([sent])
    (delivery,) = subscription.take(1)
    assert (delivery.data, delivery.attributes, delivery.ordering_key) == (sent.data, attributes, sent.ordering_key)


def test_rolled_back_session_is_forgotten(store: Stores, file: Path) -> None:
    """Its id may be given to another session, and their messages must not be confused."""
    opened = store()
    subscription = Subscription(opened, "s")
    known = subscription._session
    opened.connection.execute("DELETE FROM sessions")
    opened.connection.execute(
        "CREATE TEMP TRIGGER refuse BEFORE INSERT ON deliveries BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )
    publish(opened, "a")
    with pytest.raises(Exception, match="refused"):
        subscription.take(9)
    assert subscription._session == known
