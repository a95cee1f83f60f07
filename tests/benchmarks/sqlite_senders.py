"""Concurrent senders on SQLite, compared with SQLite itself and with other queues that keep messages in it.

Run ``python tests/benchmarks/sqlite_senders.py``; the rows of others need
``pip install persist-queue litequeue kombu sqlalchemy``.  All use ``journal_mode=wal`` and ``synchronous=full``, which
is 2.  The program reads both back from the connection that wrote, and prints them.  Compare the ratios, because
absolute rates mean little on a shared machine.  For the same reason all take turns in one run.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from events_core import EventConfig, EventMessage
from events_core.backends.sqlite import SQLiteClient
from events_core.backends.sqlite.opening import open_file

SENDERS = 64
MESSAGES = 12_800
SLOW = 640
"""Number of messages for the queues that make a transaction of each message."""
ROUNDS = 5
PAYLOAD = os.urandom(750)
TEXT = PAYLOAD.hex()[:1000]

Pragmas = tuple[str, int]


def pragmas(connection: sqlite3.Connection) -> Pragmas:
    """Return the settings that are in force on *connection*."""
    (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    return journal, synchronous


def rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


# Ours, and SQLite itself


async def send(path: str) -> tuple[float, Pragmas, list[int]]:
    """Send from many tasks.  Return the rate, the settings and the sizes of the transactions."""
    async with SQLiteClient(EventConfig("orders", options={"path": path})) as client:
        await client.ping()
        store = client._driver.file.store
        publish = store.publish
        sizes: list[int] = []

        def counted(messages: Sequence[EventMessage]) -> Sequence[str]:
            sizes.append(len(messages))
            return publish(messages)

        store.publish = counted  # type: ignore[method-assign]

        async def sender() -> None:
            for _ in range(MESSAGES // SENDERS):
                await client.send_message(EventMessage(PAYLOAD))

        async def read_back() -> Pragmas:
            return pragmas(store.connection)

        began = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(SENDERS)))
        spent = time.perf_counter() - began
        return MESSAGES / spent, await client._home.run(read_back()), sizes


def insert(path: str, sizes: Iterable[int]) -> tuple[float, Pragmas]:
    """Insert the same rows into the same tables, in transactions of the same sizes.  Return rate and settings."""
    connection = open_file(path, create=True, durability="full")

    def work() -> None:
        for size in sizes:
            connection.execute("BEGIN IMMEDIATE")
            rows = [(time.time(), PAYLOAD)] * size
            connection.executemany("INSERT INTO messages VALUES (NULL, 1, ?, NULL, NULL, ?)", rows)
            connection.execute("COMMIT")

    found = rate(MESSAGES, work), pragmas(connection)
    connection.close()
    return found


# Others, from one thread: each message is a transaction, and SQLite has one writer


def persist_queue(path: str) -> tuple[float, Pragmas]:
    from persistqueue import SQLiteQueue

    queue: Any = SQLiteQueue(path, auto_commit=True)
    found = rate(SLOW, lambda: [queue.put(PAYLOAD) for _ in range(SLOW)]), pragmas(queue._putter)
    queue.close()
    return found


def lite_queue(path: str) -> tuple[float, Pragmas]:
    from litequeue import LiteQueue

    queue: Any = LiteQueue(path)
    queue.conn.execute("PRAGMA synchronous = full")
    found = rate(SLOW, lambda: [queue.put(TEXT) for _ in range(SLOW)]), pragmas(queue.conn)
    queue.conn.close()
    return found


def kombu_sqlalchemy(path: str) -> tuple[float, Pragmas]:
    from kombu import Connection

    with sqlite3.connect(path) as prepared:
        prepared.execute("PRAGMA journal_mode = wal")  # the file keeps this mode
    prepared.close()
    binary = {"serializer": None, "content_type": "application/data", "content_encoding": "binary"}
    with Connection(f"sqla+sqlite:///{path}") as connection, connection.SimpleQueue("orders") as queue:
        queue.put(PAYLOAD, **binary)
        spent = rate(SLOW, lambda: [queue.put(PAYLOAD, **binary) for _ in range(SLOW)])
        session = queue.channel.session
        found = pragmas(session.connection().connection.dbapi_connection)
        session.rollback()
    return spent, found


OTHERS: dict[str, tuple[str, Callable[[str], tuple[float, Pragmas]]]] = {
    "persist-queue": ("persistqueue", persist_queue),
    "litequeue": ("litequeue", lite_queue),
    "kombu sqlalchemy": ("kombu", kombu_sqlalchemy),
}


def new_path(folder: str, name: str) -> str:
    return str(Path(tempfile.mkdtemp(dir=folder)) / name.replace(" ", "-"))


def measure(folder: str, others: Iterable[str]) -> dict[str, tuple[float, Pragmas]]:
    """Measure one round, in which each queue has its turn."""
    ours, read_back, sizes = asyncio.run(send(new_path(folder, "ours")))
    figures = {f"events-core, {SENDERS} senders": (ours, read_back)}
    figures["raw inserts"] = insert(new_path(folder, "raw"), sizes)
    print(f"  {len(sizes)} transactions of {statistics.mean(sizes):.1f} messages, at most {max(sizes)}")
    for name in others:
        figures[name] = OTHERS[name][1](new_path(folder, name))
    return figures


def main() -> None:
    installed = [name for name, (module, _) in OTHERS.items() if importlib.util.find_spec(module)]
    for name in OTHERS.keys() - set(installed):
        print(f"{name} is not installed: no row for it")
    print(f"SQLite {sqlite3.sqlite_version}")
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measure(folder, installed) for _ in range(ROUNDS)]
    ours = next(iter(rounds[0]))
    print(f"\n{'messages a second':26} {'median':>9} {'min':>9} {'max':>9}   ours ÷ it   journal_mode, synchronous")
    for name in rounds[0]:
        rates = [each[name][0] for each in rounds]
        ratio = statistics.median(each[ours][0] / each[name][0] for each in rounds)
        journal, synchronous = rounds[-1][name][1]
        print(
            f"{name:26} {statistics.median(rates):9,.0f} {min(rates):9,.0f} {max(rates):9,.0f}   {ratio:9.2f}   "
            f"{journal}, {synchronous}"
        )


if __name__ == "__main__":
    main()
