"""Calls of a client whose thread hangs in the kernel, as it does while a disk does not answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from events_core import ErrorCode, EventError, EventMessage, EventRuntimeError
from events_core.backends.sqlite import SQLiteClient

BOUND = 30.0
"""Seconds after which a call counts as hanging.  The kernel breaks a lease after 45 s."""

LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)  # the signal by which the kernel asks for the lease back
fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
sys.stdin.read()
"""
"""A program that has a lease on a file: until it ends, opening the file hangs in the system call."""

Make = Callable[..., SQLiteClient]


@pytest.fixture
def go_on(client: Make, file: Path) -> Iterator[Callable[[], None]]:
    """A function that ends the hanging: until it is called, each thread that opens the file hangs."""

    async def create() -> None:
        async with client() as first:
            await first.ping(60)

    asyncio.run(create())
    holder = subprocess.Popen(
        [sys.executable, "-c", LEASE, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert holder.stdout is not None
    if holder.stdout.readline() != b"leased\n":
        pytest.skip(f"no lease on a file here: {holder.communicate()[1].decode()[-200:]}")
    yield lambda: (holder.communicate(), None)[1]
    holder.communicate()


CALLS: dict[str, Callable[[SQLiteClient], Awaitable[object]]] = {
    "ping": lambda client: client.ping(0.2),
    "subscribe": lambda client: client.subscribe("s"),
    "send": lambda client: client.send_message(EventMessage(b"x")),
}


@pytest.mark.parametrize("name", CALLS)
def test_first_call_and_close_end_while_the_file_is_being_opened(
    client: Make, go_on: Callable[[], None], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """P7, Q2, C2: each ends in time, and close names the thread.  The thread ends when the disk answers (C3)."""

    async def scene() -> None:
        hanging = client(connect_timeout="0.2", send_timeout="0.2")
        with pytest.raises(EventError) as caught:
            await CALLS[name](hanging)
        assert caught.value.code is ErrorCode.TIMEOUT
        await hanging.close(timeout=0)
        with pytest.raises(EventRuntimeError):
            await CALLS[name](hanging)

    before = {thread.name for thread in threading.enumerate()}
    asyncio.run(asyncio.wait_for(scene(), BOUND))
    (left,) = {thread.name for thread in threading.enumerate()} - before
    assert repr(left) in caplog.text
    go_on()
    ends = time.monotonic() + BOUND
    while left in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < ends
        time.sleep(0.01)
