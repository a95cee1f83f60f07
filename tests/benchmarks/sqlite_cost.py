"""The cost of the SQLite backend: by backlog, by number of keys, and while it waits.

Run ``python tests/benchmarks/sqlite_cost.py [backlog] [keys] [waiting]``; without arguments it measures all three.
Compare the ratios of one run, because absolute times mean little on a shared machine.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from events_core import EventConfig, EventMessage
from events_core.backends.sqlite import SQLiteClient, SQLiteOptions
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.subscription import Subscription
from events_core.engine import Outcome, Settlement
from events_core.options import read_options

PAYLOAD = os.urandom(1000)
BATCH = 100
MEASURED = 20_000


@contextmanager
def new_file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "events.db")


def open_store(path: str) -> Store:
    return Store("", "orders", read_options(SQLiteOptions, {"path": path, "durability": "normal"}))


def fill(store: Store, messages: int, keys: int) -> None:
    for first in range(0, messages, 1000):
        store.publish(
            [
                EventMessage(PAYLOAD, ordering_key=f"key-{number % keys}" if keys else None)
                for number in range(first, min(first + 1000, messages))
            ]
        )


def steady(backlog: int, keys: int) -> float:
    """Return the microseconds of CPU per message sent, received and acknowledged, behind *backlog* messages."""
    with new_file() as path:
        store = open_store(path)
        subscription = Subscription(store, "s")
        fill(store, backlog, keys)
        turns = MEASURED // BATCH
        began = time.process_time()
        for _ in range(turns):
            fill(store, BATCH, keys)
            left = BATCH
            while left:
                taken = subscription.take(left)
                subscription.settle([Settlement(each, Outcome.ACK) for each in taken])
                left -= len(taken)
        spent = time.process_time() - began
        store.close()
        return spent / (turns * BATCH) * 1e6


def compare(title: str, cases: dict[str, Callable[[], float]]) -> None:
    """Measure each case in turn, three times, and print its ratio to the first one."""
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(3):
        for name, case in cases.items():
            figures[name].append(case())
    floor = min(next(iter(figures.values())))
    print(f"\n{title}")
    for name, values in figures.items():
        print(f"  {name:32} {min(values):8.1f} … {max(values):8.1f}   x {min(values) / floor:.2f}")


def backlog() -> None:
    compare(
        "µs of CPU per message sent, received and acknowledged, by backlog",
        {f"{size:,}": lambda size=size: steady(size, 0) for size in (1_000, 100_000, 1_000_000)},
    )


def keys() -> None:
    compare(
        "µs of CPU per message, by number of ordering keys, backlog 100,000",
        {f"{number:,}": lambda number=number: steady(100_000, number) for number in (1, 1_000, 100_000)},
    )


RECEIVER = """
import asyncio, sys, time
from events_core import EventConfig
from events_core.backends.sqlite import SQLiteClient
async def main(path, subscription, idle):
    async with SQLiteClient(EventConfig("orders", options={"path": path})) as client:
        receiver = await client.subscribe(subscription)
        print("ready", flush=True)
        before = time.process_time()
        await receiver.receive_message(timeout=float(idle))
        print((time.process_time() - before) / float(idle) * 100, flush=True)
        while message := await receiver.receive_message(timeout=5):
            print((time.time() - float(message.data)) * 1000, flush=True)
            await receiver.acknowledge(message)
asyncio.run(main(*sys.argv[1:]))
"""


async def send_times(path: str, sends: int) -> None:
    """Send the time, by turns to a receiver that has been idle for a second and to one that has not."""
    async with SQLiteClient(EventConfig("orders", options={"path": path})) as client:
        for number in range(sends):
            await client.send_message(EventMessage(str(time.time()).encode()))
            await asyncio.sleep(random.uniform(0.1, 0.2) if number % 2 else random.uniform(1.1, 1.2))


def waiting(idle: float = 30.0, sends: int = 60) -> None:
    """Measure a receiver that waits alone, and one of three, which notice each other's upkeep."""
    for others in (0, 2):
        with new_file() as path, ExitStack() as stack:
            receiver, *bystanders = [stack.enter_context(waiter(path, f"s{i}", idle)) for i in range(others + 1)]
            shares = [float(next(each)) for each in (receiver, *bystanders)]
            asyncio.run(send_times(path, sends))
            delays = [float(next(receiver)) for _ in range(sends)]
        idling = ", ".join(f"{share:.2f}" for share in shares)
        print(f"\n{others + 1} waiting, each in its process: {idling} % of a core when idle for {idle:g} s")
        for name, part in (("idle", delays[1::2]), ("busy", delays[::2])):
            median, most = statistics.median(part), max(part)
            print(f"  ms from a send until the message is handed out, {name}: median {median:.1f}, most {most:.1f}")


@contextmanager
def waiter(path: str, subscription: str, idle: float) -> Iterator[Iterator[str]]:
    """Run a receiver in a separate process, and yield the lines that it prints."""
    command = [sys.executable, "-c", RECEIVER, path, subscription, str(idle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.stdout
        process.kill()


def main(chosen: list[str]) -> None:
    parts: dict[str, Callable[[], object]] = {
        "backlog": backlog,
        "keys": keys,
        "waiting": waiting,
    }
    for name in chosen or parts:
        parts[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
