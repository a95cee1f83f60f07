"""The number of bytes that are out at once, on simulated networks."""

from __future__ import annotations

import pytest

from events_core.engine.pace import FIRST_WINDOW, LEAST_WINDOW, Pace, Trip

MBIT = 1_000_000 / 8
TIMEOUT = 15.0


class Network:
    """A network that the requests which are out share evenly, in front of a broker that takes time for each."""

    def __init__(self, rate: float, latency: float = 0.03) -> None:
        self.rate = rate
        self.latency = latency
        self.now = 0.0
        self.pace = Pace(4)
        self.out: list[tuple[Trip, float]] = []
        """Each with what of it has not arrived yet."""
        self.confirmed = self.timeouts = 0
        self.most = 0
        """The most bytes that were out."""

    def send(self, size: int, chunk: int = 100_000) -> None:
        """Send *size* bytes in messages of *chunk* bytes; send again what timed out."""
        waiting = size
        while waiting or self.out:
            while waiting and self.pace.has_room and len(self.out) < 4:
                request = min(waiting, max(chunk, self.pace.request_size // chunk * chunk))
                waiting -= request
                self.out.append((self.pace.leave(request, self.now), float(request)))
                self.most = max(self.most, sum(trip.size for trip, _ in self.out))
            waiting += self._pass(0.01)

    def _pass(self, seconds: float) -> int:
        """Let time pass, and return how many bytes timed out."""
        self.now += seconds
        carried = self.rate * seconds / len(self.out)
        lost, out = 0, []
        for trip, rest in self.out:
            late = self.now - trip.began
            if rest <= carried and late >= self.latency:
                self.pace.confirm(trip, self.now)
                self.confirmed += trip.size
            elif late >= TIMEOUT:
                self.pace.time_out(trip, self.now)
                self.timeouts += 1
                lost += trip.size
            else:
                out.append((trip, rest - carried))
        self.out = out
        return lost


def test_a_narrow_line_is_not_overrun() -> None:
    """36 MB pass a network of 10 Mbit/s at its full speed, and nothing is sent twice."""
    network = Network(10 * MBIT)
    network.send(36_000_000)
    assert network.timeouts == 0
    assert network.now < 31  # simulated seconds; the line alone needs 28.8


def test_what_times_out_is_sent_again_in_smaller_requests() -> None:
    """Even a network that needs a minute for the first bytes lets all of them through."""
    network = Network(0.14 * MBIT)
    network.send(3_000_000, chunk=20_000)
    assert 0 < network.timeouts <= 8
    assert network.confirmed == 3_000_000


def test_a_line_that_becomes_narrow_is_not_flooded_for_ever() -> None:
    """Two rounds of timeouts find the new size."""
    network = Network(100 * MBIT)
    network.send(50_000_000)
    network.rate = 2 * MBIT
    network.send(10_000_000)
    assert network.timeouts <= 8


@pytest.mark.parametrize("latency", [0.03, 0.3, 5.0])
def test_a_wide_line_is_used_however_far_the_broker_is(latency: float) -> None:
    """The window doubles with each round trip, until it limits nothing."""
    network = Network(10_000 * MBIT, latency)
    network.send(200_000_000)
    assert network.most > 30_000_000
    assert network.timeouts == 0


def test_requests_that_left_before_the_window_was_narrowed_do_not_narrow_it_again() -> None:
    """They belong to the same round and fail for the same reason."""
    pace = Pace(4)
    trips = [pace.leave(FIRST_WINDOW // 4, 0.0) for _ in range(4)]
    for trip in trips:
        pace.time_out(trip, 15.0)
    assert pace.request_size == FIRST_WINDOW // 4 // 4


def test_something_always_may_leave() -> None:
    """One request may always leave, after any number of timeouts and of any size."""
    pace = Pace(4)
    for round in range(20):
        pace.time_out(pace.leave(9_000_000, round), round + 0.5)
    assert pace.request_size == LEAST_WINDOW // 4
    assert pace.has_room
    trip = pace.leave(9_000_000, 30.0)
    assert not pace.has_room
    pace.end(trip)
    assert pace.has_room


def test_a_window_that_is_hardly_used_does_not_grow() -> None:
    """Small requests say nothing about large ones."""
    pace = Pace(4)
    for number in range(1000):
        pace.confirm(pace.leave(1_000, number), number + 0.01)
    assert pace.request_size == FIRST_WINDOW // 4
