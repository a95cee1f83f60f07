"""If a file in use is removed, moved or replaced, no message is confirmed in a file that is lost."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, PublishError, ReceiveError
from events_core.backends.sqlite import SQLiteClient
from events_core.backends.sqlite import place as place_module
from events_core.backends.sqlite.place import Place
from events_core.backends.sqlite.store import Store
from events_core.engine import BrokerError

Clients = Callable[..., SQLiteClient]
Stores = Callable[..., Store]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed")


def moved_away(file: Path) -> Path:
    return file.rename(file.with_name("away.db"))


def removed(file: Path, fresh: Path) -> None:
    file.unlink()


def removed_with_its_log(file: Path, fresh: Path) -> None:
    for path in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        path.unlink()


def removed_and_made_anew(file: Path, fresh: Path) -> None:
    file.unlink()
    file.write_bytes(fresh.read_bytes())


def replaced(file: Path, fresh: Path) -> None:
    fresh.rename(file)


def emptied_directory_and_moved_in(file: Path, fresh: Path) -> None:
    removed_with_its_log(file, fresh)
    fresh.rename(file)


WAYS = [removed, removed_with_its_log, removed_and_made_anew, replaced, emptied_directory_and_moved_in]
Way = Callable[[Path, Path], None]


@pytest.fixture
def fresh(client: Clients, tmp_path: Path) -> Path:
    """Another file of this backend, with an empty topic."""
    path = tmp_path / "fresh.db"

    async def run() -> None:
        async with client(path=str(path)) as making:
            await making.ping(60)

    asyncio.run(run())
    return path


def stored(file: Path) -> list[bytes]:
    """Return the messages of *file*, after a check that it is whole."""
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    found = [data for (data,) in connection.execute("SELECT data FROM messages ORDER BY id")]
    connection.close()
    return found


async def send(client: SQLiteClient, text: str) -> None:
    await asyncio.wait_for(client.send_message(EventMessage.from_string(text)), 60)


async def receive(receiver: EventReceiver) -> bytes:
    message = await receiver.receive_message(60)
    assert message is not None
    await receiver.acknowledge(message)
    return message.data


async def joined_again(client: SQLiteClient, file: Path, name: str) -> None:
    """Wait until *client* has opened the file that is at the path now, with the subscription in it.

    No other connection may open the file before that: it would find the old file's log, and SQLite would apply that.
    """
    async with asyncio.timeout(60):
        while client._driver.file._store is None or not client._driver.file._store.place.is_current:
            await asyncio.sleep(0.01)
        while True:
            try:
                connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
                try:
                    if connection.execute("SELECT 1 FROM subscriptions WHERE name = ?", (name,)).fetchone():
                        return
                finally:
                    connection.close()
            except sqlite3.OperationalError:
                pass  # the file is being created
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_sent_afterwards_is_in_the_new_file(client: Clients, file: Path, fresh: Path, way: Way) -> None:
    """It is there once, without the messages of the old file."""

    async def run() -> None:
        async with client(subscription="s") as sending:
            await send(sending, "old")
            way(file, fresh)
            await send(sending, "new")
            async with client(subscription="s") as other, await other.subscribe() as receiver:
                assert await receive(receiver) == b"new"
            await send(sending, "newer")

    asyncio.run(run())
    assert stored(file) == [b"newer"]


@pytest.mark.parametrize("way", WAYS)
def test_send_under_way_is_not_confirmed(client: Clients, file: Path, fresh: Path, way: Way) -> None:
    """It fails with an error after which the engine tries again."""

    async def run() -> None:
        async with client(subscription="s") as sending:
            await send(sending, "old")
            store = sending._driver.file.store

            def meddle(statement: str) -> None:
                if "INSERT INTO messages" in statement:
                    store.connection.set_trace_callback(None)
                    way(file, fresh)

            async def publish() -> None:
                store.connection.set_trace_callback(meddle)
                await sending._driver.publish([EventMessage(b"lost")])

            with pytest.raises(BrokerError, match=r"was (removed|replaced by another) while it was in use") as caught:
                await sending._home.run(publish())
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.UNAVAILABLE, True)
            assert repr(str(file)) in str(caught.value)
            await send(sending, "new")

    asyncio.run(run())
    assert stored(file) == [b"new"]


def test_engine_sends_again_what_was_under_way(client: Clients, file: Path) -> None:
    """The caller learns only that the message is stored."""

    async def run() -> None:
        async with client(subscription="s") as sending:
            await sending.ping(60)
            connection = sending._driver.file.store.connection

            def meddle(statement: str) -> None:
                if "INSERT INTO messages" in statement:
                    connection.set_trace_callback(None)
                    file.unlink()

            async def prepare() -> None:
                connection.set_trace_callback(meddle)

            await sending._home.run(prepare())
            await send(sending, "x")

    asyncio.run(run())
    assert stored(file) == [b"x"]


@pytest.mark.parametrize("gone", ["shm", "wal"])
def test_messages_that_were_taken_when_the_log_was_removed_come(client: Clients, file: Path, gone: str) -> None:
    """The engine did not get them, and the file says that their receiver has them."""

    async def run() -> None:
        async with client() as working, await working.subscribe("s") as receiver:
            connection = working._driver.file.store.connection

            def meddle(statement: str) -> None:
                if "INSERT INTO deliveries" in statement:
                    connection.set_trace_callback(None)
                    file.with_name(f"{file.name}-{gone}").unlink()

            async def prepare() -> None:
                connection.set_trace_callback(meddle)

            await working._home.run(prepare())
            await send(working, "x")
            assert await receive(receiver) == b"x"

    asyncio.run(run())


@pytest.mark.parametrize("way", WAYS)
def test_receiver_joins_again_and_what_it_held_is_expired(client: Clients, file: Path, fresh: Path, way: Way) -> None:
    """It receives everything that its client sends from then on, and nothing is taken for a message that it holds."""

    async def run() -> None:
        async with client() as working, await working.subscribe("s") as receiver:
            await send(working, "old")
            held = await receiver.receive_message(60)
            assert held is not None
            way(file, fresh)
            for text in ("new", "newer"):
                await send(working, text)
            assert [await receive(receiver), await receive(receiver)] == [b"new", b"newer"]
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(held)
            assert caught.value.code is ErrorCode.EXPIRED

    asyncio.run(run())
    assert stored(file) == []


@pytest.mark.parametrize("name", ["s", None])
@pytest.mark.parametrize("way", WAYS)
def test_waiting_receiver_notices(client: Clients, file: Path, fresh: Path, way: Way, name: str | None) -> None:
    """Even if its client does nothing; it receives what another client sends from then on."""

    async def run() -> bytes:
        async with client() as working, await working.subscribe(name) as receiver:
            waiting = asyncio.create_task(receive(receiver))
            await asyncio.sleep(0)
            way(file, fresh)
            await joined_again(working, file, receiver.subscription)
            async with client() as other:
                await send(other, "x")
            return await waiting

    assert asyncio.run(run()) == b"x"


def test_missing_file_is_not_found_where_it_may_not_be_created(client: Clients, file: Path) -> None:
    """Each call says so until the file is back; then the messages that it holds are valid."""

    async def run() -> None:
        async with client(subscription="s") as making:
            await send(making, "a")
        async with client(create="never") as working, await working.subscribe("s") as receiver:
            held = await receiver.receive_message(60)
            assert held is not None
            away = moved_away(file)
            for _ in range(2):
                with pytest.raises(PublishError, match="does not exist") as sending:
                    await send(working, "x")
                assert sending.value.code is ErrorCode.NOT_FOUND
                with pytest.raises(ReceiveError, match="does not exist") as receiving:
                    await receiver.receive_message(60)
                assert receiving.value.code is ErrorCode.NOT_FOUND
            away.rename(file)
            await receiver.acknowledge(held)
            await send(working, "b")
            with suppress(ReceiveError):  # from the time when the file was away
                assert await receive(receiver) == b"b"
                return
            assert await receive(receiver) == b"b"

    asyncio.run(run())


def test_missing_subscription_is_not_found_where_it_may_not_be_created(
    client: Clients, file: Path, fresh: Path
) -> None:
    """A receive says so, while sends go on."""

    async def run() -> None:
        async with client(subscription="s") as making:
            await making.ping(60)
        async with client(create="never") as working, await working.subscribe("s") as receiver:
            replaced(file, fresh)
            with pytest.raises(ReceiveError, match="no subscription 's'") as caught:
                await receiver.receive_message(60)
            assert caught.value.code is ErrorCode.NOT_FOUND
            await send(working, "x")

    asyncio.run(run())
    assert stored(file) == [b"x"]


def test_file_moved_away_keeps_all_that_was_confirmed(client: Clients, file: Path) -> None:
    """Also the messages that were still in the log, which stays at the old path."""

    async def run() -> Path:
        async with client(subscription="s") as sending:
            await send(sending, "old")
            away = moved_away(file)
            await send(sending, "new")
        return away

    assert stored(asyncio.run(run())) == [b"old"]
    assert stored(file) == [b"new"]


def test_log_of_a_file_moved_away_while_it_is_read_is_set_aside(
    client: Clients, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Part of the log cannot be moved into the file then.  With the log next to it, the file has all messages."""

    async def run() -> Path:
        async with client(subscription="s") as sending:
            await send(sending, "old")
            reading = sqlite3.connect(file, isolation_level=None)
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM messages").fetchone()
            await send(sending, "older")
            away = moved_away(file)
            await send(sending, "new")
            reading.close()
        return away

    away = asyncio.run(run())
    assert stored(file) == [b"new"]
    (aside,) = file.parent.glob(f"{file.name}-wal.*")
    assert any(repr(str(aside)) in record.getMessage() for record in caplog.records)
    aside.rename(away.with_name(f"{away.name}-wal"))
    assert stored(away) == [b"old", b"older"]


def test_clients_of_one_file_move_together(client: Clients, file: Path, fresh: Path) -> None:
    """No client takes the log of the new file for that of the old one and removes it."""

    async def run() -> None:
        async with client(subscription="s") as first, client() as second, client() as third:
            for each in (first, second, third):
                await send(each, "old")
            replaced(file, fresh)
            for text in "abc":
                for each in (first, second, third):
                    await send(each, text)

    asyncio.run(run())
    assert stored(file) == [each.encode() for each in "aaabbbccc"]


def test_link_to_another_file_leaves_the_former_alone(client: Clients, file: Path, fresh: Path) -> None:
    """Other clients go on in the former file."""
    link = file.with_name("link.db")
    link.symlink_to(file)

    async def run() -> None:
        async with client(subscription="s") as staying, client(path=str(link), subscription="s") as following:
            await send(following, "a")
            os.replace(_link_to(fresh), link)
            await send(following, "b")
            await send(staying, "c")

    asyncio.run(run())
    assert (stored(file), stored(fresh)) == ([b"a", b"c"], [b"b"])


def _link_to(path: Path) -> Path:
    link = path.with_name("other-link.db")
    link.symlink_to(path)
    return link


def replaced_index(file: Path, fresh: Path) -> None:
    index = file.with_name(f"{file.name}-shm")
    fresh.with_name("copy").write_bytes(index.read_bytes())
    fresh.with_name("copy").rename(index)


def removed_log(file: Path, fresh: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


def moved_folder(file: Path, fresh: Path) -> None:
    file.parent.rename(file.parent.with_name("elsewhere"))


@pytest.fixture
def settled(tmp_path: Path) -> Iterator[tuple[Path, Place]]:
    """A file in use, in a folder whose last change was an hour ago, and its place."""
    folder = tmp_path / "settled"
    folder.mkdir()
    file = folder / "events.db"
    place = Place(str(file))
    connection = sqlite3.connect(file)
    connection.executescript("PRAGMA journal_mode=wal; CREATE TABLE entries (number)")
    place.opened()
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))
    yield file, place
    connection.close()
    place.closed()


def test_file_in_an_unchanged_folder_is_found_by_one_system_call(
    settled: tuple[Path, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check costs one call while the folder does not change."""
    _, place = settled
    assert place.is_current
    asked: list[object] = []
    look = os.stat
    monkeypatch.setattr(os, "stat", lambda path: asked.append(path) or look(path))
    assert place.is_current
    monkeypatch.undo()
    assert len(asked) == 1


@pytest.mark.parametrize("way", [*WAYS, removed_log, replaced_index, moved_folder], ids=lambda way: way.__name__)
def test_change_in_a_folder_that_was_unchanged_for_long_is_noticed(
    settled: tuple[Path, Place], fresh: Path, way: Way
) -> None:
    """A file that was found by its unchanged folder is not current after any change to it or to its log."""
    file, place = settled
    assert place.is_current
    way(file, fresh)
    assert not place.is_current


def test_folder_that_has_just_changed_is_not_trusted(
    settled: tuple[Path, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes within one tick of the clock leave the same time: the second one is noticed all the same."""
    monkeypatch.setattr(place_module, "_TICK", 1800.0)
    file, place = settled
    (file.parent / "first").touch()
    changed = file.parent.stat()
    assert place.is_current
    file.unlink()
    os.utime(file.parent, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    assert not place.is_current
