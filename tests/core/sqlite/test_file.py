"""The creation of a file, and each reason to refuse one."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from events_core import ErrorCode, EventConnectionError, EventError, EventMessage, PublishError
from events_core.backends.sqlite import SQLiteClient, connection
from events_core.backends.sqlite.schema import APPLICATION_ID, VERSION
from events_core.backends.sqlite.store import Store

from ..patience import failure_naming

Clients = Callable[..., SQLiteClient]
Stores = Callable[..., Store]


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def refusal(client: SQLiteClient) -> EventError:
    """Return the error of a *client* that cannot be used."""

    async def ping() -> EventError:
        async with client:
            with pytest.raises(EventError) as caught:
                await client.ping(60)
            assert not client.is_connected
        return caught.value

    return asyncio.run(ping())


def send(client: SQLiteClient, text: str = "x") -> str:
    async def run() -> str:
        async with client:
            return await client.send_message(EventMessage.from_string(text))

    return asyncio.run(run())


def test_file_is_marked_and_keeps_a_log(store: Stores) -> None:
    """A file carries the application's id and the version of its schema."""
    connection = store().connection
    assert pragma(connection, "application_id") == APPLICATION_ID
    assert pragma(connection, "user_version") == VERSION
    assert pragma(connection, "journal_mode") == "wal"


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
def test_durability_is_what_sqlite_reads_back(store: Stores, durability: str, synchronous: int) -> None:
    """Inside and outside of a transaction, SQLite reports the level that the option asks for."""
    opened = store(durability=durability)
    with opened.transaction():
        assert pragma(opened.connection, "synchronous") == synchronous
    with opened.transaction(durable=False):
        assert pragma(opened.connection, "synchronous") == 1
    assert pragma(opened.connection, "synchronous") == synchronous


def test_nothing_is_left_beside_a_closed_file(client: Clients, file: Path) -> None:
    """The last client to close folds the log into the file."""
    send(client())
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("create", ["never", "subscription"])
def test_file_is_created_only_where_allowed(client: Clients, file: Path, create: str) -> None:
    """Otherwise a missing file is ``NOT_FOUND``, and is not created."""
    error = refusal(client(create=create))
    assert error.code is ErrorCode.NOT_FOUND
    assert "create=all" in str(error)
    assert not file.exists()


def test_empty_file_is_taken_into_use_only_where_allowed(client: Clients, file: Path) -> None:
    """Otherwise an empty file is ``NOT_FOUND``, because it has no topic."""
    file.touch()
    assert refusal(client(create="never")).code is ErrorCode.NOT_FOUND
    assert file.stat().st_size == 0
    send(client())


def test_missing_topic_is_not_found(client: Clients) -> None:
    """A client that may not create the topic says so."""
    send(client())
    error = refusal(client("payments", create="subscription"))
    assert error.code is ErrorCode.NOT_FOUND
    assert "'payments'" in str(error)


def test_projects_have_topics_of_their_own(client: Clients, file: Path) -> None:
    """One topic name in two projects names two topics."""
    first = Store("a", "orders", client()._driver.options)
    second = Store("b", "orders", client()._driver.options)
    assert first.topic_id != second.topic_id
    first.close()
    second.close()


def test_missing_directory_is_named(client: Clients, file: Path) -> None:
    """The error names the directory, which is not created."""
    missing = file.parent / "none"
    error = refusal(client(path=str(missing / "events.db")))
    assert error.code is ErrorCode.NOT_FOUND
    assert repr(str(missing)) in str(error)


def test_directory_is_no_file(client: Clients, file: Path) -> None:
    """For example if a URL has no topic."""
    error = refusal(client(path=str(file.parent)))
    assert error.code is ErrorCode.INVALID
    assert "is a directory" in str(error)


def test_pipe_is_no_file(client: Clients, file: Path) -> None:
    """A pipe is ``INVALID``."""
    os.mkfifo(file)
    error = refusal(client())
    assert error.code is ErrorCode.INVALID
    assert "is not a regular file" in str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such devices")
@pytest.mark.parametrize("create", ["all", "never"])
@pytest.mark.parametrize("device", ["/dev/full", "/dev/null", "/dev/zero"])
def test_device_is_no_file(client: Clients, device: str, create: str) -> None:
    """Not even a device that reads as an empty file, or reports a full disk."""
    if not os.path.exists(device):
        pytest.skip(f"this system has no {device}")
    error = refusal(client(path=device, create=create))
    assert (error.code, error.retryable) == (ErrorCode.INVALID, False)
    assert "is not a regular file" in str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows asks for a privilege to make a link")
@pytest.mark.parametrize("create", ["all", "never"])
def test_link_that_leads_to_itself_is_refused(client: Clients, file: Path, create: str) -> None:
    """It is refused at once, also if it stands for a directory in the path."""
    file.symlink_to(file.with_name("other"))
    file.with_name("other").symlink_to(file)
    for path in (file, file / "events.db"):
        error = refusal(client(path=str(path), create=create))
        assert (error.code, error.retryable) == (ErrorCode.INVALID, False)
        assert "levels of symbolic links" in str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows asks for a privilege to make a link")
def test_link_to_a_missing_directory_is_refused(client: Clients, file: Path) -> None:
    """It is refused at once, and the error names the directory."""
    target = file.parent / "none" / "events.db"
    file.symlink_to(target)
    error = refusal(client())
    assert (error.code, error.retryable) == (ErrorCode.NOT_FOUND, False)
    assert repr(str(target.parent)) in str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows asks for a privilege to make a link")
def test_link_to_a_missing_file_creates_it_where_allowed(client: Clients, file: Path) -> None:
    """The link's target is created as the file would be."""
    target = file.with_name("target.db")
    file.symlink_to(target)
    assert refusal(client(create="never")).code is ErrorCode.NOT_FOUND
    assert not target.exists()
    send(client())
    assert file.is_symlink()
    assert target.is_file()


posix = pytest.mark.skipif(os.name != "posix", reason="this system has no such permissions")


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


@posix
def test_new_file_is_this_users_alone(client: Clients, file: Path) -> None:
    """Only this user may read the file, and the files that SQLite keeps next to it."""

    async def run() -> dict[str, int]:
        async with client() as working:
            await working.ping(60)
            return modes(file.parent)

    names = [file.name, f"{file.name}-wal", f"{file.name}-shm"]
    assert asyncio.run(run()) == dict.fromkeys(names, 0o600)
    assert modes(file.parent) == {file.name: 0o600}


@posix
def test_new_file_is_this_users_alone_where_there_are_no_links(
    client: Clients, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On file systems without hard links as well."""

    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    send(client())
    assert modes(file.parent) == {file.name: 0o600}


@posix
@pytest.mark.parametrize("content", ["empty", "used"])
def test_existing_file_keeps_its_mode(client: Clients, file: Path, content: str) -> None:
    """A group that may use the file may use the files next to it."""
    if content == "empty":
        file.touch()
    else:
        send(client())
    file.chmod(0o660)

    async def run() -> dict[str, int]:
        async with client() as working:
            await working.ping(60)
            return modes(file.parent)

    assert set(asyncio.run(run()).values()) == {0o660}


@posix
def test_link_leads_to_a_file_of_this_user_alone(client: Clients, file: Path) -> None:
    """The target of a link gets the mode of a new file."""
    target = file.with_name("target.db")
    file.symlink_to(target)
    send(client())
    assert target.stat().st_mode & 0o777 == 0o600


def test_name_that_is_too_long_is_refused(client: Clients, file: Path) -> None:
    """The error is ``INVALID``, so nothing is tried again."""
    error = refusal(client(path=str(file.with_name("x" * 300))))
    assert error.code is ErrorCode.INVALID
    assert "File name too long" in str(error)


def test_other_format_is_refused_and_left_alone(client: Clients, file: Path) -> None:
    """A file that is not a database is not changed."""
    content = b"To whom it may concern. " * 100
    file.write_bytes(content)
    error = refusal(client())
    assert error.code is ErrorCode.INVALID
    assert not error.retryable
    assert isinstance(error.__cause__, sqlite3.DatabaseError)
    assert file.read_bytes() == content


def test_other_application_is_refused_and_left_alone(client: Clients, file: Path) -> None:
    """The database of another application gets neither tables nor a log."""
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE orders (id)")
    connection.close()
    content = file.read_bytes()
    error = refusal(client())
    assert error.code is ErrorCode.INVALID
    assert "another application" in str(error)
    assert file.read_bytes() == content


def test_newer_version_is_refused(client: Clients, file: Path) -> None:
    """The error says to upgrade this library."""
    send(client())
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    error = refusal(client())
    assert error.code is ErrorCode.INVALID
    assert "upgrade events-core" in str(error)


def test_damaged_file_is_reported(client: Clients, file: Path) -> None:
    """The error is ``INTERNAL``, and not retryable."""
    send(client())
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    file.write_bytes(content)
    error = refusal(client())
    assert error.code is ErrorCode.INTERNAL
    assert not error.retryable
    assert "damaged" in str(error)


def test_work_resumes_when_the_file_can_be_opened(client: Clients, file: Path) -> None:
    """A client that could not connect tries again in the next call."""
    folder = file.parent / "late"

    async def run() -> None:
        async with client(path=str(folder / "events.db")) as late:
            with pytest.raises(EventConnectionError):
                await late.ping(60)
            folder.mkdir()
            await late.ping(60)

    asyncio.run(run())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to become a user with fewer rights")
@pytest.mark.parametrize(("mode", "exists"), [(0o555, True), (0o777, True), (0o555, False)])
def test_lack_of_permission_is_reported(client: Clients, file: Path, mode: int, exists: bool) -> None:
    """Either the directory or the file cannot be written."""
    if exists:
        send(client())
    program = f"""
        import asyncio, os, sys
        from events_core import EventConfig, EventError
        from events_core.backends.sqlite import SQLiteClient
        async def main():
            try:
                await SQLiteClient(EventConfig("orders", options={{"path": {str(file)!r}}})).ping(60)
            except EventError as error:
                print(error.code, error.retryable, "let this user" in str(error))
        os.setuid(65534)
        asyncio.run(main())
    """
    for folder in (file.parent, *list(file.parents)[:3]):
        folder.chmod(0o755)
    file.parent.chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.stdout.split() == ["PERMISSION_DENIED", "False", "True"], done.stderr


def test_full_disk_fails_a_send_and_stores_nothing_of_it(store: Stores) -> None:
    """Sending goes on when there is room."""
    opened = store()
    opened.publish([EventMessage(b"before")])
    opened.connection.execute(f"PRAGMA max_page_count = {pragma(opened.connection, 'page_count')}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        opened.publish([EventMessage(b"x" * 5000) for _ in range(10)])
    opened.connection.execute("PRAGMA max_page_count = 1000000")
    opened.publish([EventMessage(b"after")])
    assert [data for (data,) in opened.connection.execute("SELECT data FROM messages")] == [b"before", b"after"]


async def until_disconnected(client: SQLiteClient) -> None:
    async with asyncio.timeout(60):
        while client.is_connected:
            await asyncio.sleep(0.01)


def test_full_disk_is_waited_for(client: Clients, caplog: pytest.LogCaptureFixture) -> None:
    """A send that meets a full disk completes when there is room, and a warning says what it waits for."""

    async def run() -> None:
        async with client() as filling:
            await filling.ping(60)

            async def limit(pages: int) -> None:
                filling._driver.file.store.connection.execute(f"PRAGMA max_page_count = {pages}")

            await filling._home.run(limit(1))
            sending = asyncio.create_task(filling.send_message(EventMessage(b"x" * 100_000)))
            await until_disconnected(filling)
            await filling._home.run(limit(1_000_000))
            await asyncio.wait_for(sending, 60)

    asyncio.run(run())
    assert "the disk is full; make room" in caplog.text


def test_lock_of_another_program_delays_a_send(client: Clients, file: Path) -> None:
    """The send completes when the lock is gone, and the client answers other calls before that."""

    async def run() -> None:
        async with client() as waiting:
            await waiting.ping(60)
            other = sqlite3.connect(file, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            sending = asyncio.create_task(waiting.send_message(EventMessage(b"x")))
            await waiting.ping(60)
            assert not sending.done(), "the ping waited for the send"
            other.execute("ROLLBACK")
            other.close()
            assert await asyncio.wait_for(sending, 60)

    asyncio.run(run())


def test_lock_held_too_long_is_reported(client: Clients, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a send whose time is up says that another program holds the lock."""
    monkeypatch.setattr(connection, "LOCK_WAIT", 0.05)

    async def run() -> None:
        async with client(send_timeout="3") as waiting:
            await waiting.ping(60)
            other = sqlite3.connect(file, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            error = await failure_naming(
                "locked by another program", PublishError, lambda: waiting.send_message(EventMessage(b"x"))
            )
            assert error.retryable
            other.close()

    asyncio.run(run())


def test_processes_may_create_the_file_at_once(file: Path) -> None:
    """One of them creates it, and all use it."""
    program = f"""
        import asyncio
        from events_core import EventConfig, EventMessage
        from events_core.backends.sqlite import SQLiteClient
        async def main():
            async with SQLiteClient(EventConfig("orders", options={{"path": {str(file)!r}}})) as client:
                print(await client.send_message(EventMessage(b"x")))
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids = {process.communicate(timeout=180)[0].strip() for process in processes}
    assert len(ids - {""}) == 4
