"""The size of a file depends on the messages in it, not on those that have passed through it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from events_core import EventMessage
from events_core.backends.sqlite import SQLiteClient, sweep
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.subscription import Subscription
from events_core.engine import Outcome, Settlement

BATCH = 100
SIZE = 1000


def turn(store: Store, subscription: Subscription) -> None:
    """Send a batch, and acknowledge as many messages."""
    store.publish([EventMessage(os.urandom(SIZE), ordering_key=f"key-{number % 10}") for number in range(BATCH)])
    left = BATCH
    while left:
        taken = subscription.take(left)
        subscription.settle([Settlement(each, Outcome.ACK) for each in taken])
        left -= len(taken)


def size(file: Path) -> int:
    """Return the bytes of the file and its log."""
    return sum(path.stat().st_size for path in file.parent.iterdir() if not path.name.endswith("-shm"))


def test_size_is_bounded_under_steady_load(store: Callable[..., Store], file: Path) -> None:
    """While 20 MB pass through a backlog of 1 MB, neither the file nor its log grows after the first few."""
    opened = store(durability="normal")
    subscription = Subscription(opened, "s")
    for _ in range(10):
        opened.publish([EventMessage(os.urandom(SIZE)) for _ in range(BATCH)])
    sizes = []
    for _ in range(4):
        for _ in range(50):
            turn(opened, subscription)
        sizes.append(size(file))
    assert max(sizes[1:]) <= sizes[0] * 1.1
    assert sizes[-1] < 10 * 2**20


def test_file_shrinks_when_a_backlog_is_gone(store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps some room for the next messages, and does not shrink while the backlog is there."""
    monkeypatch.setattr(sweep, "SPARE", 100)
    opened = store(durability="normal")
    subscription = Subscription(opened, "s")
    opened.publish([EventMessage(os.urandom(100_000)) for _ in range(100)])

    def pages() -> int:
        while opened.sweep():
            pass
        found: int = opened.connection.execute("PRAGMA page_count").fetchone()[0]
        return found

    full = pages()
    assert full > 2000
    subscription.settle([Settlement(each, Outcome.ACK) for each in subscription.take(100)])
    assert pages() < 200
    assert opened.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


BUSY_PROGRAM = """
import asyncio, sys
from events_core import EventConfig, EventMessage
from events_core.backends.sqlite import SQLiteClient, store

store.LONG_LOG = 2**20

async def main(path):
    options = {"path": path, "durability": "normal", "subscription": "s"}
    async with SQLiteClient(EventConfig("orders", options=options)) as client, await client.subscribe() as receiver:
        while True:
            await client.send_messages([EventMessage(b"x" * 4000)] * 100)
            await receiver.acknowledge_messages(await receiver.receive_messages(100))

asyncio.run(main(sys.argv[1]))
"""


def test_log_is_bounded_while_several_processes_are_busy(file: Path) -> None:
    """The log is emptied again and again.  SQLite itself would let it grow, because some process always uses it."""
    log = file.with_name(f"{file.name}-wal")
    busy = [subprocess.Popen([sys.executable, "-c", BUSY_PROGRAM, str(file)]) for _ in range(3)]
    times_emptied = last = 0
    ends = time.monotonic() + 180
    try:
        while times_emptied < 3:
            assert time.monotonic() < ends
            assert all(process.poll() is None for process in busy)
            time.sleep(0.01)
            with suppress(FileNotFoundError):
                length = log.stat().st_size
                times_emptied += length < last / 2
                last = length
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_size_is_bounded_while_the_topic_retains_by_age(store: Callable[..., Store], file: Path) -> None:
    """Messages past the retention are deleted, and their space is used again."""
    opened = store(durability="normal", retention="3600")
    subscription = Subscription(opened, "s")
    sizes = []
    for _ in range(8):
        for _ in range(20):
            turn(opened, subscription)
        opened.connection.execute("UPDATE messages SET publish_time = publish_time - 2000")
        while opened.sweep():
            pass
        sizes.append(size(file))
    assert max(sizes[4:]) <= max(sizes[:4]) * 1.1
    assert opened.connection.execute("SELECT count(*) FROM messages").fetchone()[0] == 20 * BATCH


def test_clients_delete_what_is_older_than_the_retention(client: Callable[..., SQLiteClient], file: Path) -> None:
    """They do so by themselves, and not earlier."""

    async def left(of: SQLiteClient) -> int:
        count: int = of._driver.file.store.connection.execute("SELECT count(*) FROM messages").fetchone()[0]
        return count

    async def run() -> None:
        async with client(retention="1.5", session_timeout="1") as keeping:
            async with await keeping.subscribe() as receiver:
                await keeping.send_message(EventMessage(b"x"))
                message = await receiver.receive_message(60)
                assert message is not None
                await receiver.acknowledge(message)
            async with asyncio.timeout(60):
                while await keeping._home.run(left(keeping)):
                    await asyncio.sleep(0.05)
            assert time.time() - message.publish_time.timestamp() >= 1.5

    asyncio.run(run())


def test_sends_go_on_while_a_large_subscription_is_deleted(
    client: Callable[..., SQLiteClient], store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They happen between the steps of the deletion."""
    monkeypatch.setattr(sweep, "SWEEP", 50)
    opened = store(subscription="s", durability="normal")
    for _ in range(20):
        opened.publish([EventMessage(b"x")] * 1000)
    opened.connection.execute(
        "INSERT INTO deliveries (subscription_id, message_id, state) "
        "SELECT s.id, m.id, 0 FROM subscriptions AS s JOIN messages AS m"
    )

    def left() -> int:
        count: int = opened.connection.execute("SELECT count(*) FROM deliveries").fetchone()[0]
        return count

    async def run() -> set[int]:
        async with client(session_timeout="1") as working:
            await working.delete_subscription("s")
            seen = {left()}
            async with asyncio.timeout(60):
                while left() and len(seen) <= 3:
                    await working.send_message(EventMessage(b"y"))
                    seen.add(left())
                monkeypatch.setattr(sweep, "SWEEP", 20_000)  # the rest in one step
                while left():
                    await asyncio.sleep(0.05)
            return seen

    assert len(asyncio.run(run())) > 3
