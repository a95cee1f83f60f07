"""Operations wait for the lock of another program, and name it when their time is up."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from events_core import ErrorCode, EventError, EventMessage
from events_core.backends.sqlite import SQLiteClient, connection
from events_core.engine import client as client_module

from ..patience import PATIENCE, failure_naming, succeeds

Clients = Callable[..., SQLiteClient]
SHORT = {"send_timeout": "4", "connect_timeout": "4"}
"""Times that end while the file is locked, but not before a busy machine has met the lock."""
LOCKED = "is locked by another program; end that program's transaction"


@pytest.fixture(autouse=True)
def patient_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let callers wait for the reason that the client's thread knows, however late it is."""
    monkeypatch.setattr(client_module, "_HOMEWARD", PATIENCE)


@contextmanager
def locked(file: Path, mode: str = "NORMAL") -> Iterator[None]:
    """Lock the file as the transaction of another program does."""
    other = sqlite3.connect(file, isolation_level=None, timeout=PATIENCE)
    other.execute(f"PRAGMA locking_mode = {mode}")
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE topics SET name = name")
    yield
    other.execute("ROLLBACK")
    other.close()


async def make(client: SQLiteClient) -> None:
    async with client:
        await client.ping(PATIENCE)


async def told(operation: Awaitable[object]) -> None:
    with pytest.raises(EventError, match=LOCKED) as caught:
        await operation
    assert caught.value.code in (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT)
    assert caught.value.retryable


OPERATIONS: dict[str, Callable[[SQLiteClient], Awaitable[object]]] = {
    "send": lambda client: client.send_message(EventMessage(b"x")),
    "subscribe": lambda client: client.subscribe("s"),
    "delete": lambda client: client.delete_subscription("s"),
    "ping": lambda client: client.ping(timeout=4),
}
operations = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
Operation = Callable[[SQLiteClient], Awaitable[object]]


@operations
def test_lock_met_while_connecting_is_named(client: Clients, file: Path, operation: Operation) -> None:
    """Each operation that connects names the lock; afterwards the same client connects."""

    async def run() -> None:
        await make(client())
        async with client(subscription="s", **SHORT) as waiting:
            with locked(file):
                await told(operation(waiting))
            await succeeds(lambda: operation(waiting))

    asyncio.run(run())


@operations
def test_lock_met_when_connected_is_named(client: Clients, file: Path, operation: Operation) -> None:
    """Each operation that writes names the lock; a ping only reads."""

    async def run() -> None:
        async with client(subscription="s", **SHORT) as waiting:
            await succeeds(waiting.ping)
            with locked(file):
                if operation is OPERATIONS["ping"]:
                    await succeeds(lambda: operation(waiting))
                else:
                    # A busy machine may begin after half of the time.  Then the lock is not named.
                    error = await failure_naming(LOCKED, EventError, lambda: operation(waiting))
                    assert error.code in (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT)
                    assert error.retryable
            await succeeds(lambda: operation(waiting))

    asyncio.run(run())


@pytest.mark.parametrize("timeout", [2.0, 10.0])
def test_ping_names_a_lock_that_lets_nobody_even_read(client: Clients, file: Path, timeout: float) -> None:
    """The error of a ping names the lock, with a timeout shorter than the wait for a lock, and with a longer one."""

    async def run() -> None:
        await make(client())
        async with client() as waiting:
            with locked(file, "EXCLUSIVE"):
                await told(waiting.ping(timeout))
            await waiting.ping(PATIENCE)

    asyncio.run(run())


def test_a_receiver_closes_while_another_program_locks_the_file(
    client: Clients, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1: the close does not wait for the lock, although what was settled and buffered cannot be told."""
    monkeypatch.setattr(connection, "LOCK_WAIT", 3600.0)  # no step at home ends by itself

    async def run() -> None:
        async with client(subscription="s") as both, both.subscribe() as receiver:
            await both.send_messages([EventMessage(b"x")] * 5)
            held = [await receiver.receive_message(60) for _ in range(2)]
            with locked(file):
                assert held[0] is not None
                settling = asyncio.create_task(receiver.acknowledge(held[0]))
                await asyncio.sleep(0)
                await receiver.close(2)
                with pytest.raises(EventError) as caught:
                    await settling
                assert caught.value.code is ErrorCode.CLOSED

    asyncio.run(asyncio.wait_for(run(), 60))
