"""If another program removes or replaces the log of a file in use, no process loses confirmed messages."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from events_core import EventMessage
from events_core.backends.sqlite import SQLiteClient

Clients = Callable[..., SQLiteClient]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed")

SENDER = """
import asyncio, sys
from events_core import EventConfig, EventMessage
from events_core.backends.sqlite import SQLiteClient

async def main(path, prefix):
    async with SQLiteClient(EventConfig("orders", options={"path": path})) as client:
        for number in range(50):
            await client.send_message(EventMessage(f"{prefix}{number}".encode()))

asyncio.run(main(*sys.argv[1:]))
"""


WORKER = """
import asyncio, sys
from events_core import EventConfig, EventMessage
from events_core.backends.sqlite import SQLiteClient

async def receive(receiver):
    async for message in receiver:
        try:
            await receiver.acknowledge(message)
        except Exception as error:
            if "damaged" in str(error):
                raise

async def main(path):
    config = EventConfig("orders", options={"path": path, "subscription": "s"})
    async with SQLiteClient(config) as client, await client.subscribe() as receiver:
        receiving = asyncio.create_task(receive(receiver))
        for number in range(400):
            if number % 100 == 50:
                print(number, flush=True)
            await client.send_message(EventMessage(b"x" * 100))
        assert not receiving.done() or not receiving.exception()
        receiving.cancel()
        await asyncio.wait([receiving])

asyncio.run(main(sys.argv[1]))
"""


async def another_process_sends(file: Path, prefix: str) -> None:
    """Let another process send 50 messages and end, while this process goes on."""
    command = sys.executable, "-c", SENDER, str(file), prefix
    sender = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    _, complaints = await sender.communicate()  # each of its sends has a bound, and all of them may take long
    assert sender.returncode == 0, complaints.decode()


async def send(client: SQLiteClient, prefix: str, count: int = 50) -> None:
    for number in range(count):
        await asyncio.wait_for(client.send_message(EventMessage(f"{prefix}{number}".encode())), 60)


def sent(*prefixes: str, count: int = 50) -> list[str]:
    return sorted(f"{prefix}{number}" for prefix in prefixes for number in range(count))


def stored(file: Path) -> list[str]:
    """Return all messages of the file, after a check that it is whole."""
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return sorted(data.decode() for (data,) in connection.execute("SELECT data FROM messages"))


def remove(file: Path, *endings: str) -> None:
    for ending in endings:
        file.with_name(file.name + ending).unlink()


REMOVED = pytest.mark.parametrize("endings", [["-shm"], ["-wal"], ["-wal", "-shm"]], ids=" ".join)


@REMOVED
def test_removed_log_costs_nothing_that_was_confirmed(client: Clients, file: Path, endings: list[str]) -> None:
    """Not even messages that were only there, if the processes that have it open notice first."""

    async def run() -> None:
        async with client(subscription="s") as working, client() as idle:
            await idle.ping(60)
            await send(working, "before")
            remove(file, *endings)
            await send(working, "after")
            await another_process_sends(file, "other")
            await send(working, "last")
            await send(idle, "idle")

    asyncio.run(run())
    assert stored(file) == sent("before", "after", "other", "last", "idle")


def test_process_that_comes_after_the_index_was_removed_loses_nothing(client: Clients, file: Path) -> None:
    """It makes a new index.  The others would overwrite its messages in the log if they did not look first."""

    async def run() -> None:
        async with client(subscription="s") as working:
            await send(working, "before")
            remove(file, "-shm")
            await another_process_sends(file, "other")
            await send(working, "after")

    asyncio.run(run())
    assert stored(file) == sent("before", "other", "after")


def test_native_connection_comes_after_the_index_was_removed(client: Clients, file: Path) -> None:
    """N1: it uses the new index, like all others, and overwrites nothing in the log."""

    async def insert(connection: sqlite3.Connection) -> None:
        for number in range(50):
            connection.execute(
                "INSERT INTO messages (topic_id, publish_time, data) VALUES (1, 0, CAST(? AS BLOB))",
                (f"native{number}",),
            )

    async def run() -> None:
        async with client(subscription="s") as working:
            await send(working, "before")
            remove(file, "-shm")
            await another_process_sends(file, "other")
            await working.run_native(insert)

    asyncio.run(run())
    assert stored(file) == sent("before", "other", "native")


@REMOVED
def test_log_removed_during_native_work_costs_nothing(client: Clients, file: Path, endings: list[str]) -> None:
    """N1: the client does not open the file again before the native connection, which has the old index, is closed."""

    async def run() -> None:
        async with client(subscription="s") as working:
            reads, ends = threading.Event(), threading.Event()

            async def read(connection: sqlite3.Connection) -> None:
                connection.execute("SELECT count(*) FROM messages").fetchone()
                reads.set()
                while not ends.is_set():
                    await asyncio.sleep(0.001)

            await send(working, "before")
            reading = asyncio.create_task(working.run_native(read, timeout=300))
            await asyncio.to_thread(reads.wait, 60)
            remove(file, *endings)
            sending = asyncio.create_task(send(working, "after"))
            await another_process_sends(file, "other")
            ends.set()
            await asyncio.gather(reading, sending)
            await another_process_sends(file, "last")

    asyncio.run(run())
    assert stored(file) == sent("before", "after", "other", "last")


def test_removed_log_damages_no_file_that_is_busy(client: Clients, file: Path) -> None:
    """A process that uses the old index with the new log would read the wrong parts of it."""

    async def run() -> None:
        async with client(subscription="s") as founder:
            await founder.ping(60)
        command = sys.executable, "-c", WORKER, str(file)
        workers = [
            await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(3)
        ]
        for _ in range(3):  # once for each report of the workers that they are busy
            for worker in workers:
                assert worker.stdout is not None
                await worker.stdout.readline()
            file.with_name(f"{file.name}-wal").unlink(missing_ok=True)  # if it is there already
        for worker in workers:
            _, complaints = await worker.communicate()
            assert worker.returncode == 0, complaints.decode()

    asyncio.run(run())
    stored(file)


def test_process_that_does_nothing_more_takes_nothing_from_others(client: Clients, file: Path) -> None:
    """When it closes, it neither writes its old view of the log into the file nor removes the log."""

    async def run() -> None:
        async with client(subscription="s") as working:
            await send(working, "before")
            remove(file, "-shm")
            await another_process_sends(file, "other")

    asyncio.run(run())
    assert stored(file) == sent("before", "other")


def test_clients_of_one_process_let_go_of_the_removed_index_together(client: Clients, file: Path) -> None:
    """SQLite keeps one index for all connections of a process, so a new one would get the old index."""

    async def run() -> None:
        async with (
            client(subscription="s", session_timeout="1") as first,
            client(session_timeout="1") as second,
            client(session_timeout="1") as third,
        ):
            await asyncio.gather(first.ping(60), third.ping(60))
            await send(second, "before")
            await send(first, "also-before")
            remove(file, "-shm")
            await another_process_sends(file, "other")
            await asyncio.gather(send(first, "first"), send(second, "second"))
            await another_process_sends(file, "another")
            await send(third, "third")

    asyncio.run(run())
    assert stored(file) == sent("before", "also-before", "other", "first", "second", "another", "third")


def test_receiver_keeps_what_it_holds_when_the_index_was_removed(client: Clients, file: Path) -> None:
    """The file is the same, and messages of other processes arrive too."""

    async def run() -> list[str]:
        async with client() as working, await working.subscribe("s") as receiver:
            await send(working, "before", 1)
            held = await receiver.receive_message(60)
            assert held is not None
            remove(file, "-shm")
            await another_process_sends(file, "other")
            await receiver.acknowledge(held)
            received: list[str] = []
            while len(received) < 50:
                messages = await receiver.receive_messages(50, 60)
                assert messages
                await receiver.acknowledge_messages(messages)
                received += [each.data_as_string() for each in messages]
            return sorted(received)

    assert asyncio.run(run()) == sent("other")
    assert stored(file) == []
