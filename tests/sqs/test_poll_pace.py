"""The number of requests to receive, and the pauses between them."""

from __future__ import annotations

from collections import deque

from events_sqs.poll_pace import LONGEST_PAUSE, PollPace


def asked_of_a_backlog(messages: int) -> int:
    """Return the number of requests that empty a queue of *messages*, with 10 ms for each round of requests."""
    pace, now, count = PollPace(), 0.0, 0
    while messages:
        now += pace.pause(now)
        requests = pace.count(room=1000)
        sizes = [min(10, max(0, messages - 10 * place)) for place in range(requests)]
        messages -= sum(sizes)
        count += requests
        now += 0.01
        pace.answered(sizes, 10, now)
    return count


def asked_of_a_stream(rate: float, seconds: float) -> tuple[int, int]:
    """Return the numbers of messages and of requests that a receiver needs to follow *rate* messages a second."""
    pace, now, requests, taken = PollPace(), 0.0, 0, 0
    while now < seconds:
        now += pace.pause(now)
        count = pace.count(room=1000)
        waiting = int(now * rate) - taken
        if not waiting:
            now = (taken + 1) / rate  # SQS waits for the next message
            waiting = 1
        sizes = [min(10, max(0, waiting - 10 * place)) for place in range(count)]
        taken += sum(sizes)
        requests += count
        now += 0.002
        pace.answered(sizes, 10, now)
    return taken, requests


def test_a_backlog_costs_little_more_than_full_answers() -> None:
    """Whatever its size, a backlog is emptied with at most 1.15 times the least requests, and one."""
    for messages in (10, 100, 300, 1000, 3333, 10_000):
        assert asked_of_a_backlog(messages) <= 1.15 * messages / 10 + 1, messages


def test_a_fast_stream_comes_in_full_answers() -> None:
    """If messages come one by one at 250 to 4,000 a second, the requests are at most 1.15 times the least."""
    for rate in (250, 500, 1000, 2000, 4000):
        messages, requests = asked_of_a_stream(rate, 20)
        assert requests <= 1.15 * messages / 10, (rate, messages, requests)


def test_a_slow_stream_is_not_delayed() -> None:
    """At 20 messages a second no answer can be filled, so the receiver asks at once."""
    pace, now = PollPace(), 0.0
    for _ in range(100):
        now += 0.05
        pace.answered([1], 10, now)
        assert pace.pause(now) == 0.0


def test_no_pause_is_long() -> None:
    """A pause is never longer than 50 ms."""
    pace, now = PollPace(), 0.0
    for size in deque([9, 1, 10, 3, 0, 10, 10, 7] * 20):
        now += 0.004
        pace.answered([size], 10, now)
        assert pace.pause(now) <= LONGEST_PAUSE + 1e-9


def test_requests_that_bring_nothing_are_not_repeated_soon() -> None:
    """A FIFO queue with one group gives one full answer in each round, and hardly any second request is sent."""
    pace, requests = PollPace(), 0
    for turn in range(200):
        count = pace.count(room=1000)
        requests += count
        pace.answered([10, *[0] * (count - 1)], 10, float(turn))
    assert requests <= 1.15 * 200


def test_room_bounds_the_requests() -> None:
    """Requests that are out together cannot bring more than there is room for."""
    pace = PollPace()
    for _ in range(100):
        pace.answered([10] * pace.count(room=1000), 10, 0.0)
    assert [pace.count(room) for room in (1, 9, 10, 25, 1000)] == [1, 1, 1, 2, 10]


def test_empty_answers_that_did_not_wait_are_no_hot_loop() -> None:
    """If SQS answers at once that there is nothing, the receiver asks once in a second."""
    pace, now, times = PollPace(), 0.0, []
    for _ in range(20):
        now += pace.pause(now) + 0.002
        pace.answered([0], 10, now)
        times.append(now)
    assert times[-1] - times[-2] > 0.9
    assert times[1] - times[0] < 0.2


def test_an_empty_answer_that_waited_leads_to_no_pause() -> None:
    """A request that waited at SQS is followed by another one at once."""
    pace = PollPace()
    for now in (20.0, 40.0, 60.0):
        pace.answered([0], 10, now)
        assert pace.pause(now) == 0.0
