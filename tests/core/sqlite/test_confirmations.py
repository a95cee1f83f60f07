"""A confirmed send has survived its process, and the system was asked to sync it first, as ``strace`` shows."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from events_core.backends.sqlite import SQLiteClient

PROGRAM = """
import asyncio, os, signal, sys
from events_core import EventConfig, EventMessage
from events_core.backends.sqlite import SQLiteClient

async def trace(client):
    os.write(1, b"begin")
    for _ in range(5):
        await client.send_message(EventMessage(b"x" * 5000))
        os.write(1, b"confirmed")

async def die(client):
    await client.send_messages([EventMessage(str(number).encode()) for number in range(100)])
    os.kill(os.getpid(), signal.SIGKILL)

async def go_on(client):
    for number in range(10):
        await client.send_message(EventMessage(str(number).encode()))

async def main(path, durability, action):
    # The long session keeps the upkeep of the client from writing among the sends.
    options = {"path": path, "durability": durability, "subscription": "s", "session_timeout": "3600"}
    config = EventConfig("orders", options=options)
    async with SQLiteClient(config) as client:
        await client.ping(60)
        await globals()[action](client)

asyncio.run(main(*sys.argv[1:]))
"""


def traced(*options: str, file: Path, durability: str, action: str) -> list[str]:
    """Return the system calls that ``strace`` has seen while the program did *action*."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = file.with_name("trace")
    done = subprocess.run(
        [strace, "-f", "-y", *options, "-o", str(trace), sys.executable, "-c", PROGRAM, str(file), durability, action],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if "ptrace" in done.stderr:
        pytest.skip(f"this system does not let strace trace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return trace.read_text(errors="replace").splitlines()


def steps_of_sends(file: Path, durability: str) -> list[str]:
    """Return for each of five sends in turn its writes (w) to the log, syncs (s) and confirmation (c), as a string."""
    calls = traced("-e", "trace=write,pwrite64,fsync,fdatasync", file=file, durability=durability, action="trace")
    begin = next(index for index, call in enumerate(calls) if '"begin"' in call)
    steps = "".join(letter for call in calls[begin:] if (letter := step(call)))
    return [f"{each}c" for each in steps.split("c")[:-1]]


def step(call: str) -> str:
    if '"confirmed"' in call:
        return "c"
    if "pwrite64(" in call and ".db-wal>" in call:
        return "w"
    # Counted when it ends.  strace may report the end in another line, which does not name the file.
    return "s" if "sync" in call and call.endswith("= 0") else ""


def test_full_durability_syncs_the_log_before_each_confirmation(file: Path) -> None:
    """The sync comes after all writes of the send, so a power loss cannot take the message back."""
    steps = steps_of_sends(file, "full")
    assert len(steps) == 5
    assert all(each.startswith("w") and each.endswith("wsc") for each in steps), steps


def test_normal_durability_confirms_what_the_system_was_given(file: Path) -> None:
    """There is no sync.  This also shows that the test above would notice a missing one."""
    steps = steps_of_sends(file, "normal")
    assert len(steps) == 5
    assert all(each == "w" * (len(each) - 1) + "c" for each in steps), steps


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_confirmed_messages_survive_a_kill_right_after(
    file: Path, client: Callable[..., SQLiteClient], durability: str
) -> None:
    """The process is killed before it does anything else."""
    died = subprocess.run([sys.executable, "-c", PROGRAM, str(file), durability, "die"], timeout=180, check=False)
    assert died.returncode == -signal.SIGKILL

    async def run() -> list[int]:
        async with client(subscription="s") as survivor, await survivor.subscribe() as receiver:
            received = []
            while len(received) < 100:
                messages = await receiver.receive_messages(100, 60)
                assert messages
                received += [int(each.data) for each in messages]
            return received

    assert asyncio.run(run()) == list(range(100))


def test_send_whose_sync_failed_is_stored_once(file: Path) -> None:
    """P7: it is sent again, and the first try does not appear when the file is opened again."""
    failing = ("--trace-path", f"{file}-wal", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=4+2")
    calls = traced(*failing, file=file, durability="full", action="go_on")
    assert sum("(INJECTED)" in call for call in calls) >= 5
    with closing(sqlite3.connect(file)) as connection:
        stored = [int(data) for (data,) in connection.execute("SELECT data FROM messages ORDER BY id")]
    assert stored == list(range(10))
