"""Kill the server while processes send and receive, and count what was lost, doubled and late.

From the root of a checkout::

    python -m tests.rabbitmq.chaos --messages 20000

Two processes send and three receive.  The server is killed when a third of the messages is confirmed, and again at two
thirds, but not before all consumers have received something since the first time.  Each time it starts again at once,
on its port and its data.  ``--pause 30`` leaves it dead for 30 s longer.  The producers go on until the end, so there
are more messages than you ask for.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .server import Server, program

PRODUCERS = 2
CONSUMERS = 3
PATIENCE = 600.0
"""Seconds within which every confirmed message must have been acknowledged."""


@dataclass
class Delivered:
    """The hand-overs of one message, and its send.  Times are those of ``time.monotonic()``."""

    began: float = 0.0
    confirmed: float | None = None
    received: list[float] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    has_failed: bool = False
    """True if an acknowledgement of it failed.  The server may have handled that one just before a kill, and then the
    message does not come again."""


class Kill(NamedTuple):
    """The times of one kill."""

    before: float
    """Just before the kill."""
    after: float
    """When the server was dead."""
    answered: float
    """When the server answered again."""

    @classmethod
    def of(cls, server: Server, pause: float) -> Kill:
        """Kill *server*, and start it again after *pause* seconds."""
        before = time.monotonic()
        server.kill()
        after = time.monotonic()
        time.sleep(pause)
        server.start()
        return cls(before, after, time.monotonic())


@dataclass
class Journal:
    """The events of all processes, read from the files that they write."""

    folder: Path
    messages: dict[int, Delivered] = field(default_factory=lambda: defaultdict(Delivered))
    receptions: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """The times at which each consumer received something."""
    failed: int = 0
    """Acknowledgements that failed."""
    confirmed: int = 0
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
                    event, moment, number = line.split()
                    self._add(path.stem, event, float(moment), self.messages[int(number)])

    def _add(self, process: str, event: str, moment: float, message: Delivered) -> None:
        match event:
            case "b":
                message.began = moment
            case "c":
                message.confirmed = moment
                self.confirmed += 1
            case "r":
                message.received.append(moment)
                self.receptions[process].append(moment)
            case "a":
                message.acknowledged.append(moment)
            case "x":
                message.has_failed = True
                self.failed += 1
            case _:
                raise AssertionError(f"{process} wrote {event!r}")

    def have_resumed(self, kills: Sequence[Kill]) -> bool:
        """Return whether all consumers have received something since the last kill."""
        return not kills or max(self.resumed(kills[-1].answered)) < math.inf

    def resumed(self, answered: float) -> list[float]:
        """Return the seconds from *answered* to the next message of each consumer; infinite if none has come yet."""
        return [
            min((moment for moment in self.receptions[f"consumer-{index}"] if moment > answered), default=math.inf)
            - answered
            for index in range(CONSUMERS)
        ]

    @property
    def missing(self) -> list[int]:
        """The numbers of confirmed messages that no consumer has received and tried to acknowledge."""
        return [
            number
            for number, one in self.messages.items()
            if one.confirmed and not (one.acknowledged or one.has_failed)
        ]


@dataclass
class Report:
    """The result."""

    confirmed: int
    lost: int
    """Confirmed messages that never came."""
    duplicates: int
    """Hand-overs beyond the first of each message."""
    resent: int
    """Duplicates of messages whose send was not confirmed yet at a kill."""
    unsettled: int
    """Duplicates of messages that were handed over and not acknowledged yet at a kill."""
    unexplained: int
    """All other duplicates."""
    failed: int
    """Acknowledgements that failed, for example because the delivery was lost with the connection."""
    down: list[float]
    """Seconds between each kill and the next answer of the server."""
    resumed: list[list[float]]
    """For each kill, the seconds between the server's answer and the next message of each consumer."""

    def __str__(self) -> str:
        resumed = "; ".join(" ".join(f"{seconds:.1f}" for seconds in each) for each in self.resumed)
        return "\n".join(
            [
                f"confirmed {self.confirmed}, of these lost {self.lost}",
                f"duplicates {self.duplicates}: sends unconfirmed at a kill {self.resent}, deliveries unsettled at a "
                f"kill {self.unsettled}, others {self.unexplained}",
                f"acknowledgements that failed {self.failed}",
                f"the server was down for {' and '.join(f'{seconds:.1f}' for seconds in self.down)} s",
                f"each consumer resumed after {resumed} s",
            ]
        )


def run(server: Server, folder: Path, messages: int, pause: float = 0.0) -> Report:
    """Do it with *server*, which must be ours; return the report."""
    topic = f"chaos-{uuid.uuid4().hex[:8]}"
    journal = Journal(folder)
    kills: list[Kill] = []
    sending = [(index, PRODUCERS) for index in range(PRODUCERS)]
    with (
        running(folder, "consumer", server.url, topic, [()] * CONSUMERS) as consumers,
        running(folder, "producer", server.url, topic, sending) as producers,
    ):
        watch = Watch(journal, consumers + producers)
        for part in (1, 2, 3):
            watch.wait(lambda part=part: journal.confirmed >= messages * part // 3 and journal.have_resumed(kills))
            if part < 3:
                kills.append(Kill.of(server, pause))
        _finish(producers)
        watch.wait(lambda: not journal.missing, fails=False)
        time.sleep(1)  # for duplicates, which nobody waits for
        _finish(consumers)
    journal.read()
    return _report(journal, kills)


@contextmanager
def running(
    folder: Path, role: str, url: str, topic: str, numbers: Sequence[tuple[int, ...]]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Enter with one process for each of *numbers*, its arguments.  Kill what is left of them at the end."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    processes = []
    try:
        for index, arguments in enumerate(numbers):
            command = [sys.executable, "-m", f"{here.name}.chaos_worker", role, url, topic, *map(str, arguments)]
            with (
                (folder / f"{role}-{index}.journal").open("wb") as journal,
                (folder / f"{role}-{index}.log").open("wb") as log,
            ):
                processes.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=journal, stderr=log)
                )
        if role == "consumer":
            _await_ready(folder, processes)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _await_ready(folder: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    ends = time.monotonic() + 120
    while sum(path.read_bytes().startswith(b"ready") for path in folder.glob("consumer-*.journal")) < len(processes):
        assert time.monotonic() < ends, "the consumers have not joined within 120 s"
        assert all(one.poll() is None for one in processes), _logs(folder)
        time.sleep(0.1)


@dataclass
class Watch:
    """The journal, and the processes that must not fail meanwhile."""

    journal: Journal
    processes: list[subprocess.Popen[bytes]]

    def wait(self, condition: Callable[[], bool], fails: bool = True) -> None:
        """Wait until *condition* holds; if it never does, fail or return."""
        ends = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > ends:
                assert not fails, f"not within {PATIENCE:g} s; {_logs(self.journal.folder)}"
                return
            assert not any(one.poll() for one in self.processes), f"a process failed: {_logs(self.journal.folder)}"
            time.sleep(0.02)
            self.journal.read()


def _finish(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        assert process.wait(120) == 0


def _logs(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))


def _report(journal: Journal, kills: list[Kill]) -> Report:
    causes = {"resent": 0, "unsettled": 0, "unexplained": 0}
    for message in journal.messages.values():
        message.received.sort()
        for _ in message.received[1:]:
            causes[_cause(message, kills)] += 1
    return Report(
        confirmed=journal.confirmed,
        lost=len(journal.missing),
        duplicates=sum(causes.values()),
        failed=journal.failed,
        down=[kill.answered - kill.after for kill in kills],
        resumed=[journal.resumed(kill.answered) for kill in kills],
        **causes,
    )


def _cause(message: Delivered, kills: list[Kill]) -> str:
    """Return why a message may have come twice: what was open at a kill.

    What happened before the server answered again happened in the old session: for a moment after a kill, a consumer
    still hands out what it has buffered.
    """
    settled = min(message.acknowledged, default=math.inf)
    confirmed = message.confirmed or math.inf
    for kill in kills:
        if message.received[0] <= kill.answered and kill.before < settled:
            return "unsettled"
        if message.began <= kill.answered and kill.before < confirmed:
            return "resent"
    return "unexplained"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--logs", action="store_true", help="print what the processes have logged")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server").mkdir()
        with program(folder / "server") as server:
            print(run(server, folder, arguments.messages, arguments.pause))
            if arguments.logs:
                print(_logs(folder))


if __name__ == "__main__":
    main()
