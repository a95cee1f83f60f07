"""A receiver whose process was stopped for longer than its session."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from events_core.engine import feed, uptime
from events_kafka import commits, consumer, source
from events_kafka.source import KafkaSource

from ..receiving import PATIENCE, numbered, numbers, settle_all, take
from ..waiting import until
from .console import Console


class Worker:
    """The process of ``stopped_worker.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, word: str) -> str:
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)
        return self.answer()


@contextmanager
def worker(console: Console) -> Iterator[Worker]:
    """Start a receiver of the subscription, and kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kafka.stopped_worker", console.address, console.topic],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        found = Worker(process)
        assert found.answer() == "ready"
        yield found
    finally:
        process.kill()
        process.communicate()


def test_a_stopped_receiver_hands_out_nothing_that_others_have(console: Console) -> None:
    """F2: after a stop longer than the session, the buffer is dropped, and what is held is EXPIRED."""
    console.create_topic()

    async def scenario() -> None:
        async with console.client(session_timeout="6") as both:
            await (await both.subscribe()).close(timeout=0)  # so that the subscription exists
            await both.send_messages(numbered(20, key="k"))
            with worker(console) as stopped:
                ask = stopped.ask
                await until(lambda: ask("buffered") == "20")
                assert await asyncio.to_thread(ask, "take") == "0"
                os.kill(stopped.process.pid, signal.SIGSTOP)
                try:
                    async with both.subscribe() as receiver:
                        assert await settle_all(receiver, 20) == list(range(20))
                        await until(lambda: console.committed() == 20)
                        os.kill(stopped.process.pid, signal.SIGCONT)
                        assert await asyncio.to_thread(ask, "take") == "nothing"
                        await until(lambda: ask("buffered") == "0")
                finally:
                    os.kill(stopped.process.pid, signal.SIGCONT)
            assert console.committed() == 20

    asyncio.run(scenario())


def test_a_held_message_of_a_stopped_receiver_has_expired(console: Console) -> None:
    """F2, R9: another receiver has acknowledged it, and the position does not go back."""
    console.create_topic()

    async def scenario() -> None:
        async with console.client(session_timeout="6") as both:
            await (await both.subscribe()).close(timeout=0)
            await both.send_messages(numbered(1))
            with worker(console) as stopped:
                await until(lambda: stopped.ask("buffered") == "1")
                assert await asyncio.to_thread(stopped.ask, "take") == "0"
                os.kill(stopped.process.pid, signal.SIGSTOP)
                try:
                    async with both.subscribe() as receiver:
                        await receiver.acknowledge(await take(receiver, PATIENCE))
                finally:
                    os.kill(stopped.process.pid, signal.SIGCONT)
                assert await asyncio.to_thread(stopped.ask, "acknowledge") == "EXPIRED"
            assert console.committed() == 1

    asyncio.run(scenario())


def test_a_receiver_that_was_stopped_for_a_moment_goes_on(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """F2: after a stop that is shorter than the session, everything that was buffered is handed out."""
    # The clock jumps instead.  After a real stop the session may end before the receiver asks the broker.
    stop = 0.0
    for module in (feed, source, consumer, commits):
        monkeypatch.setattr(module, "uptime", lambda: uptime() + stop)

    async def scenario() -> None:
        nonlocal stop
        async with console.client(session_timeout="45") as both, both.subscribe() as receiver:
            await both.send_messages(numbered(3))
            await until(lambda: receiver.stats.buffered == 3)
            held = await take(receiver)
            stop = 44  # longer than the receiver trusts its session without asking, 43 s
            for number in (1, 2):
                await receiver.acknowledge(held)
                held = await take(receiver)
                assert numbers([held]) == [number]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "heartbeat"),
    [
        ({}, 1),
        ({"librdkafka": "heartbeat.interval.ms=10000"}, 10),
        ({"librdkafka": "heartbeat.interval.ms=30000"}, 30),
        ({"group_protocol": "consumer"}, 5),
    ],
    ids=["default", "longer", "very long", "KIP-848"],
)
def test_a_receiver_trusts_its_session_for_less_than_the_broker_keeps_it(
    console: Console, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], heartbeat: float
) -> None:
    """F2: when the receiver renews its session, its last sign of life may be one interval old."""
    trusted: list[float] = []
    safe = KafkaSource.safe

    def note(source: KafkaSource, ends: float) -> None:
        trusted.append(ends - uptime())
        safe(source, ends)

    monkeypatch.setattr(KafkaSource, "safe", note)

    async def scenario() -> None:
        async with console.client(session_timeout="45", **options) as both, both.subscribe():
            await until(lambda: bool(trusted))

    asyncio.run(scenario())
    assert max(trusted) <= 45 - heartbeat
