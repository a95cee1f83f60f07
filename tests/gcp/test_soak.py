"""Senders and receivers behind a hostile network: nothing confirmed is lost, no call hangs, nothing grows.

``EVENTS_TEST_SOAK=full`` runs each case for 15 minutes instead of some seconds.  ``EVENTS_TEST_SEED`` repeats the
faults of a run, whose seed is printed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from events_core import AcknowledgeError, EventClient, EventError, EventMessage, EventReceiver, PublishError
from events_core.testing import TcpProxy

from ..servers.server import Missing
from .console import client

FULL = os.environ.get("EVENTS_TEST_SOAK") == "full"
DURATION = 900.0 if FULL else 10.0
"""Seconds of faults."""
DRAIN = 600.0 if FULL else 180.0
"""Seconds after the last fault within which every confirmed message must have come.  Usually it takes one lease."""
TIMEOUT = 20.0
"""Seconds that a send or a settlement may take."""
HANG = 60.0
"""Seconds beyond its timeout after which a call counts as hanging."""
OPTIONS = {
    "send_timeout": f"{TIMEOUT:g}",
    "ack_timeout": f"{TIMEOUT:g}",
    "ack_deadline": "10",
    "create": "all",
}


@pytest.fixture
def broker() -> Iterator[str]:
    """Yield the address of a broker in a separate process, so that this one contains only the library."""
    folder = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-m", f"{folder.name}.broker_process"],
        env={**os.environ, "PYTHONPATH": str(folder.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise Missing("the broker did not start")
        yield address
        assert process.stdin is not None
        process.stdin.close()


class Gauge(NamedTuple):
    """Things of which a process must not have more and more."""

    threads: int
    tasks: int
    descriptors: int
    kilobytes: int


def gauge() -> Gauge:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Gauge(
        threading.active_count(),
        len(asyncio.all_tasks()),
        len(os.listdir("/proc/self/fd")),
        pages * os.sysconf("SC_PAGE_SIZE") // 1024,
    )


class Soak:
    """The confirmed messages, and what happened to them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed + 1)
        self.faults = random.Random(seed)
        """A separate generator, so that a seed gives the same faults in whatever order the tasks run."""
        self.ends = time.monotonic() + DURATION
        self.unsettled: set[str] = set()
        """Ids that were confirmed and are not acknowledged yet."""
        self.early: set[str] = set()
        self.earlier: set[str] = set()
        """Ids that were acknowledged before their send was confirmed.  Many sends are never confirmed, so older ids are
        dropped when their sends must have ended."""
        self.done: Counter[str] = Counter()
        self.gauges: list[Gauge] = []
        self._numbers = 0

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.ends

    async def send(self, client: EventClient) -> None:
        while self.goes_on:
            batch = [self._message() for _ in range(self.random.randint(1, 20))]
            try:
                async with asyncio.timeout(TIMEOUT + HANG):
                    self._confirmed(await client.send_messages(batch))
            except PublishError as error:
                self.done["sends failed"] += 1
                self._confirmed([result for result in error.results if isinstance(result, str)])
            await asyncio.sleep(self.random.uniform(0, 0.05))

    def _message(self) -> EventMessage:
        self._numbers += 1
        key = self.random.choice([None, None, f"key-{self.random.randrange(20)}"])
        return EventMessage(b"x" * self.random.choice([10, 1000, 50_000]), ordering_key=key)

    def _confirmed(self, ids: list[str]) -> None:
        self.done["confirmed"] += len(ids)
        self.unsettled |= set(ids) - self.early - self.earlier
        self.early -= set(ids)

    async def receive(self, receiver: EventReceiver) -> None:
        while self.goes_on or self.unsettled:
            try:
                messages = await receiver.receive_messages(50, 1.0)
            except EventError:
                self.done["receives failed"] += 1
                continue
            await asyncio.sleep(self.random.uniform(0, 0.2))
            failed = {message.message_id for message in messages if self.random.random() < 0.03}
            try:
                async with asyncio.timeout(TIMEOUT + HANG):
                    await receiver.nack_messages(failed)
                    await receiver.acknowledge_messages(
                        [message for message in messages if message.message_id not in failed]
                    )
            except AcknowledgeError as error:
                self.done["settlements failed"] += 1
                failed |= set(error.failed)
            settled = {message.message_id for message in messages} - failed
            self.done["acknowledged"] += len(settled)
            self.early |= settled - self.unsettled
            self.unsettled -= settled

    async def disturb(self, proxy: TcpProxy) -> None:
        """Cause one fault after the other, with pauses for recovery."""
        draw = self.faults
        while self.goes_on:
            await asyncio.sleep(draw.uniform(0.2, 3.0))
            seconds = min(draw.uniform(0.1, 4.0), max(0.0, self.ends - time.monotonic()))
            name, fault = draw.choice(
                [
                    ("cut", proxy.cut),
                    ("silent", proxy.silence),
                    ("answers lost", proxy.lose_answers),
                    ("delayed", lambda: proxy.delay(draw.uniform(0.01, 0.3))),
                    ("narrow", lambda: proxy.limit(draw.uniform(50_000, 500_000))),
                    ("dropped", lambda: nullcontext(proxy.drop())),
                ]
            )
            self.done[name] += 1
            with fault():
                await asyncio.sleep(seconds)

    async def measure(self) -> None:
        while self.goes_on:
            self.gauges.append(gauge())
            if len(self.gauges) % int(3 * TIMEOUT) == 0:
                self.earlier, self.early = self.early, set()
            await asyncio.sleep(1.0)


async def soak(address: str, proxy: TcpProxy, mode: str, seed: int) -> Soak:
    state = Soak(seed)
    name = f"soak-{seed}"
    options = {**OPTIONS, "emulator_host": proxy.address, "receive_mode": mode}
    async with client(name, **options, subscription=f"{name}-s") as first, client(name, **options) as second:
        receivers = [await each.subscribe(f"{name}-s") for each in (first, first, second)]
        working = [asyncio.create_task(state.receive(receiver)) for receiver in receivers]
        async with asyncio.TaskGroup() as group:
            group.create_task(state.disturb(proxy))
            group.create_task(state.measure())
            for each in (first, first, second):
                group.create_task(state.send(each))
        faults_ended = time.monotonic()
        done, pending = await asyncio.wait(working, timeout=DRAIN)
        for task in pending:
            task.cancel()
        for task in done:
            task.result()
        state.done["seconds until all was settled"] = round(time.monotonic() - faults_ended)
    return state


POLLER = 10
"""Descriptors that gRPC's poller has open.  Its thread and they outlive the last channel if a connection was lost."""


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if the body leaves a thread of this library, or more descriptors than gRPC's poller has."""
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    ends = time.monotonic() + 60
    while ours := [each.name for each in threading.enumerate() if each.name.startswith("events")]:
        assert time.monotonic() < ends, f"threads are left: {ours}"
        time.sleep(0.1)
    while (left := len(os.listdir("/proc/self/fd")) - descriptors) > POLLER:
        assert time.monotonic() < ends, f"{left} descriptors are left"
        time.sleep(0.1)


def check_flat(gauges: list[Gauge]) -> None:
    """Compare the last third with the one before it; the first third is the warm-up."""
    third = len(gauges) // 3
    for name in Gauge._fields:
        middle = statistics.median(getattr(each, name) for each in gauges[third : 2 * third])
        last = statistics.median(getattr(each, name) for each in gauges[2 * third :])
        print(f"{name}: {middle:g}, then {last:g}")
        assert last <= 1.1 * middle + 5, f"{name} grew from {middle:g} to {last:g}"


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process")
@pytest.mark.parametrize(("server", "mode"), [("emulator", "pull"), ("broker", "stream"), ("broker", "pull")])
def test_nothing_is_lost_behind_a_hostile_network(server: str, mode: str, request: pytest.FixtureRequest) -> None:
    """P1, P7, R9, S1: after the last fault every confirmed message comes and is acknowledged.

    The emulator is tried with pull only: in streaming mode it keeps delivering into dead streams.
    """
    address = request.getfixturevalue(server)
    logging.disable()  # pytest keeps each record, and with it an error, its traceback and the messages of a request
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    seed = int(os.environ.get("EVENTS_TEST_SEED") or time.time_ns() % 1_000_000)
    print(f"EVENTS_TEST_SEED={seed}")
    with nothing_left(), TcpProxy(address) as proxy:
        state = asyncio.run(soak(address, proxy, mode, seed))
    print(dict(state.done))
    assert not state.unsettled, f"{len(state.unsettled)} of {state.done['confirmed']} confirmed messages never came"
    assert state.done["confirmed"] > 0
    if FULL:
        check_flat(state.gauges)
