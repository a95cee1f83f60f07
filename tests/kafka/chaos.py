"""Let members of a group join, leave, die and stall while messages run, and count what was lost, doubled and misplaced.

From the root of a checkout::

    EVENTS_TEST_KAFKA=127.0.0.1:9092 python -m tests.kafka.chaos --messages 50000 --rounds 3

One process sends messages with keys, and three receive them; 5 % of the hand-overs fail and are nacked.  In each round
a member joins, one leaves, one is killed (SIGKILL) and one is stopped (SIGSTOP) for longer than its session.  Meanwhile
the positions that the group has committed are read from the broker.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

from events_kafka.position import Position

from .chaos_worker import KEYS, SUBSCRIPTION, key_of

WORKER = Path(__file__).with_name("chaos_worker.py")
PARTITIONS = 12
MEMBERS = 3
SESSION = 6.0
"""The session timeout: the least that a broker allows by default."""
STALL = 2 * SESSION
"""Seconds of a stall."""
COMMITS = 10.0
"""Seconds within which an acknowledgement is committed, on a busy machine.  The receiver commits every second."""
PATIENCE = 300.0
"""Seconds for each thing that is waited for."""


class Event(NamedTuple):
    """A line of a journal."""

    time: float
    process: str
    kind: str
    number: int
    partition: int
    offset: int


class Disturbance(NamedTuple):
    """A thing that was done to a member."""

    kind: str
    process: str
    began: float
    ended: float = math.inf


class Sample(NamedTuple):
    """A committed position of a partition, as the broker told it."""

    time: float
    offset: int
    metadata: str

    def has_done(self, offset: int) -> bool:
        """Return whether the commit says that the message at *offset* is done."""
        return offset < self.offset or not Position(self.offset, self.metadata).see(offset)


@dataclass
class Journal:
    """The events of all processes, read from the files that they write."""

    folder: Path
    events: list[Event] = field(default_factory=list)
    confirmed: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    last: dict[str, float] = field(default_factory=dict)
    """The time at which each process last handed out a message."""
    _offsets: dict[Path, int] = field(default_factory=lambda: defaultdict(int))

    def read(self) -> None:
        """Read what has been written since the last time."""
        for path in sorted(self.folder.glob("*.journal")):
            with path.open("rb") as file:
                file.seek(self._offsets[path])
                complete = file.read().rpartition(b"\n")
            self._offsets[path] += len(complete[0]) + len(complete[1])
            for line in complete[0].decode().splitlines():
                if line != "ready":
                    self._add(path.stem, *line.split())

    def _add(
        self, process: str, kind: str, moment: str, number: str, partition: str = "-1", offset: str = "-1"
    ) -> None:
        event = Event(float(moment), process, kind, int(number), int(partition), int(offset))
        self.events.append(event)
        if kind == "c":
            self.confirmed.add(event.number)
        elif kind == "a":
            self.acknowledged.add(event.number)
        elif kind == "r":
            self.last[process] = event.time

    def missing(self) -> str:
        """Return the events of some confirmed messages that nobody has acknowledged."""
        numbers = sorted(self.confirmed - self.acknowledged)
        events = [str(tuple(event)) for event in sorted(self.events) if event.number in numbers[:5]]
        return "\n".join([f"{len(numbers)} messages are missing: {numbers[:50]}", *events])


class Group:
    """The committed positions of the group, read all the time by a thread."""

    def __init__(self, address: str, topic: str) -> None:
        # It joins nothing: a consumer that has not subscribed may ask for the positions of any group.
        self._consumer = confluent_kafka.Consumer(
            {"bootstrap.servers": address, "group.id": f"{topic}.{SUBSCRIPTION}", "enable.auto.commit": False}
        )
        self._partitions = [confluent_kafka.TopicPartition(topic, number) for number in range(PARTITIONS)]
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: dict[int, list[Sample]] = defaultdict(list)

    def __enter__(self) -> Group:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(PATIENCE)
        self._consumer.close()

    def _run(self) -> None:
        while not self._ends.wait(0.2):
            self._read()

    def _read(self) -> None:
        try:
            found = self._consumer.committed(self._partitions, timeout=10)
        except confluent_kafka.KafkaException:
            return
        now = time.monotonic()  # not before: what is found was committed earlier
        for each in found:
            if each.offset >= 0:
                self.samples[each.partition].append(Sample(now, each.offset, each.metadata or ""))

    def lag(self) -> int:
        """Return the number of offsets that are not committed."""
        committed = self._consumer.committed(self._partitions, timeout=30)
        ends = [self._consumer.get_watermark_offsets(each, timeout=30)[1] for each in self._partitions]
        return sum(end - max(each.offset, 0) for end, each in zip(ends, committed, strict=True))


@dataclass
class Report:
    """The result."""

    confirmed: int
    lost: int
    """Confirmed messages that nobody has acknowledged."""
    misplaced: int
    """Hand-overs of a message before an earlier one of its key was done."""
    lag: int
    """Offsets that are not committed at the end."""
    nacked: int
    """Hand-overs that were nacked."""
    expired: int
    """Acknowledgements that failed, because the partition had moved."""
    held: int
    """Duplicates of messages that were not settled when their partition moved."""
    uncommitted: int
    """Duplicates of messages whose receiver died or stalled before it had committed the acknowledgement."""
    interrupted: int
    """Duplicates whose hand-over began before a stall, after the look at the clock; at most one for each stall."""
    committed: int
    """Duplicates of messages whose acknowledgement was committed."""
    unexplained: int
    """All other duplicates."""
    disturbances: Mapping[str, int]
    faults: list[str]
    """Some lines about misplaced, committed and unexplained messages."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.disturbances.items())
        return "\n".join(
            [
                f"confirmed {self.confirmed}, of these lost {self.lost}; lag at the end {self.lag}",
                f"disturbances: {kinds}",
                f"handed out before an earlier one of the key was done {self.misplaced}",
                f"nacked {self.nacked}; acknowledgements that failed {self.expired}",
                f"duplicates: unsettled when the partition moved {self.held}, acknowledged and not committed when the "
                f"member died or stalled {self.uncommitted}, handed out as a stall began {self.interrupted}, "
                f"committed {self.committed}, others {self.unexplained}",
                *self.faults,
            ]
        )


class Review:
    """The judgement on all events, in the order in which they happened."""

    def __init__(self, journal: Journal, disturbances: list[Disturbance], samples: Mapping[int, list[Sample]]) -> None:
        self._disturbances = disturbances
        self._samples = samples
        self._events = sorted(journal.events)
        self._failed = self._find_failed()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._done: dict[int, Event] = {}
        """The newest end of each message with an acknowledgement that did not fail."""
        self._given: dict[int, Event] = {}
        """The newest hand-over of each message that was not nacked since."""
        self._latest: dict[str, float] = {}
        """The time of the newest hand-over of each process."""
        self._front: dict[int, int] = defaultdict(int)
        """For each key, the place of its first message that is not done."""
        for event in self._events:
            self._judge(event)

    def _find_failed(self) -> set[Event]:
        """Return the ends whose acknowledgement failed.  That of a killed process may have neither result."""
        out: dict[tuple[str, int], Event] = {}
        failed = set()
        for event in self._events:
            if event.kind == "d":
                out[event.process, event.number] = event
            elif event.kind == "x":
                failed.add(out[event.process, event.number])
        return failed

    def _judge(self, event: Event) -> None:
        if event.kind == "r":
            self._judge_order(event)
            if event.number in self._given:
                self._judge_duplicate(event, self._given[event.number])
            self._given[event.number] = event
            self._latest[event.process] = event.time
        elif event.kind == "n":
            self._given.pop(event.number, None)
            self.counts["nacked"] += 1
        elif event.kind == "x":
            self.counts["expired"] += 1
        elif event.kind == "d" and event not in self._failed:
            self._done[event.number] = event
            key, _ = key_of(event.number)
            while _number(key, self._front[key]) in self._done:
                self._front[key] += 1

    def _judge_order(self, event: Event) -> None:
        key, place = key_of(event.number)
        if place > self._front[key]:
            self._add("misplaced", event, f"{self._front[key]} of the key {key} is not done")

    def _judge_duplicate(self, event: Event, before: Event) -> None:
        done = self._done.get(event.number)
        if any(each.time <= event.time and each.has_done(event.offset) for each in self._samples[event.partition]):
            self._add("committed", event, f"first at {before.time:.2f} by {before.process}")
        elif done is None and self._may_have_moved(before.time, event.time):
            self.counts["held"] += 1
        elif done is not None and self._was_interrupted(done):
            self.counts["uncommitted"] += 1
        elif self._was_cut_short(event):
            self.counts["interrupted"] += 1
        else:
            self._add("unexplained", event, f"first at {before.time:.2f} by {before.process}, done: {done}")

    def _may_have_moved(self, first: float, second: float) -> bool:
        """Return whether there was a reason for a rebalance that may have ended between these times."""
        return any(each.began < second and first < each.began + 60 + SESSION for each in self._disturbances)

    def _was_interrupted(self, done: Event) -> bool:
        """Return whether the process that acknowledged died or stalled before it had surely committed."""
        return any(
            each.kind in ("die", "stall")
            and each.process == done.process
            and each.began - COMMITS < done.time < each.ended + COMMITS
            for each in self._disturbances
        )

    def _was_cut_short(self, event: Event) -> bool:
        """Return whether this is the first hand-over of its process since a stall."""
        return any(
            each.kind == "stall"
            and each.process == event.process
            and self._latest.get(event.process, 0.0) < each.began + STALL / 2 < event.time
            for each in self._disturbances
        )

    def _add(self, kind: str, event: Event, why: str) -> None:
        self.counts[kind] += 1
        if len(self.faults) < 20:
            self.faults.append(
                f"{kind}: {event.number} (partition {event.partition}, offset {event.offset}) at {event.time:.2f} by "
                f"{event.process}: {why}"
            )


def _number(key: int, place: int) -> int:
    """Return the number of a message, as :func:`.chaos_worker.key_of` splits it."""
    return place * KEYS + key


class Members:
    """The processes that receive, with the journal of all processes."""

    def __init__(self, address: str, topic: str, folder: Path) -> None:
        self._address = address
        self._topic = topic
        self._folder = folder
        self._names = (f"consumer-{number}" for number in range(1000))
        self.journal = Journal(folder)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.others: list[subprocess.Popen[bytes]] = []
        self.disturbances: list[Disturbance] = []

    def spawn(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        # By its path, because kafka-python has a package of the name kafka.
        command = [sys.executable, "-P", str(WORKER), *map(str, arguments)]
        with (self._folder / f"{name}.journal").open("wb") as journal, (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=journal,
                stderr=log,
            )

    def start(self) -> str:
        """Start a member and return its name when it has joined."""
        name = next(self._names)
        self.running[name] = self.spawn(name, "consumer", self._address, self._topic, SESSION)
        path = self._folder / f"{name}.journal"
        self.wait(lambda: path.read_bytes().startswith(b"ready"), f"{name} to join")
        return name

    def wait_for_shares(self) -> None:
        """Wait until each member has its share of the partitions: the members joined one after the other."""
        admin = AdminClient({"bootstrap.servers": self._address, "log_level": 3})
        share = PARTITIONS // len(self.running)
        self.wait(lambda: _shares(admin, self._topic) == [share] * len(self.running), "the first assignment")

    def produce(self, messages: int, seconds: float) -> None:
        self.others.append(self.spawn("producer", "producer", self._address, self._topic, messages, seconds))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        ends = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < ends, f"waited {PATIENCE:g} s for {what}\n{self.journal.missing()}\n{self.logs()}"
            processes = [*self.running.values(), *self.others]
            assert not any(one.poll() for one in processes), f"a process failed: {self.logs()}"
            time.sleep(0.05)
            self.journal.read()

    # Disturbances

    def join(self) -> None:
        began = time.monotonic()
        name = self.start()
        self._note("join", name, began)
        self._await_messages(name)

    def leave(self) -> None:
        name = self._oldest()
        began = time.monotonic()
        self._end(name)
        self._note("leave", name, began)

    def die(self) -> None:
        name = self._oldest()
        process = self.running.pop(name)
        process.kill()
        self._note("die", name, time.monotonic())
        process.communicate()
        self._note("join", self.start(), time.monotonic())

    def stall(self) -> None:
        name = self._oldest()
        began = time.monotonic()
        self.running[name].send_signal(signal.SIGSTOP)
        time.sleep(STALL)  # its session ends meanwhile
        self.running[name].send_signal(signal.SIGCONT)
        self._note("stall", name, began)
        self._await_messages(name)

    def _note(self, kind: str, name: str, began: float) -> None:
        self.disturbances.append(Disturbance(kind, name, began, time.monotonic()))

    def _oldest(self) -> str:
        return next(iter(self.running))

    def _await_messages(self, name: str) -> None:
        """Wait until this member hands out messages, or until there are no more."""
        since = time.monotonic()
        self.wait(lambda: self.journal.last.get(name, 0) > since or self._is_over(), f"messages for {name}")

    def _is_over(self) -> bool:
        return any(one.poll() is not None for one in self.others) and self.all_acknowledged()

    # The end

    def all_acknowledged(self) -> bool:
        return self.journal.acknowledged >= self.journal.confirmed

    def _end(self, name: str) -> None:
        process = self.running.pop(name)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE) == 0, self.logs()

    def end(self) -> None:
        """Wait until all is sent and handled, and let all members leave."""
        self.wait(lambda: all(one.poll() == 0 for one in self.others), "the producer")
        self.wait(self.all_acknowledged, "the last messages")
        for name in [*self.running]:
            self._end(name)
        self.journal.read()

    def kill(self) -> None:
        for process in [*self.running.values(), *self.others]:
            process.kill()
            process.communicate()

    def logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self._folder.glob("*.log")))


def _shares(admin: AdminClient, topic: str) -> list[int]:
    """Return the number of partitions of each member of the group."""
    name = f"{topic}.{SUBSCRIPTION}"
    group = admin.describe_consumer_groups([name])[name].result(PATIENCE)
    return [len(member.assignment.topic_partitions) for member in group.members]


@contextmanager
def new_topic(address: str) -> Iterator[str]:
    topic = f"chaos-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": address, "log_level": 3})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(PATIENCE)
    try:
        yield topic
    finally:
        admin.delete_topics([topic])[topic].result(PATIENCE)


def run(address: str, folder: Path, messages: int, seconds: float, rounds: int = 1) -> Report:
    """Do it on the broker at *address*; send *messages* in *seconds*.  Return the report."""
    with new_topic(address) as topic, Group(address, topic) as group, ExitStack() as stack:
        members = Members(address, topic, folder)
        stack.callback(members.kill)
        for _ in range(MEMBERS):
            members.start()
        members.wait_for_shares()
        members.produce(messages, seconds)
        deeds = [members.join, members.leave, members.die, members.stall] * rounds
        for number, deed in enumerate(deeds):
            target = messages * (number + 1) // (len(deeds) + 1)
            members.wait(lambda target=target: len(members.journal.confirmed) >= target, "the producer")
            deed()
        members.end()
        lag = group.lag()
    journal = members.journal
    review = Review(journal, members.disturbances, group.samples)
    return Report(
        confirmed=len(journal.confirmed),
        lost=len(journal.confirmed - journal.acknowledged),
        misplaced=review.counts["misplaced"],
        lag=lag,
        nacked=review.counts["nacked"],
        expired=review.counts["expired"],
        held=review.counts["held"],
        uncommitted=review.counts["uncommitted"],
        interrupted=review.counts["interrupted"],
        committed=review.counts["committed"],
        unexplained=review.counts["unexplained"],
        disturbances=Counter(each.kind for each in members.disturbances),
        faults=review.faults,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=150, help="the time in which they are sent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="an empty folder for the journals and logs, to keep them")
    arguments = parser.parse_args()
    with nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory() as name:
        address = os.environ["EVENTS_TEST_KAFKA"]
        print(run(address, Path(name), arguments.messages, arguments.seconds, arguments.rounds))


if __name__ == "__main__":
    main()
