"""Producers and consumers share a file that is disturbed again and again: no message is lost or out of order.

Processes are killed or stopped for a while, another program locks the file, and the system's clock is set.  No call may
hang.  One producer and one consumer are never killed, and must not need more and more threads, tasks, descriptors or
memory.
``EVENTS_TEST_SOAK=full`` runs it for at least 15 minutes, and ``EVENTS_TEST_SEED`` repeats the faults of a run.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from events_core.backends.sqlite import SQLiteOptions
from events_core.backends.sqlite.store import Store
from events_core.options import read_options

WORKER = Path(__file__).with_name("soak_worker.py")
BATCH = 20
"""Messages that a worker sends, or holds, at a time."""
FULL = os.environ.get("EVENTS_TEST_SOAK") == "full"
MESSAGES, KEYS = (450_000, 500) if FULL else (2_000, 100)
PAUSE = 2.0 if FULL else 0.5
"""Seconds between two faults."""
LONGEST = 6.0 if FULL else 3.0
"""Seconds that a fault lasts at most, longer than a session."""
DEADLINE = 3600.0 if FULL else 900.0
STANDSTILL = 1_200_000_000
"""Nanoseconds without a line.  A worker writes each second, and its session ends after two without a renewal."""


class Line(NamedTuple):
    """A line of a ledger: something that a process did."""

    kind: str
    at: int
    message_id: int
    rest: tuple[str, ...]
    process: str


def read(ledger: Path) -> Iterator[Line]:
    """Return the lines of a ledger, without one that a kill has cut off."""
    if not ledger.exists():
        return
    for line in ledger.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            kind, at, message_id, *rest = line.split()
            yield Line(kind, int(at), int(message_id), tuple(rest), ledger.stem)


def stood_still(ledger: Path) -> bool:
    """Return whether its process once wrote nothing for so long that its session may have lapsed."""
    times = [line.at for line in read(ledger)]
    return any(later - earlier >= STANDSTILL for earlier, later in pairwise(times))


class Gauge(NamedTuple):
    """Things of which a process must not have more and more."""

    threads: int
    tasks: int
    descriptors: int
    kilobytes: int


def check_flat(name: str, gauges: list[Gauge]) -> None:
    """Compare the last third of a life with the one before it; the first third is the warm-up."""
    third = len(gauges) // 3
    for field in Gauge._fields:
        middle = statistics.median(getattr(each, field) for each in gauges[third : 2 * third])
        last = statistics.median(getattr(each, field) for each in gauges[2 * third :])
        print(f"{name}: {field}: {middle:g}, then {last:g}")
        assert last <= 1.1 * middle + 5, f"{name}: {field} grew from {middle:g} to {last:g}"


class Worker:
    """A producer or consumer that is started again after each kill, with a ledger for each life."""

    def __init__(self, file: Path, role: str, name: str, clock: Path, *, lives_on: bool) -> None:
        self._file = file
        self._clock = clock
        self._role = role
        self.name = name
        self.lives_on = lives_on
        """True if it is never killed, so that its one life shows what grows."""
        self.ledgers: list[Path] = []
        self.stopped: set[str] = set()
        """Lives that were stopped for a while."""
        self.start()

    def start(self) -> None:
        first = sum(line.kind == "sent" for ledger in self.ledgers for line in read(ledger))
        self.ledgers.append(self._file.with_name(f"{self.name}-{len(self.ledgers)}.ledger"))
        share = [self.name, first, MESSAGES // 2, KEYS] if self._role == "produce" else []
        command = [sys.executable, WORKER, self._role, self._file, self.ledgers[-1], self._clock, *share]
        self._process = subprocess.Popen([str(part) for part in command])

    @property
    def is_done(self) -> bool:
        """Return whether it has ended by itself; check that it has not failed."""
        assert self._process.poll() in (None, 0)
        return self._process.poll() == 0

    def gauges(self) -> list[Gauge]:
        """Return what the last life has measured."""
        lines = read(self.ledgers[-1])
        return [Gauge(*map(int, line.rest)) for line in lines if line.kind == "gauge"]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self, seconds: float) -> None:
        """Stop it for a while, as a suspended container is."""
        self.stopped.add(self.ledgers[-1].stem)
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """A file that says how many seconds the system's clock is fast."""
    clock = tmp_path / "clock"
    set_clock(clock, 0.0)
    return clock


def set_clock(clock: Path, seconds: float) -> None:
    with clock.open("r+b" if clock.exists() else "w+b") as opened:  # in place: workers have it mapped
        opened.write(struct.pack("d", seconds))


@pytest.fixture
def workers(file: Path, clock: Path) -> Iterator[list[Worker]]:
    """Two producers and three consumers."""
    Store("", "orders", read_options(SQLiteOptions, {"path": str(file), "subscription": "soak"})).close()
    started: list[Worker] = []
    try:
        for number in range(5):
            role = "produce" if number < 2 else "consume"
            started.append(Worker(file, role, f"{role}-{number}", clock, lives_on=number in (0, 4)))
        yield started
    finally:
        for each in started:
            each.kill()


def messages_left(file: Path) -> int:
    connection = sqlite3.connect(file, timeout=60)
    left: int = connection.execute("SELECT count(*) FROM messages").fetchone()[0]
    connection.close()
    return left


def soak(file: Path, clock: Path, workers: list[Worker], draw: random.Random) -> Counter[str]:
    """Disturb workers until everything is sent and settled; return how often each fault was made."""
    ends = time.monotonic() + DEADLINE
    faults: Counter[str] = Counter()
    while not all(each.is_done for each in workers[:2]) or messages_left(file):
        assert time.monotonic() < ends, f"{messages_left(file)} messages are left"
        time.sleep(PAUSE)
        running = [each for each in workers if not each.is_done]
        fault = draw.choice(["kill", "kill", "stop", "lock", "clock"])
        victim = draw.choice([each for each in running if fault != "kill" or not each.lives_on])
        faults[fault] += 1
        match fault:
            case "kill":
                victim.kill()
                victim.start()
            case "stop":
                victim.stop(draw.uniform(0.1, LONGEST))
            case "lock":
                lock(file, draw.uniform(0.1, LONGEST))
            case "clock":
                set_clock(clock, draw.uniform(0.0, 30.0))
    for each in workers:
        each.kill()
    return faults


def lock(file: Path, seconds: float) -> None:
    """Hold the write lock for *seconds*, as another program might."""
    with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")


class Books:
    """All ledgers, with the checks of what must be true of them."""

    def __init__(self, workers: list[Worker]) -> None:
        lines = sorted((line for each in workers for path in each.ledgers for line in read(path)), key=lambda e: e.at)
        # A process that was stopped, or that stood still on a busy machine, may write down late that it held a message,
        # after another process got that message.  But a message that it settled was still its own.
        paused = {path.stem for each in workers for path in each.ledgers if stood_still(path)}
        paused.update(*(each.stopped for each in workers))
        own = {(line.process, line.message_id) for line in lines if line.kind == "settled"}
        lines = [
            line
            for line in lines
            if line.kind != "held" or line.process not in paused or (line.process, line.message_id) in own
        ]
        self.lines = lines
        self.sent = {line.message_id: line.rest for line in lines if line.kind == "sent"}
        self.held = {line.message_id: line.rest for line in lines if line.kind == "held"}
        self.settled = {line.message_id: line.at for line in lines if line.kind == "settled"}
        self.asked = {(line.process, line.message_id): line.at for line in lines if line.kind == "asked"}
        self.expired = {(line.process, line.message_id) for line in lines if line.kind == "expired"}

    def check_sends(self) -> None:
        """Check that ids and numbers of each producer rise together, and none is missing."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for _, (name, number, _) in sorted(self.sent.items()):
            numbers[name].append(int(number))
        assert all(found == list(range(MESSAGES // 2)) for found in numbers.values())
        assert len(numbers) == 2

    def check_nothing_lost(self) -> int:
        """Check that each confirmed send was settled, or its consumer was killed before it could write that down.

        :returns: the number of the latter.
        """
        unwritten = set(self.sent) - set(self.settled)
        asked = {message_id for _, message_id in self.asked.keys() - self.expired}
        assert unwritten <= asked, f"confirmed and lost: {sorted(unwritten - asked)}"
        return len(unwritten)

    def check_nothing_invented(self) -> int:
        """Check that each message that came was sent, or its producer was killed before it could write that down.

        :returns: the number of the latter.
        """
        assert all(self.held[number] == self.sent[number] for number in self.sent.keys() & self.held.keys())
        return len(self.held.keys() - self.sent.keys())

    def check_settled_once(self) -> None:
        """Check that a settled message does not come again."""
        assert Counter(line.message_id for line in self.lines if line.kind == "settled").most_common(1)[0][1] == 1
        late = [
            line for line in self.lines if line.kind == "held" and line.at > self.settled.get(line.message_id, line.at)
        ]
        assert [line for line in late if (line.process, line.message_id) not in self.expired] == []

    def check_order(self) -> None:
        """Check that who gets a message of a key holds all earlier ones, or their settlement began before."""
        of_key: dict[str, dict[int, str]] = defaultdict(dict)
        for line in self.lines:
            if line.kind != "held" or (line.process, line.message_id) in self.expired:
                continue
            holders = of_key[line.rest[-1]]
            holders[line.message_id] = line.process
            for earlier, process in list(holders.items()):
                if earlier >= line.message_id:
                    continue
                if self.asked.get((process, earlier), line.at) < line.at:
                    del holders[earlier]  # one check for each is enough
                else:
                    assert process == line.process, f"{line} came while {process} held {earlier}"

    def check_first_deliveries_rise(self) -> None:
        """Check that the messages of each key come in order for the first time."""
        seen: set[int] = set()
        latest: dict[str, int] = defaultdict(int)
        for line in self.lines:
            if line.kind == "held" and line.message_id not in seen:
                seen.add(line.message_id)
                assert line.message_id > latest[line.rest[-1]]
                latest[line.rest[-1]] = line.message_id


@pytest.mark.skipif(sys.platform != "linux", reason="needs a monotonic clock that all processes share")
def test_ledgers_agree_after_faults(file: Path, clock: Path, workers: list[Worker]) -> None:
    """They agree on confirmed sends and settled deliveries, whatever happened in between."""
    seed = int(os.environ.get("EVENTS_TEST_SEED") or time.time_ns() % 1_000_000)
    print(f"EVENTS_TEST_SEED={seed}")
    faults = soak(file, clock, workers, random.Random(seed))
    kills = faults["kill"]
    books = Books(workers)
    books.check_sends()
    unwritten_settled = books.check_nothing_lost()
    unwritten_sent = books.check_nothing_invented()
    # Each killed life had at most one batch under way.
    assert unwritten_settled + unwritten_sent <= (kills + len(workers)) * BATCH
    books.check_settled_once()
    books.check_order()
    books.check_first_deliveries_rise()
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    redelivered = sum(line.kind == "held" for line in books.lines) - len(books.held)
    print(
        f"{len(books.sent)} confirmed, {len(books.settled)} settled, {dict(faults)}, {redelivered} redelivered, "
        f"{unwritten_settled} settled and {unwritten_sent} sent without being written down, "
        f"{len(books.expired)} expired"
    )
    for each in workers:
        if each.lives_on:
            gauges = each.gauges()
            assert len(each.ledgers) == 1
            assert gauges, f"{each.name} measured nothing"
            if FULL:
                check_flat(each.name, gauges)
