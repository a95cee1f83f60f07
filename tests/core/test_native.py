"""N1: the native objects of the embedded backends, and of clients that have none."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from events_core import (
    ErrorCode,
    EventClient,
    EventConfig,
    EventConnectionError,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    ReceivedMessage,
)
from events_core.backends.memory import MemoryClient, MemoryTopic
from events_core.backends.sqlite import SQLiteClient
from events_core.backends.sqlite.driver import SQLiteDriver

from .network_memory import NetworkClient


@asynccontextmanager
async def holding(client: EventClient, count: int = 1) -> AsyncIterator[tuple[EventReceiver, list[ReceivedMessage]]]:
    """Send *count* messages and hold them, in subscription ``s``."""
    async with client, client.subscribe("s") as receiver:
        await client.send_messages([EventMessage(b"%d" % number) for number in range(count)])
        held: list[ReceivedMessage] = []
        while len(held) < count:
            held += await receiver.receive_messages(count, 60)
        yield receiver, held


def sqlite(folder: Path) -> SQLiteClient:
    return SQLiteClient(EventConfig("orders", options={"path": str(folder / "events.db")}))


def test_memory_tells_what_its_subscriptions_have_not_settled() -> None:
    """N1: with what receivers hold."""

    async def unsettled(topic: MemoryTopic) -> dict[str, int]:
        return dict(topic.unsettled)

    async def test() -> None:
        client = MemoryClient(EventConfig("native"))
        async with holding(client, 2) as (receiver, held):
            await client.send_message(EventMessage(b"x"))
            assert await client.run_native(unsettled) == {"s": 3}
            await receiver.acknowledge(held[0])
            assert await client.run_native(unsettled) == {"s": 2}

    asyncio.run(test())


def test_native_work_of_memory_is_a_part_of_its_caller() -> None:
    """N1: cancelling the caller cancels the work, and closing the client does not."""
    ended: list[str] = []

    async def test() -> None:
        started, goes_on = asyncio.Event(), asyncio.Event()

        async def work(_: MemoryTopic) -> None:
            started.set()
            try:
                await goes_on.wait()
                ended.append("done")
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        async with MemoryClient(EventConfig("native-caller")) as client:
            cancelled = asyncio.create_task(client.run_native(work))
            await started.wait()
            cancelled.cancel()
            await asyncio.wait([cancelled])
            started.clear()
            working = asyncio.create_task(client.run_native(work))
            await started.wait()
        goes_on.set()
        await working

    asyncio.run(test())
    assert ended == ["cancelled", "done"]


def test_memory_has_no_native_message() -> None:
    """N1: it says so."""

    async def test() -> None:
        client = MemoryClient(EventConfig("native-message"))
        async with holding(client) as (_, [message]):
            with pytest.raises(EventRuntimeError) as caught:
                client.native_message(message)
            assert caught.value.code is ErrorCode.UNSUPPORTED

    asyncio.run(test())


def test_only_a_received_message_has_a_native_form(tmp_path: Path) -> None:
    """N1: another one is a TypeError."""

    async def test() -> None:
        async with sqlite(tmp_path) as client:
            with pytest.raises(TypeError, match="only a message from a receiver"):
                client.native_message(EventMessage(b"x"))  # type: ignore[arg-type]

    asyncio.run(test())


def test_the_native_message_of_sqlite_is_its_row(tmp_path: Path) -> None:
    """N1: found with the native connection, on the client's own thread."""

    async def test() -> None:
        client = sqlite(tmp_path)
        async with holding(client) as (_, [message]):

            async def stored(connection: sqlite3.Connection) -> tuple[bytes, str]:
                row = connection.execute("SELECT data FROM messages WHERE id = ?", [client.native_message(message)])
                return row.fetchone()[0], threading.current_thread().name

            data, thread = await client.run_native(stored)
            assert data == message.data
            assert thread.startswith("events ")

    asyncio.run(test())


def test_sqlite_rolls_back_what_native_work_did_not_commit(tmp_path: Path) -> None:
    """N1: the client's own transactions go on."""

    async def test() -> None:
        client = sqlite(tmp_path)
        async with holding(client) as (receiver, [message]):

            async def delete(connection: sqlite3.Connection) -> None:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("DELETE FROM messages")

            await client.run_native(delete)
            await receiver.nack(message)
            assert (await receiver.receive_message(60)) == message

    asyncio.run(test())


def test_native_work_of_sqlite_may_wait_while_the_client_works(tmp_path: Path) -> None:
    """N1: a connection of its own keeps their transactions apart."""

    async def test() -> None:
        async with sqlite(tmp_path) as client:
            reading, sent = threading.Event(), threading.Event()

            async def count_twice(connection: sqlite3.Connection) -> tuple[int, int]:
                connection.execute("BEGIN")
                before = connection.execute("SELECT count(*) FROM messages").fetchone()[0]
                reading.set()
                while not sent.is_set():
                    await asyncio.sleep(0.001)
                return before, connection.execute("SELECT count(*) FROM messages").fetchone()[0]

            await client.subscribe("s")
            counting = asyncio.create_task(client.run_native(count_twice, timeout=60))
            await asyncio.to_thread(reading.wait, 60)
            await client.send_message(EventMessage(b"x"))
            sent.set()
            assert await counting == (0, 0)

    asyncio.run(test())


def test_native_work_of_sqlite_that_waits_delays_no_fork(tmp_path: Path) -> None:
    """T2, N1: a fork takes the lock under which the client calls SQLite."""

    async def test() -> None:
        async with sqlite(tmp_path) as client:
            waits, ends = threading.Event(), threading.Event()

            async def wait(connection: sqlite3.Connection) -> bool:
                waits.set()
                while not ends.is_set():
                    await asyncio.sleep(0.001)
                return connection.in_transaction

            waiting = asyncio.create_task(client.run_native(wait, timeout=60))
            await asyncio.to_thread(waits.wait, 60)
            assert isinstance(client._driver, SQLiteDriver)
            lock = client._driver.file._calling
            assert lock.acquire(timeout=60)
            lock.release()
            ends.set()
            assert await waiting is False

    asyncio.run(test())


def test_native_work_needs_a_connection(tmp_path: Path) -> None:
    """N1: if the broker cannot be reached, nothing is called, and the error is one of connecting."""
    client = SQLiteClient(EventConfig("orders", options={"path": str(tmp_path / "none.db"), "create": "never"}))
    called: list[object] = []

    async def work(connection: sqlite3.Connection) -> None:
        called.append(connection)

    async def test() -> None:
        async with client:
            with pytest.raises(EventConnectionError) as caught:
                await client.run_native(work)
            assert caught.value.code is ErrorCode.NOT_FOUND

    asyncio.run(test())
    assert called == []


def test_closing_a_client_cancels_its_native_work() -> None:
    """N1, C3: the caller is told that the client was closed."""
    ended: list[bool] = []

    async def test() -> None:
        started = threading.Event()

        async def work(topic: MemoryTopic) -> None:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(True)

        client = NetworkClient(EventConfig("native-closing"))
        working = asyncio.create_task(client.run_native(work, timeout=60))
        await asyncio.to_thread(started.wait, 60)
        await client.close(timeout=0)
        with pytest.raises(EventRuntimeError) as caught:
            await working
        assert caught.value.code is ErrorCode.CLOSED

    asyncio.run(test())
    assert ended == [True]


def test_native_work_that_blocks_its_thread_ends_with_its_time_too() -> None:
    """N1: its caller gets the same error, although nobody can cancel the work."""

    async def test() -> None:
        goes_on = threading.Event()

        async def work(topic: MemoryTopic) -> None:
            goes_on.wait(60)

        async with NetworkClient(EventConfig("native-blocking")) as client:
            await client.ping(60)
            with pytest.raises(TimeoutError):
                await client.run_native(work, timeout=0.1)
            goes_on.set()

    asyncio.run(test())


class Wrapper(EventClient):
    """A direct subclass of the interface that knows nothing of native objects."""

    api_version = 1
    full_capabilities = MemoryClient.full_capabilities

    def __init__(self, config: EventConfig) -> None:
        self._client = MemoryClient(config)
        self.topic_name = config.topic_name  # type: ignore[misc]
        self.project_id = config.project_id  # type: ignore[misc]
        self.capabilities = self._client.capabilities  # type: ignore[misc]

    is_connected = False  # type: ignore[assignment]
    topic_name = project_id = capabilities = None  # type: ignore[assignment]

    async def send_message(self, message: EventMessage) -> str:
        return await self._client.send_message(message)

    send_messages = subscribe = delete_subscription = ping = send_message  # type: ignore[assignment]

    async def close(self, timeout: float = 15.0) -> None:
        await self._client.close(timeout)


def test_a_backend_that_knows_no_native_objects_says_so() -> None:
    """N1: it needs no change for that."""
    client = Wrapper(EventConfig("wrapped"))

    async def work(connection: object) -> None:
        raise AssertionError("it was called")

    with pytest.raises(EventRuntimeError) as caught:
        asyncio.run(client.run_native(work))
    assert caught.value.code is ErrorCode.UNSUPPORTED
