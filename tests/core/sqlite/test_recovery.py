"""What makes a file unusable costs nothing that was confirmed, and work goes on when it is gone."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from events_core import ErrorCode, EventConnectionError, EventMessage, PublishError
from events_core.backends.sqlite import SQLiteClient, driver
from events_core.backends.sqlite.schema import VERSION

Clients = Callable[..., SQLiteClient]

PAGE = 4096
"""Bytes of the file's first page, by which it is recognised."""


def from_newer_version(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()


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
    """Let all be in the file itself."""
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


async def send(client: SQLiteClient, *texts: str) -> None:
    await client.send_messages([EventMessage.from_string(text) for text in texts])


async def received(client: SQLiteClient, count: int) -> list[str]:
    async with await client.subscribe("s") as receiver:
        texts: list[str] = []
        while len(texts) < count:
            messages = await receiver.receive_messages(count, 10)
            assert messages
            await receiver.acknowledge_messages(messages)
            texts += [each.data.decode() for each in messages]
        return texts


@pytest.mark.parametrize("spoil", [from_newer_version, from_another_application, no_database, damaged, cut_off])
def test_refused_file_is_left_alone_and_used_when_put_right(
    client: Clients, file: Path, spoil: Callable[[Path], None]
) -> None:
    """By the client that it was refused to, with all that had been confirmed."""

    async def run() -> list[str]:
        async with client(subscription="s") as before:
            await send(before, "a", "b")
        good = content(file)
        spoil(file)
        bad = content(file)
        async with client() as refused:
            for _ in range(2):
                with pytest.raises(EventConnectionError, match=re.escape(str(file))) as caught:
                    await refused.ping()
                assert not caught.value.retryable
            assert content(file) == bad
            restore(file, good)
            await send(refused, "c")
            return await received(refused, 3)

    assert asyncio.run(run()) == ["a", "b", "c"]


def test_damage_met_at_work_fails_what_meets_it(client: Clients, file: Path) -> None:
    """At once, instead of confirming it or trying for ever; a backup serves a new client."""

    async def run() -> list[str]:
        async with client(subscription="s") as working:
            await send(working, "a", "b")
            fold_log(file)
            good = content(file)
            damaged(file)
            with pytest.raises(PublishError, match="is damaged; restore it from a backup") as caught:
                await asyncio.wait_for(send(working, "lost?"), 10)
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.INTERNAL, False)
        restore(file, good)
        async with client() as restored:
            await send(restored, "c")
            return await received(restored, 3)

    assert asyncio.run(run()) == ["a", "b", "c"]


def test_file_kept_locked_is_refused_until_it_is_let_go(
    client: Clients, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another program lets nobody even read it."""
    monkeypatch.setattr(driver, "LOCK_WAIT", 0.05)

    async def run() -> list[str]:
        async with client(subscription="s") as before:
            await send(before, "a")
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("UPDATE topics SET name = name")
        async with client() as refused:
            with pytest.raises(EventConnectionError, match="locked by another program") as caught:
                await refused.ping()
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.UNAVAILABLE, True)
            other.close()
            await send(refused, "b")
            return await received(refused, 2)

    assert asyncio.run(run()) == ["a", "b"]
