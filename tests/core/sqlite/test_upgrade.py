"""A file of an older version gets the current tables when it is opened, and keeps its messages."""

from __future__ import annotations

import asyncio
import gzip
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from events_core import EventConnectionError, EventMessage
from events_core.backends.sqlite import SQLiteClient, schema

Clients = Callable[..., SQLiteClient]

VERSION_1 = Path(__file__).with_name("version-1.db.gz")
"""A file that a program of version 1 has written.  Topic ``orders`` has subscription ``s`` with four messages: one has
failed once, one waits behind it, one is held by a dead process, and one was not looked at."""

NEXT = """
ALTER TABLE topics ADD COLUMN owner TEXT NOT NULL DEFAULT 'nobody';
CREATE TABLE upgrades (number INTEGER PRIMARY KEY);
INSERT INTO upgrades
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT max(i) FROM n
"""
"""A step to a version that does not exist.  It takes a moment, and fails if it is done twice."""


def write_version_1(file: Path) -> None:
    file.write_bytes(gzip.decompress(VERSION_1.read_bytes()))


@pytest.fixture
def old(file: Path) -> Path:
    """A file of version 1."""
    write_version_1(file)
    return file


@pytest.fixture
def add_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes this program one of the next version."""

    def add(step: str) -> None:
        monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
        monkeypatch.setattr(schema, "VERSION", len(schema.STEPS))

    return add


def query(file: Path, text: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(text).fetchall()


def tables(file: Path) -> set[tuple[object, ...]]:
    return set(query(file, "SELECT name, sql FROM sqlite_master"))


async def send(client: SQLiteClient, text: str = "x") -> None:
    async with client:
        await client.send_message(EventMessage.from_string(text))


async def received(client: SQLiteClient, count: int) -> dict[str, int | None]:
    """Return *count* messages, and at which attempt each of them came."""
    attempts: dict[str, int | None] = {}
    async with client, await client.subscribe("s") as receiver, asyncio.timeout(60):
        while len(attempts) < count:
            message = await receiver.receive_message()
            assert message is not None
            attempts[message.data.decode()] = message.delivery_attempt
            await receiver.acknowledge(message)
    return attempts


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("steps", [[], [NEXT]], ids=["current", "next"])
def test_old_file_keeps_its_messages_and_attempts(
    client: Clients, old: Path, add_step: Callable[[str], None], steps: list[str]
) -> None:
    """Whichever version the program has."""
    for step in steps:
        add_step(step)
    expected = {"failed once": 2, "behind it": 1, "held by a dead process": 2, "not looked at": 1}
    assert asyncio.run(received(client(), 4)) == expected
    assert query(old, "PRAGMA user_version") == [(schema.VERSION,)]


def test_upgraded_file_has_the_tables_of_a_new_one(
    client: Clients, old: Path, add_step: Callable[[str], None], tmp_path: Path
) -> None:
    """The same statements have made both."""
    add_step(NEXT)
    asyncio.run(send(client()))
    new = tmp_path / "new.db"
    asyncio.run(send(client(path=str(new))))
    assert tables(old) == tables(new)
    assert {name for name, _ in tables(old)} >= {"messages", "upgrades"}


def test_file_is_upgraded_although_nothing_may_be_created(
    client: Clients, old: Path, add_step: Callable[[str], None]
) -> None:
    """The option ``create`` is about missing topics and subscriptions."""
    add_step(NEXT)
    asyncio.run(send(client(create="never")))
    assert query(old, "SELECT owner FROM topics WHERE name = 'orders'") == [("nobody",)]


def test_file_goes_through_each_step_once(client: Clients, old: Path, add_step: Callable[[str], None]) -> None:
    """A file that has some of the steps gets the others."""
    add_step("CREATE TABLE second (number)")
    asyncio.run(send(client()))
    add_step("CREATE TABLE third (number)")
    add_step("ALTER TABLE third RENAME TO fourth")
    asyncio.run(send(client()))
    assert query(old, "PRAGMA user_version") == [(schema.VERSION,)]
    assert {name for name, _ in tables(old)} >= {"second", "fourth"}


def test_step_that_fails_leaves_the_file_to_older_programs(
    client: Clients, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either all steps are done or none."""
    before = tables(old)
    with monkeypatch.context() as newer:
        newer.setattr(schema, "STEPS", (*schema.STEPS, f"{NEXT};\nINSERT INTO missing VALUES (1)"))
        newer.setattr(schema, "VERSION", len(schema.STEPS))
        with pytest.raises(EventConnectionError, match="no such table: missing"):
            asyncio.run(ping(client()))
    assert query(old, "PRAGMA user_version") == [(1,)]
    assert tables(old) == before
    asyncio.run(send(client()))


async def ping(client: SQLiteClient) -> None:
    async with client:
        await client.ping(60)


def test_old_file_put_in_place_at_work_is_upgraded(
    client: Clients, file: Path, add_step: Callable[[str], None]
) -> None:
    """As when a backup is restored by copying it over the file; what is sent then is stored."""
    add_step(NEXT)

    async def run() -> None:
        async with client() as working:
            await working.send_message(EventMessage(b"before"))
            with working._driver.file._calling:  # so that it reads nothing until the file is whole
                query(file, "PRAGMA wal_checkpoint(TRUNCATE)")
                write_version_1(file)
            await working.send_message(EventMessage(b"after"))

    asyncio.run(run())
    assert query(file, "PRAGMA user_version") == [(schema.VERSION,)]
    assert query(file, "SELECT data FROM messages ORDER BY id DESC LIMIT 1") == [(b"after",)]


def test_processes_may_upgrade_a_file_at_once(old: Path) -> None:
    """One of them does, and all use it."""
    program = """
        import asyncio, sys
        from events_core import EventConfig, EventMessage
        from events_core.backends.sqlite import SQLiteClient, schema

        schema.STEPS = (*schema.STEPS, sys.argv[2])
        schema.VERSION = len(schema.STEPS)

        async def main():
            async with SQLiteClient(EventConfig("orders", options={"path": sys.argv[1]})) as client:
                await client.send_message(EventMessage(b"x"))

        print("ready", flush=True)
        sys.stdin.readline()
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(old), NEXT]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(180) for process in processes] == [0, 0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert query(old, "SELECT count(*) FROM messages WHERE data = CAST('x' AS BLOB)") == [(4,)]
    assert query(old, "SELECT count(*) FROM upgrades") == [(1,)]
