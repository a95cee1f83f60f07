"""What a confirmed send has survived: its process, and what the system was asked for before, as ``strace`` saw it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
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

async def main(path, durability, action):
    config = EventConfig("orders", options={"path": path, "durability": durability, "subscription": "s"})
    async with SQLiteClient(config) as client:
        await client.ping()
        await globals()[action](client)

asyncio.run(main(*sys.argv[1:]))
"""


def steps_of_sends(file: Path, durability: str) -> list[str]:
    """A letter for each write to the log, each sync of it, and each confirmation, of five sends in turn."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = file.with_name("trace")
    tracing = [strace, "-f", "-y", "-e", "trace=write,pwrite64,fsync,fdatasync", "-o", str(trace)]
    done = subprocess.run(
        [*tracing, sys.executable, "-c", PROGRAM, str(file), durability, "trace"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "ptrace" in done.stderr:
        pytest.skip(f"this system does not let strace trace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    calls = trace.read_text(errors="replace").partition('"begin"')[2].splitlines()
    steps = "".join(letter for call in calls if (letter := step(call)))
    return [f"{each}c" for each in steps.split("c")[:-1]]


def step(call: str) -> str:
    if '"confirmed"' in call:
        return "c"
    if "pwrite64(" in call and ".db-wal>" in call:
        return "w"
    # Counted when it has ended, which may be a line of its own that names no file.
    return "s" if "sync" in call and call.endswith("= 0") else ""


def test_full_durability_syncs_the_log_before_each_confirmation(file: Path) -> None:
    """After all that was written for the send, so that a power loss cannot take it back."""
    steps = steps_of_sends(file, "full")
    assert len(steps) == 5
    assert all(each.startswith("w") and each.endswith("wsc") for each in steps), steps


def test_normal_durability_confirms_what_the_system_was_given(file: Path) -> None:
    """Without a sync, which is what makes it fast; so a sync that is there is seen here."""
    steps = steps_of_sends(file, "normal")
    assert len(steps) == 5
    assert all(each == "w" * (len(each) - 1) + "c" for each in steps), steps


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_confirmed_messages_survive_a_kill_right_after(
    file: Path, client: Callable[..., SQLiteClient], durability: str
) -> None:
    """Before the process has done anything else."""
    died = subprocess.run([sys.executable, "-c", PROGRAM, str(file), durability, "die"], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL

    async def run() -> list[int]:
        async with client(subscription="s") as survivor, await survivor.subscribe() as receiver:
            received = []
            while len(received) < 100:
                messages = await receiver.receive_messages(100, 10)
                assert messages
                received += [int(each.data) for each in messages]
            return received

    assert asyncio.run(run()) == list(range(100))
