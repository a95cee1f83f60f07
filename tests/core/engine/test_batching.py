"""Which messages leave in one request, and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError
from events_core.engine.batching import Batch, Batcher
from events_core.engine.pace import Pace
from events_core.engine.sends import Entry, Send


def batcher(**changes: object) -> Batcher:
    settings = {"max_messages": 3, "max_bytes": 100, "max_inflight": 2, "mixed_keys": False, **changes}
    return Batcher(**settings)  # type: ignore[arg-type]  # a test's shorthand


class Nobody:
    woken = False

    def wake(self) -> None:
        self.woken = True


def send(*keys: str, size: int = 10) -> Send[Nobody]:
    made = Send(60.0, Nobody())
    made.add([EventMessage(b"x", ordering_key=key) for key in keys], [size] * len(keys))
    return made


def fill(target: Batcher, *sends: Send[Nobody]) -> None:
    for each in sends:
        target.add_all(each.entries)


def keys(batch: Batch | None) -> list[str | None]:
    assert batch is not None
    return [entry.message.ordering_key for entry in batch.entries]


def test_a_lone_message_leaves_at_once() -> None:
    """P5: it waits for no timer."""
    target = batcher()
    fill(target, send(""))
    assert keys(target.next(0.0)) == [None]


def test_what_gathers_while_requests_are_out_is_the_next_batch() -> None:
    """P5: messages beyond the places wait, and leave together."""
    target = batcher(max_inflight=1)
    fill(target, send(""))
    out = target.next(0.0)
    fill(target, send("", ""))
    assert target.next(0.0) is None
    assert out is not None
    target.release(out, 0.0)
    assert keys(target.next(0.0)) == [None, None]


def test_a_batch_respects_the_brokers_limits() -> None:
    """P2: a batch keeps both limits, and a message that is larger goes alone."""
    target = batcher(max_inflight=9)
    fill(target, send("", "", "", ""), send("", size=500))
    assert [len(keys(target.next(0.0))) for _ in range(3)] == [3, 1, 1]


def test_one_request_a_key_and_one_key_a_request() -> None:
    """P4: a key's next request leaves only after the last one has ended."""
    target = batcher(max_inflight=9)
    fill(target, send("a", "b", "a", "a", "a"))
    first, second = target.next(0.0), target.next(0.0)
    assert (keys(first), keys(second)) == (["a", "a", "a"], ["b"])
    assert target.next(0.0) is None
    assert first is not None
    target.release(first, 0.0)
    assert keys(target.next(0.0)) == ["a"]


def test_mixed_keys_leave_in_one_lane() -> None:
    """P4: if one request may carry several keys, they leave in order, one request at a time."""
    target = batcher(mixed_keys=True)
    fill(target, send("a", "", "b", "a"))
    assert keys(target.next(0.0)) == ["a", None, "b"]
    assert target.next(0.0) is None


def test_full_requests_have_more_places() -> None:
    """P5: a batch that cannot grow does not wait for a place of those that can."""
    target = batcher(max_inflight=1, max_full=3)
    fill(target, *(send("") for _ in range(11)))
    first = target.next(0.0)
    assert [len(keys(first)), *(len(keys(target.next(0.0))) for _ in range(2))] == [3, 3, 3]
    assert not target.is_ready
    assert target.next(0.0) is None, "all places are taken"
    fill(target, send(""))
    assert first is not None
    target.release(first, 0.0)
    assert target.is_ready
    second = target.next(0.0)
    assert len(keys(second)) == 3, "it is full now"
    assert second is not None
    target.release(second, 0.0)
    fill(target, send(""))
    assert not target.is_ready
    assert target.next(0.0) is None, "one message waits for the place that is for all"


def test_full_requests_of_many_keys_have_more_places() -> None:
    """P5: the keys that are ready count, and all messages without a key."""
    target = batcher(max_inflight=1, max_full=9, one_of_each_key=True)
    fill(target, send("a", "a", "b", "c", "d", "d", "d", "", ""))
    assert [keys(target.next(0.0)) for _ in range(2)] == [["a", "b", "c"], ["d", None, None]]
    assert target.next(0.0) is None
    fill(target, send("e", "f"))
    assert not target.is_ready
    fill(target, send(""))
    assert keys(target.next(0.0)) == ["e", "f", None]


def test_one_of_each_key_fills_a_request_from_many_keys() -> None:
    """P5: a request carries the first message of each key that is ready, and messages without a key."""
    target = batcher(max_inflight=9, max_messages=4, one_of_each_key=True)
    fill(target, send("a", "a", "", "b", "", "c", "b"))
    first, second = target.next(0.0), target.next(0.0)
    assert (keys(first), keys(second)) == (["a", None, None, "b"], ["c"])
    assert target.next(0.0) is None, "the keys a and b are out"
    assert first is not None
    target.release(first, 0.0)
    assert keys(target.next(0.0)) == ["a", "b"]


def test_one_of_each_key_respects_the_bytes_of_a_request() -> None:
    """P2: a message that does not fit leaves in the next request, before those that were behind it."""
    target = batcher(max_inflight=9, one_of_each_key=True)
    fill(target, send("a", size=60), send("b", size=60), send("c", size=10))
    assert [keys(target.next(0.0)) for _ in range(2)] == [["a"], ["b", "c"]]


def test_one_of_each_key_skips_what_nobody_waits_for() -> None:
    """P8: a key whose only message was given up is passed over, and forgotten."""
    target = batcher(max_inflight=9, one_of_each_key=True)
    given_up = send("b", "b")
    fill(target, send("a"), given_up, send("c"))
    for entry in given_up.entries:
        entry.complete(BrokerError("cancelled", ErrorCode.CLOSED))
    assert keys(target.next(0.0)) == ["a", "c"]
    fill(target, send("b"))
    assert keys(target.next(0.0)) == ["b"]


def test_one_of_each_key_frees_the_keys_that_are_not_retried() -> None:
    """P5: a key that is being retried delays only itself, although others were in its request."""
    target = batcher(max_inflight=2, one_of_each_key=True)
    fill(target, send("a", "b", "", "a", "b"))
    batch = target.next(0.0)
    assert keys(batch) == ["a", "b", None]
    fill(target, send(""))
    assert batch is not None
    for entry in batch.entries[1:]:
        entry.complete("id")
    target.shed(batch)
    target.pause(batch)
    other = target.next(0.0)
    assert keys(other) == [None, "b"]
    assert other is not None
    target.release(batch, 0.0)
    assert keys(target.next(0.0)) == ["a"]
    target.release(other, 0.0)


def test_one_of_each_key_holds_the_keys_of_a_paused_request() -> None:
    """P4: nothing overtakes a message that is retried, and other keys go on."""
    target = batcher(max_inflight=1, one_of_each_key=True)
    fill(target, send("a", "b", "a", "b"))
    failing = target.next(0.0)
    assert failing is not None
    target.pause(failing)
    fill(target, send("c"))
    other = target.next(0.0)
    assert keys(other) == ["c"]
    claim = Nobody()
    target.resume(failing, claim)
    assert not claim.woken
    assert other is not None
    target.release(other, 0.0)
    assert claim.woken
    target.release(failing, 0.0)
    assert keys(target.next(0.0)) == ["a", "b"]


def after_a_pause(target: Batcher, *sends: Send[Nobody]) -> int:
    """Return how many messages of *sends* leave after a pause that was as long as the last request."""
    fill(target, send(""))
    out = target.next(10.0)
    assert out is not None
    target.release(out, 12.0)
    fill(target, *sends)
    return len(keys(target.next(14.0)))


@pytest.mark.parametrize(("mixed_keys", "taken"), [(True, 32), (False, 64)])
def test_a_request_takes_half_where_requests_leave_one_at_a_time(mixed_keys: bool, taken: int) -> None:
    """P5: the broker then works while the senders of the other half wake up."""
    target = batcher(max_messages=100, max_bytes=None, mixed_keys=mixed_keys)
    assert after_a_pause(target, *(send("") for _ in range(64))) == taken


def test_halving_divides_no_send() -> None:
    """P3: the messages of one send leave together if they fit."""
    target = batcher(max_messages=100, max_bytes=None, mixed_keys=True)
    assert after_a_pause(target, send("a"), send(*"a" * 50), send("a")) == 51


def test_a_paused_request_gives_its_place_away() -> None:
    """P5: a key that is retried delays only itself."""
    target = batcher(max_inflight=1)
    fill(target, send("a", "b"))
    out = target.next(0.0)
    assert target.next(0.0) is None
    assert out is not None
    target.pause(out)
    assert keys(target.next(0.0)) == ["b"]


def test_a_paused_request_leaves_again_when_there_is_a_place() -> None:
    """P5: it leaves before messages that have not left yet, and keeps the bound on requests."""
    target = batcher(max_inflight=1)
    fill(target, send("a", "b", "c"))
    paused, claim = target.next(0.0), Nobody()
    assert paused is not None
    target.pause(paused)
    other = target.next(0.0)
    target.resume(paused, claim)
    assert not claim.woken
    assert other is not None
    target.release(other, 0.0)
    assert claim.woken
    assert target.next(0.0) is None
    target.release(paused, 0.0)
    assert keys(target.next(0.0)) == ["c"]


def test_what_has_no_key_gathers_while_all_its_requests_are_paused() -> None:
    """P5: an outage does not turn each message into a request, and keys go on."""
    target = batcher(max_inflight=2, max_messages=10)
    for _ in range(2):
        fill(target, send(""))
        out = target.next(0.0)
        assert out is not None
        target.pause(out)
    fill(target, send(""), send(""), send("a"))
    assert keys(target.next(0.0)) == ["a"]
    assert target.next(0.0) is None
    target.resume(out, Nobody())
    assert target.next(0.0) is None
    target.release(out, 0.0)
    assert keys(target.next(0.0)) == [None, None]


def test_messages_nobody_waits_for_stay_behind() -> None:
    """P8: an entry that was given up before it left does not leave."""
    target = batcher()
    given_up = send("")
    fill(target, given_up, send(""))
    given_up.entries[0].complete(BrokerError("late", ErrorCode.TIMEOUT))
    batch = target.next(0.0)
    assert batch is not None
    assert [entry.send is given_up for entry in batch.entries] == [False]


def test_a_failed_message_hinders_later_ones_of_its_key_in_its_send_only() -> None:
    """P3: they are NOT_ATTEMPTED, and the next send of the key leaves."""
    failed, other = send("a", "a", "b"), send("a")
    failed.entries[0].complete(BrokerError("no", ErrorCode.INVALID))
    hindrances: list[Entry] = [*failed.entries[1:], *other.entries]
    assert [entry.hindrance() is not None for entry in hindrances] == [True, False, False]


def test_requests_with_a_key_have_places_of_their_own() -> None:
    """P5: requests without a key do not take their places."""
    target = batcher(max_inflight=1, max_keys=3)
    fill(target, send("", "", "a", "b", "c", "d"))
    left = [keys(target.next(0.0)) for _ in range(4)]
    assert sorted(map(str, left)) == ["['a']", "['b']", "['c']", "[None, None]"]
    fill(target, send(""))
    assert target.next(0.0) is None
    assert not target.is_ready


def test_a_paused_request_takes_a_place_of_its_kind() -> None:
    """P5: a request with a key does not wait for requests without one."""
    target = batcher(max_inflight=1, max_keys=1)
    fill(target, send("a", "", "b"))
    paused, other, claim = target.next(0.0), target.next(0.0), Nobody()
    if keys(paused) != ["a"]:
        paused, other = other, paused
    assert paused is not None
    target.pause(paused)
    second = target.next(0.0)
    assert keys(second) == ["b"]
    assert second is not None
    target.resume(paused, claim)
    assert not claim.woken
    target.release(second, 0.0)
    assert claim.woken


def paced(**changes: object) -> Batcher:
    """Return a batcher with a window of 400 bytes, and 100 for each request."""
    pace = Pace(4)
    pace._window = 400
    return batcher(**{"max_messages": 100, "max_bytes": None, "max_inflight": 9, "max_keys": 100, **changes}, pace=pace)


def test_no_more_bytes_are_out_than_the_line_takes() -> None:
    """P5: a request carries a share of the window, and others wait until one has ended."""
    target = paced()
    fill(target, send(*[""] * 9, size=50))
    left = [target.next(0.0) for _ in range(5)]
    assert [len(batch.entries) for batch in left if batch] == [2, 2, 2, 2]
    assert not target.is_ready
    assert left[0] is not None
    target.release(left[0], 0.0)
    assert len(keys(target.next(0.0))) == 1


def test_a_message_beyond_the_window_leaves_alone() -> None:
    """P5: it leaves when nothing else is out."""
    target = paced()
    fill(target, send("", "a", size=1000))
    assert len(keys(target.next(0.0))) == 1
    assert target.next(0.0) is None


def test_neither_kind_of_request_keeps_the_line_from_the_other() -> None:
    """P5: requests with a key and requests without one take turns."""
    target = paced()
    fill(target, send(*"abcd", size=100), send(*[""] * 4, size=100))
    assert sum(keys(target.next(0.0)) == [None] for _ in range(4)) == 2


def test_a_request_that_timed_out_leaves_again_in_parts() -> None:
    """P5, P7: at the same size it would time out again."""
    target = paced()
    fill(target, send(*"aaaa", size=25))
    batch, claim = target.next(0.0), Nobody()
    assert batch is not None
    assert len(target.depart(batch, batch.entries, 0.0)) == 4
    assert target._pace is not None
    target._pace._window = 200
    target.pause(batch, 15.0)
    target.resume(batch, claim)
    assert claim.woken
    assert len(target.depart(batch, batch.entries, 16.0)) == 2
    target.confirm(batch, 17.0)
    assert len(target.depart(batch, batch.entries[2:], 17.0)) == 2


def test_a_paused_request_waits_until_the_line_has_room() -> None:
    """P5: it then leaves before messages that have not left yet."""
    target = paced()
    fill(target, send("a", size=300))
    paused, claim = target.next(0.0), Nobody()
    assert paused is not None
    target.pause(paused)
    fill(target, send("b", "c", size=500))
    out = target.next(0.0)
    assert out is not None
    target.resume(paused, claim)
    assert not claim.woken
    target.release(out, 0.0)
    assert claim.woken


class Sender:
    """A machine that sends as the publisher does, step by step, and checks the invariants after each step."""

    def __init__(self, one_of_each_key: bool) -> None:
        self.target = paced(max_inflight=2, max_keys=2, max_full=4, max_messages=3, one_of_each_key=one_of_each_key)
        self.one_of_each_key = one_of_each_key
        assert self.target._pace is not None
        self.pace = self.target._pace
        self.out: list[Batch] = []
        self.paused: list[Batch] = []
        self.claims: list[tuple[Batch, Nobody]] = []
        self.added: list[Entry] = []
        self.sent: list[Entry] = []
        self.now = 0.0

    def add(self, key: str, size: int) -> None:
        made = send(key, size=size)
        fill(self.target, made)
        self.added += made.entries

    def begin(self) -> None:
        batch = self.target.next(self.now)
        if batch is not None:
            self._depart(batch)

    def _depart(self, batch: Batch) -> None:
        if self.target.depart(batch, [each for each in batch.entries if each.result is None], self.now):
            self.out.append(batch)

    def succeed(self, number: int) -> None:
        batch = self.out.pop(number % len(self.out))
        unsent = [each for each in batch.entries if each.result is None]
        sent = self.target.depart(batch, unsent, self.now)
        for entry in sent:
            entry.complete("id")
        self.sent += sent
        self.target.confirm(batch, self.now)
        if len(sent) < len(unsent):
            self._depart(batch)
        else:
            self.target.release(batch, self.now)

    def fail(self, number: int, *, timed_out: bool) -> None:
        batch = self.out.pop(number % len(self.out))
        self.target.pause(batch, self.now, timed_out=timed_out)
        self.paused.append(batch)

    def resume(self, number: int) -> None:
        batch, claim = self.paused.pop(number % len(self.paused)), Nobody()
        self.claims.append((batch, claim))
        self.target.resume(batch, claim)

    def check(self) -> None:
        for batch, claim in [*self.claims]:
            if claim.woken:
                self.claims.remove((batch, claim))
                self._depart(batch)
        kinds = [{lane.key is not None for lane in batch.lanes} for batch in self.out]
        if self.one_of_each_key:
            assert len(kinds) <= 4
        else:
            assert kinds.count({False}) <= 4
            assert kinds.count({True}) <= 2
        busy = [lane.key for batch in [*self.out, *self.paused] for lane in batch.lanes if lane.key is not None]
        assert len(busy) == len(set(busy))
        assert self.pace._out == sum(batch.trip.size for batch in self.out if batch.trip)
        if not self.out:
            assert self.target.is_ready or not self.claims


moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["", "a", "b", "c"]), st.sampled_from([10, 90, 500])),
        st.tuples(st.sampled_from(["begin", "succeed", "fail", "time out", "resume"]), st.integers(0, 9)),
    ),
    max_size=80,
)


@pytest.mark.parametrize("one_of_each_key", [False, True])
@given(todo=moves)
def test_whatever_fails_everything_is_sent_once_and_in_order_per_key(
    one_of_each_key: bool, todo: list[tuple[str, Any, Any]]
) -> None:
    """P4, P5, P7: all places and all bytes of the window come back."""
    sender = Sender(one_of_each_key)
    for what, argument, *more in todo:
        sender.now += 1
        if what == "add":
            sender.add(argument, *more)
        elif what == "begin":
            sender.begin()
        elif what == "resume" and sender.paused:
            sender.resume(argument)
        elif what in ("fail", "time out") and sender.out:
            sender.fail(argument, timed_out=what == "time out")
        elif what == "succeed" and sender.out:
            sender.succeed(argument)
        sender.check()
    for _ in range(1000):
        sender.now += 1
        if sender.paused:
            sender.resume(0)
        sender.check()
        sender.begin()
        sender.check()
        if sender.out:
            sender.succeed(0)
    assert sorted(map(id, sender.sent)) == sorted(map(id, sender.added))
    for key in "abc":
        mine = [entry for entry in sender.added if entry.message.ordering_key == key]
        assert [entry for entry in sender.sent if entry.message.ordering_key == key] == mine
    assert sender.pace._out == 0
    assert not sender.target._lanes
    assert {places.free for places in sender.target._kinds} == {2}
