"""Several processes use one file, and some of them die."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from events_core import EventMessage
from events_core.backends.sqlite import SQLiteClient

Clients = Callable[..., SQLiteClient]

PROGRAM = """
import asyncio, json, sys, time
from events_core import EventConfig, EventMessage
from events_core.backends.sqlite import SQLiteClient, driver

def tell(value):
    print(json.dumps(value), flush=True)

async def work(client, settles=True):
    async with await client.subscribe("s") as receiver:
        tell("ready")
        async for message in receiver:
            tell([time.monotonic(), message.data.decode(), message.ordering_key])
            if settles:
                await receiver.acknowledge(message)

async def hold(client):
    await work(client, settles=False)

async def keep(client):
    driver.UPKEEP = 0.2
    await hold(client)

async def wait_to_be_told(client):
    async with await client.subscribe("s") as receiver:
        tell("ready")
        for _ in range(2):
            message = await receiver.receive_message()
            tell(message.data.decode())
            while not receiver.stats.buffered:
                await asyncio.sleep(0.01)
            tell("buffered")
            sys.stdin.readline()

async def watch(client):
    async with await client.subscribe() as receiver:
        tell(receiver.subscription)
        await receiver.receive_message()

async def send(client):
    for number in range(1_000_000):
        await client.send_message(EventMessage(str(number).encode()))
        tell(number)

async def main(path, action, session_timeout):
    options = {"path": path, "session_timeout": session_timeout}
    async with SQLiteClient(EventConfig("orders", options=options)) as client:
        await globals()[action](client)

asyncio.run(main(*sys.argv[1:]))
"""


SESSIONS = {"work": "600", "hold": "3", "keep": "600", "wait_to_be_told": "3", "watch": "1", "send": "600"}
"""Seconds for which the session of a process lives on after the process was killed or stopped.  Where a test does not
wait for the end of a session, a busy machine must not end it either."""


class Worker:
    """A process that does one thing until it is killed, and the lines that it has printed."""

    def __init__(self, file: Path, action: str) -> None:
        self.told: list[Any] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(file), action, SESSIONS[action]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with self._process:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if line.endswith("\n"):
                    self.told.append(json.loads(line))

    def wait_for(self, count: int) -> None:
        """Wait until it has printed *count* lines."""
        until(lambda: len(self.told) >= count)

    def stop(self) -> None:
        """Stop the process until :meth:`go_on`, as a debugger or a frozen container does."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the process go on, and send it a line to read."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process; return when it has ended and all its lines are read."""
        self._process.kill()
        self._reader.join()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds:g} s"
        time.sleep(0.01)


@pytest.fixture
def worker(file: Path) -> Iterator[Callable[[str], Worker]]:
    """A function that starts a process on the file; each is killed at the end of the test."""
    started: list[Worker] = []

    def start(action: str) -> Worker:
        started.append(Worker(file, action))
        started[-1].wait_for(1)
        return started[-1]

    yield start
    for each in started:
        each.kill()


def send(client: SQLiteClient, *messages: EventMessage) -> None:
    async def run() -> None:
        async with client:
            await client.send_messages(messages)

    asyncio.run(run())


def test_processes_share_a_subscription(client: Clients, worker: Callable[[str], Worker]) -> None:
    """Each message goes to one of them, and the messages of a key keep their order over both."""
    first, second = worker("work"), worker("work")
    sent = [(f"{number:03}", f"key-{number % 7}") for number in range(700)]
    send(client(), *(EventMessage.from_string(text, ordering_key=key) for text, key in sent))
    for count in range(1, len(sent) + 1):  # one after the other: how long all of them take depends on the machine
        until(lambda count=count: len(first.told) + len(second.told) >= count + 2)
    received = sorted([*first.told[1:], *second.told[1:]])
    assert sorted((text, key) for _, text, key in received) == sorted(sent)
    by_key: dict[str, list[str]] = defaultdict(list)
    for _, text, key in received:
        by_key[key].append(text)
    assert all(texts == sorted(texts) for texts in by_key.values())


def test_killed_receivers_messages_go_to_another(client: Clients, worker: Callable[[str], Worker]) -> None:
    """When its session has lapsed, they come in order, and the first of the key has one more attempt."""
    holder = worker("hold")
    send(client(), *(EventMessage.from_string(str(number), ordering_key="k") for number in range(3)))
    holder.wait_for(2)
    holder.kill()

    async def run() -> list[tuple[bytes, int | None]]:
        async with client() as heir, await heir.subscribe("s") as receiver:
            received = []
            for _ in range(3):
                message = await receiver.receive_message(60)
                assert message is not None
                received.append((message.data, message.delivery_attempt))
                await receiver.acknowledge(message)
            return received

    assert asyncio.run(run()) == [(b"0", 2), (b"1", 1), (b"2", 1)]


def test_receiver_that_was_stopped_hands_out_nothing_that_others_acknowledged(
    client: Clients, worker: Callable[[str], Worker]
) -> None:
    """F2: its session lapses while it has buffered messages.  Next it gets a new message."""
    stopped = worker("wait_to_be_told")
    send(client(), *(EventMessage.from_string(str(number)) for number in range(20)))
    stopped.wait_for(3)
    stopped.stop()

    async def run() -> None:
        async with client() as heir, await heir.subscribe("s") as receiver:
            for _ in range(20):
                message = await receiver.receive_message(60)
                assert message is not None
                await receiver.acknowledge(message)

    asyncio.run(run())
    stopped.go_on()
    send(client(), EventMessage(b"new"), EventMessage(b"newer"))
    stopped.wait_for(4)
    assert stopped.told[1:4] == ["0", "buffered", "new"]


def test_living_receiver_keeps_what_it_holds(client: Clients, file: Path, worker: Callable[[str], Worker]) -> None:
    """It renews its session again and again, and another receiver takes nothing from it."""
    holder = worker("keep")
    send(client(), EventMessage(b"x"))
    holder.wait_for(2)

    def end() -> float:
        with closing(sqlite3.connect(file)) as connection:
            found: float = connection.execute("SELECT expires_at FROM sessions").fetchone()[0]
            return found

    for _ in range(2):
        before = end()
        until(lambda before=before: end() > before)

    async def run() -> None:
        async with client(session_timeout="1") as other, await other.subscribe("s") as receiver:
            assert await receiver.receive_message(2) is None

    asyncio.run(run())


def test_confirmed_sends_survive_their_process(client: Clients, worker: Callable[[str], Worker]) -> None:
    """After ``kill -9``, the file has each confirmed message, and at most one more."""

    async def run() -> list[bytes]:
        async with client(subscription="s") as survivor, await survivor.subscribe() as receiver:
            sender = worker("send")
            sender.wait_for(50)
            sender.kill()
            confirmed = len(sender.told)
            received: list[bytes] = []
            # After the last confirmed message, another one may be there.  It would be in the file already.
            while messages := await receiver.receive_messages(1000, 60 if len(received) < confirmed else 0.5):
                received += [message.data for message in messages]
            assert confirmed <= len(received) <= confirmed + 1
            return received

    received = asyncio.run(run())
    assert received == [str(number).encode() for number in range(len(received))]


def test_ephemeral_subscription_of_a_killed_process_is_removed(
    client: Clients, worker: Callable[[str], Worker]
) -> None:
    """Any other process of the topic removes it."""
    watcher = worker("watch")
    (name,) = watcher.told
    watcher.kill()

    async def run() -> None:
        async with client(session_timeout="1") as other:
            await other.ping(60)
            query = "SELECT count(*) FROM subscriptions WHERE name = ?"

            async def left() -> int:
                count: int = other._driver.file.store.connection.execute(query, (name,)).fetchone()[0]
                return count

            assert await other._home.run(left()) == 1
            async with asyncio.timeout(60):
                while await other._home.run(left()):
                    await asyncio.sleep(0.05)

    asyncio.run(run())
