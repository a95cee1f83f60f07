"""Real disks that fill up or are read-only: nothing is lost, and work goes on afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from events_core import ErrorCode, EventConnectionError, EventMessage, PublishError
from events_core.backends.sqlite import SQLiteClient

from ..patience import failure_naming

Clients = Callable[..., SQLiteClient]

SIZE = 5 * 2**20
"""Bytes of the disk."""


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this system does not let the test mount a file system: {done.stderr.strip()}")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A path on a small file system for this test."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk))
    yield disk / "events.db"
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Fill the rest of the disk; return the file that does so."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as taking:
        try:
            while True:
                taking.write(b"x" * 4096)
        except OSError:
            return filler


def message(number: int) -> EventMessage:
    return EventMessage(number.to_bytes(2, "big") + b"x" * 50_000)


async def received(client: SQLiteClient, count: int) -> list[int]:
    """Receive and acknowledge everything in the subscription ``s``, which has *count* messages at least."""
    async with await client.subscribe("s") as receiver:
        numbers: list[int] = []
        while messages := await receiver.receive_messages(100, 60 if len(numbers) < count else 0.5):
            await receiver.acknowledge_messages(messages)
            numbers += [int.from_bytes(each.data[:2], "big") for each in messages]
        return numbers


async def until_disconnected(client: SQLiteClient) -> None:
    async with asyncio.timeout(60):
        while client.is_connected:
            await asyncio.sleep(0.01)


def test_sends_wait_for_room_on_the_disk(client: Clients, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When there is room again, the sends complete, and each message is stored once and in order."""

    async def send(sending: SQLiteClient, confirmed: list[int]) -> None:
        for number in range(200):
            await sending.send_message(message(number))
            confirmed.append(number)

    async def run() -> list[int]:
        confirmed: list[int] = []
        async with client(subscription="s") as filling:
            await filling.ping(60)
            waiting = asyncio.create_task(send(filling, confirmed))
            await until_disconnected(filling)
            assert 0 < len(confirmed) < 200
            mount("-o", f"remount,size={8 * SIZE}", str(file.parent))
            await asyncio.wait_for(waiting, 60)
            return await received(filling, 200)

    assert asyncio.run(run()) == list(range(200))
    assert "the disk is full; make room" in caplog.text


def test_send_that_finds_no_room_in_time_says_so(client: Clients, file: Path) -> None:
    """It is not stored later either, and the next process finds everything that was confirmed."""

    async def run() -> list[int]:
        async with client(subscription="s") as before:
            await before.send_message(message(0))
        async with client(subscription="s", send_timeout="3") as sending:
            await sending.ping(60)
            filler = fill(file.parent)
            error = await failure_naming(
                "the disk is full; make room", PublishError, lambda: sending.send_message(message(1))
            )
            assert error.retryable
        filler.unlink()
        async with client() as later:
            return await received(later, 1)

    assert asyncio.run(run()) == [0]


@pytest.mark.parametrize("exists", [False, True])
def test_disk_that_is_full_already_is_named_while_connecting(client: Clients, file: Path, exists: bool) -> None:
    """SQLite itself reports only that the disk failed.  The same client goes on when there is room."""

    async def run() -> list[int]:
        if exists:
            async with client(subscription="s") as before:
                await before.send_message(message(0))
        filler = fill(file.parent)
        async with client(subscription="s") as working:
            with pytest.raises(EventConnectionError, match="the disk is full; make room") as caught:
                await working.ping(60)
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.EXHAUSTED, True)
            filler.unlink()
            await working.send_message(message(1))
            return await received(working, 1 + exists)

    assert asyncio.run(run()) == ([0, 1] if exists else [1])


def test_acknowledgement_waits_for_room_on_the_disk(client: Clients, file: Path) -> None:
    """After it was confirmed, the message does not come again."""

    async def run() -> list[int]:
        async with client(subscription="s") as working:
            await working.send_messages([message(0), message(1)])
            async with await working.subscribe() as receiver:
                messages = await receiver.receive_messages(2, 60)
                filler = fill(file.parent)
                waiting = asyncio.create_task(receiver.acknowledge_messages(messages))
                await until_disconnected(working)
                assert not waiting.done()
                filler.unlink()
                await asyncio.wait_for(waiting, 60)
            await working.send_message(message(2))
            return await received(working, 1)

    assert asyncio.run(run()) == [2]


@pytest.mark.parametrize("exists", [False, True])
def test_read_only_directory_is_refused_until_it_can_be_written(client: Clients, file: Path, exists: bool) -> None:
    """Even for root, who may ignore permissions.  The same client goes on afterwards."""

    async def run() -> list[int]:
        if exists:
            async with client(subscription="s") as before:
                await before.send_message(message(0))
        mount("-o", "remount,ro", str(file.parent))
        async with client(subscription="s") as refused:
            with pytest.raises(EventConnectionError, match=r"let this user (read and )?write") as caught:
                await refused.ping(60)
            assert caught.value.code is ErrorCode.PERMISSION_DENIED
            mount("-o", "remount,rw", str(file.parent))
            await refused.send_message(message(1))
            return await received(refused, 1 + exists)

    assert asyncio.run(run()) == ([0, 1] if exists else [1])
