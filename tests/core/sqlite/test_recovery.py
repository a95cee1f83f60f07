"""If a file becomes unusable, no confirmed message is lost, and work goes on when the file is usable again."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from events_core import (
    ErrorCode,
    EventConnectionError,
    EventError,
    EventMessage,
    EventReceiver,
    PublishError,
    ReceiveError,
)
from events_core.backends.sqlite import SQLiteClient, connection
from events_core.backends.sqlite.schema import READY, VERSION
from events_core.engine import BrokerError, Settlement

Clients = Callable[..., SQLiteClient]

PAGE = 4096
"""Bytes of the file's first page, by which it is recognised."""


def break_log(file: Path) -> None:
    """Let this process fail to read and write the log, as on a broken disk."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}") == f"{file}-wal":
                os.dup2(nothing, int(descriptor))
    os.close(nothing)


def set_version(file: Path, version: int) -> None:
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def from_newer_version(file: Path) -> None:
    set_version(file, VERSION + 1)


def from_another_application(file: Path) -> None:
    file.unlink()
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE orders (id)")
    connection.close()


def no_database(file: Path) -> None:
    file.write_bytes(b"To whom it may concern. " * 1000)


def damaged(file: Path) -> None:
    with file.open("r+b") as opened:
        rest = len(opened.read()) - PAGE
        opened.seek(PAGE)
        opened.write(b"\xff" * rest)


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def content(file: Path) -> bytes:
    return file.read_bytes()


def restore(file: Path, backup: bytes) -> None:
    file.write_bytes(backup)


def fold_log(file: Path) -> None:
    """Move everything from the log into the file itself."""
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


@contextmanager
def undisturbed(client: SQLiteClient) -> Iterator[None]:
    """Keep *client*, with its upkeep, from using SQLite.

    A client that reads the file after the log was folded keeps pages of it in memory.  It would not notice until later,
    or by another error, that the file is then overwritten.
    """
    with client._driver.file._calling:
        yield


def spoil_under(client: SQLiteClient, file: Path, spoil: Callable[[Path], object]) -> bytes:
    """Spoil the file that *client* uses, with all its messages in it; return what it was."""
    with undisturbed(client):
        fold_log(file)
        good = content(file)
        spoil(file)
    return good


def restore_under(client: SQLiteClient, file: Path, backup: bytes) -> None:
    """Put *backup* into the file that *client* uses."""
    with undisturbed(client):
        restore(file, backup)


async def send(client: SQLiteClient, *texts: str) -> None:
    await client.send_messages([EventMessage.from_string(text) for text in texts])


async def received(client: SQLiteClient, count: int) -> list[str]:
    async with await client.subscribe("s") as receiver:
        texts: list[str] = []
        while len(texts) < count:
            messages = await receiver.receive_messages(count, 60)
            assert messages
            await receiver.acknowledge_messages(messages)
            texts += [each.data.decode() for each in messages]
        return texts


@pytest.mark.parametrize("spoil", [from_newer_version, from_another_application, no_database, damaged, cut_off])
def test_refused_file_is_left_alone_and_used_when_put_right(
    client: Clients, file: Path, spoil: Callable[[Path], None]
) -> None:
    """The client that refused it goes on, with everything that was confirmed."""

    async def run() -> list[str]:
        async with client(subscription="s") as before:
            await send(before, "a", "b")
        good = content(file)
        spoil(file)
        bad = content(file)
        async with client() as refused:
            for _ in range(2):
                with pytest.raises(EventConnectionError, match=re.escape(str(file))) as caught:
                    await refused.ping(60)
                assert not caught.value.retryable
            assert content(file) == bad
            restore_under(refused, file, good)
            await send(refused, "c")
            return await received(refused, 3)

    assert asyncio.run(run()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("spoil", "reason", "code"),
    [
        (damaged, "is damaged; restore it from a backup", ErrorCode.INTERNAL),
        (no_database, "is not an SQLite database", ErrorCode.INVALID),
    ],
)
def test_damage_met_at_work_fails_what_meets_it(
    client: Clients, file: Path, spoil: Callable[[Path], None], reason: str, code: ErrorCode
) -> None:
    """A send fails at once, without a confirmation or another try.  With a backup the same client goes on."""

    async def run() -> list[str]:
        async with client(subscription="s") as working:
            await send(working, "a", "b")
            good = spoil_under(working, file, spoil)
            for _ in range(2):
                with pytest.raises(PublishError, match=reason) as caught:
                    await asyncio.wait_for(send(working, "lost?"), 60)
                assert (caught.value.code, caught.value.retryable) == (code, False)
            restore_under(working, file, good)
            await send(working, "c")
            return await received(working, 3)

    assert asyncio.run(run()) == ["a", "b", "c"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, to break what a process has open")
def test_connection_that_cannot_read_or_write_is_replaced(client: Clients, file: Path) -> None:
    """A send waits for the new one, and messages that are held stay valid, because the file is the same."""

    async def run() -> str:
        async with client() as working, await working.subscribe("s") as receiver:
            await send(working, "a", "b")
            first = await receiver.receive_message(60)
            second = await receiver.receive_message(60)
            assert first is not None
            assert second is not None
            session = receiver._source._subscription._session
            break_log(file)
            await asyncio.wait_for(send(working, "c"), 60)
            await receiver.acknowledge(first)
            break_log(file)
            await asyncio.wait_for(receiver.acknowledge(second), 60)
            assert receiver._source._subscription._session == session
            return await next_text(receiver)

    assert asyncio.run(run()) == "c"


def test_one_receiver_without_its_subscription_leaves_others_their_leases(client: Clients, file: Path) -> None:
    """R6: the upkeep of a client renews each of its receivers, even if it fails for another one."""
    doomed = [f"doomed-{number}" for number in range(8)]

    async def run() -> list[tuple[int]]:
        async with client(session_timeout="60") as owner:
            for name in (*doomed, "kept"):
                await (await owner.subscribe(name)).close(timeout=0)
            async with client(create="never", session_timeout="60") as working:
                for name in (*doomed, "kept"):
                    await working.subscribe(name)
                for name in doomed:
                    await owner.delete_subscription(name)
                with closing(sqlite3.connect(file, isolation_level=None)) as connection:
                    connection.execute("UPDATE sessions SET expires_at = 0")
                    await working._home.run(working._driver._renew())
                    return connection.execute("SELECT expires_at > 0 FROM sessions").fetchall()

    assert asyncio.run(run()) == [(1,)]


def test_upkeep_does_not_bring_back_a_receiver_that_has_closed(client: Clients, file: Path) -> None:
    """Q1: its renewal waits for the lock of another process, and gets it after the close."""

    async def run() -> None:
        async with client() as working:
            receiver = await working.subscribe()
            (source,) = working._driver.file.receivers
            await receiver.close(timeout=0)
            await working._home.run(source.renew())
            with closing(sqlite3.connect(file)) as connection:
                for table in ("sessions", "subscriptions"):
                    assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)

    asyncio.run(run())


def let_sessions_lapse(file: Path) -> None:
    """End all sessions, as a receiver does that takes over: their messages may be taken again."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DELETE FROM sessions")
        connection.execute(f"UPDATE deliveries SET state = {READY}, session_id = NULL")


def test_acknowledgement_in_a_lapsed_session_that_was_applied_is_confirmed(client: Clients, file: Path) -> None:
    """S1, S2: the receiver joins again and takes the message again while the acknowledgement is on its way."""

    async def run() -> None:
        async with client() as working, await working.subscribe("s") as receiver:
            await send(working, "a")
            held = await receiver.receive_message(60)
            assert held is not None
            source = receiver._source
            loop = asyncio.get_running_loop()
            asked, unlocked, settle = asyncio.Event(), asyncio.Event(), source.settle

            async def settle_later(settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
                loop.call_soon_threadsafe(asked.set)
                await unlocked.wait()
                return await settle(settlements)

            source.settle = settle_later
            acknowledging = asyncio.create_task(receiver.acknowledge(held))
            await asked.wait()
            let_sessions_lapse(file)
            await send(working, "b")  # which wakes the receiver
            async with asyncio.timeout(60):
                while not receiver.stats.duplicates:
                    await asyncio.sleep(0.01)
            working._home.wake(unlocked.set)
            await acknowledging
            assert await next_text(receiver) == "b"
            assert await receiver.receive_message(0) is None

    asyncio.run(run())


async def meets(receiver: EventReceiver, reason: str) -> None:
    """Check that a receive raises an error with *reason*."""
    with pytest.raises(ReceiveError, match=reason):
        await receiver.receive_message(60)


async def next_text(receiver: EventReceiver) -> str:
    """Return the text of the next message; errors from before the file was restored may come first."""
    async with asyncio.timeout(60):
        while True:
            try:
                message = await receiver.receive_message()
            except ReceiveError:
                continue
            assert message is not None
            await receiver.acknowledge(message)
            return message.data.decode()


def test_receiver_goes_on_with_a_restored_file(client: Clients, file: Path) -> None:
    """It receives the messages of the backup, and those that are sent afterwards."""

    async def run() -> list[str]:
        async with client(subscription="s", session_timeout="1") as working:
            await send(working, "a")
            with undisturbed(working):
                fold_log(file)
                good = content(file)
            async with await working.subscribe() as receiver:
                first = await next_text(receiver)
                with undisturbed(working):
                    fold_log(file)
                    damaged(file)
                await meets(receiver, "is damaged")
                restore_under(working, file, good)
                await send(working, "b")
                return [first, await next_text(receiver), await next_text(receiver)]

    assert asyncio.run(run()) == ["a", "a", "b"]


def test_emptied_file_is_not_taken_into_use(client: Clients, file: Path) -> None:
    """Not by a client that has used it before: a backup is probably about to be copied into it."""

    async def run() -> list[str]:
        async with client(subscription="s") as working:
            await send(working, "a")
            good = spoil_under(working, file, damaged)
            with pytest.raises(PublishError, match="is damaged"):
                await send(working, "lost?")
            os.truncate(file, 0)
            reason = "is empty, although it was not before; restore it, or remove it"
            with pytest.raises(EventConnectionError, match=reason) as caught:
                await working.ping(60)
            assert caught.value.retryable
            assert content(file) == b""
            restore_under(working, file, good)
            await send(working, "b")
            return await received(working, 2)

    assert asyncio.run(run()) == ["a", "b"]


def test_send_waits_until_a_file_emptied_at_work_is_restored(client: Clients, file: Path) -> None:
    """Copying a backup over a file first empties it."""

    async def run() -> list[str]:
        async with client(subscription="s") as working:
            await send(working, "a")
            good = spoil_under(working, file, lambda file: os.truncate(file, 0))
            sending = asyncio.create_task(send(working, "b"))
            async with asyncio.timeout(60):
                while working.is_connected and not sending.done():
                    await asyncio.sleep(0.01)
                restore_under(working, file, good)
                await sending
            return await received(working, 2)

    assert asyncio.run(run()) == ["a", "b"]


def test_idle_receiver_tells_that_an_outage_is_over(client: Clients, file: Path) -> None:
    """F1: the client is connected again, although no message has come."""
    aside = file.with_name("aside.db")

    def break_it() -> None:
        file.rename(aside)
        file.touch()

    async def run() -> None:
        async with client(subscription="s") as working, await working.subscribe():
            break_it()
            async with asyncio.timeout(60):
                while working.is_connected:
                    await asyncio.sleep(0.01)
                os.replace(aside, file)
                while not working.is_connected:
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_newer_version_met_at_work_stops_it(client: Clients, file: Path) -> None:
    """Nothing is written until the version is the known one again; then the same client goes on."""

    def snapshot() -> list[object]:
        connection = sqlite3.connect(file)
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = [connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables]
        connection.close()
        return found

    async def refused(operation: Awaitable[object]) -> None:
        with pytest.raises(EventError, match=f"has schema version {VERSION + 1}.*upgrade events-core") as caught:
            await operation
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.INVALID, False)

    async def run() -> None:
        async with client(subscription="s", session_timeout="1") as working, await working.subscribe() as receiver:
            await send(working, "a", "b")
            held = await receiver.receive_message(60)
            fetched = await receiver.receive_message(60)
            assert held is not None
            assert fetched is not None
            set_version(file, VERSION + 1)
            before = snapshot()
            await refused(send(working, "lost?"))
            await refused(working.send_messages([EventMessage(b"lost?")] * 300))
            await refused(working.ping(60))
            await refused(working.subscribe("t"))
            await refused(working.delete_subscription("s"))
            await refused(receiver.acknowledge(held))
            await refused(receiver.receive_message(60))
            await working._home.run(working._driver._renew())  # a round of upkeep, which must not write either
            with pytest.raises(BrokerError, match="upgrade events-core"):
                await working._home.run(working._driver._sweep())
            assert snapshot() == before
            set_version(file, VERSION)
            await send(working, "c")
            await receiver.acknowledge(fetched)
            assert {await next_text(receiver), await next_text(receiver)} == {"a", "c"}

    asyncio.run(run())


def test_waiting_receiver_meets_a_newer_version(client: Clients, file: Path) -> None:
    """It raises as soon as the version has changed."""

    async def run() -> None:
        async with client() as working, await working.subscribe("s") as receiver:
            waiting = asyncio.create_task(meets(receiver, "upgrade events-core"))
            assert await receiver.receive_message(0.1) is None
            set_version(file, VERSION + 1)
            await waiting
            set_version(file, VERSION)
            await send(working, "a")
            assert await next_text(receiver) == "a"

    asyncio.run(run())


def test_file_kept_locked_is_refused_until_it_is_let_go(
    client: Clients, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if another program lets no other one even read it."""
    monkeypatch.setattr(connection, "LOCK_WAIT", 0.05)

    async def run() -> list[str]:
        async with client(subscription="s") as before:
            await send(before, "a")
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("UPDATE topics SET name = name")
        async with client() as refused:
            with pytest.raises(EventConnectionError, match="locked by another program") as caught:
                await refused.ping(60)
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.UNAVAILABLE, True)
            other.close()
            await send(refused, "b")
            return await received(refused, 2)

    assert asyncio.run(run()) == ["a", "b"]
