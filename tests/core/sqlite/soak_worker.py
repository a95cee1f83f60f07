"""One process of the soak: a producer or a consumer.  It writes down each action after it is done.

Run as ``soak_worker.py ROLE FILE LEDGER CLOCK …``.  A line that was given to the system survives ``kill -9``.  The file
``CLOCK`` says how many seconds the system's clock is fast; the test changes it for all processes.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from events_core import AcknowledgeError, ErrorCode, EventConfig, EventMessage, ReceivedMessage
from events_core.backends.sqlite import SQLiteClient

BATCH = 20
PAUSE = 0.05
"""Seconds between two batches of a producer, so that a kill meets it at work."""
UNWRITTEN = 0.02
"""Seconds before an action is written down, at most, so that a kill may come in between."""
HANDLING = 0.1
"""Seconds for which a consumer holds a batch, at most, so that a kill meets it with one."""
TIMEOUT = 60.0
"""Seconds that a send or a settlement may take."""
HANG = 60.0
"""Seconds beyond its timeout after which a call counts as hanging.  The process then ends with an error."""


class Ledger:
    """The actions that this process has written down."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def write(self, kind: str, entries: Iterable[str]) -> None:
        """Write a line for each of *entries*, with the time of the clock that all processes share."""
        now = time.monotonic_ns()
        os.write(self._file, "".join(f"{kind} {now} {entry}\n" for entry in entries).encode())


async def produce(client: SQLiteClient, ledger: Ledger, name: str, *share: str) -> None:
    """Send a *share*: its first number, the one after its last, and the number of keys; write down each as ``sent``."""
    first, end, keys = map(int, share)
    for start in range(first, end, BATCH):
        rows = [(number, f"key-{random.randrange(keys)}") for number in range(start, min(start + BATCH, end))]
        batch = [EventMessage(f"{name} {number}".encode(), ordering_key=key) for number, key in rows]
        async with asyncio.timeout(TIMEOUT + HANG):
            ids = await client.send_messages(batch)
        await asyncio.sleep(random.uniform(0, UNWRITTEN))
        ledger.write("sent", (f"{sent} {name} {number} {key}" for sent, (number, key) in zip(ids, rows, strict=True)))
        await asyncio.sleep(PAUSE)


async def consume(client: SQLiteClient, ledger: Ledger) -> None:
    """Acknowledge everything that comes; write down each as ``held``, in the form of ``sent``."""
    async with await client.subscribe() as receiver:
        while True:
            async with asyncio.timeout(1.0 + HANG):
                messages = await receiver.receive_messages(BATCH, 1.0)
            ledger.write("held", (f"{each.message_id} {each.data.decode()} {each.ordering_key}" for each in messages))
            await asyncio.sleep(random.uniform(0, HANDLING))
            ledger.write("asked", ids_of(messages))
            expired: set[str] = set()
            try:
                async with asyncio.timeout(TIMEOUT + HANG):
                    await receiver.acknowledge_messages(messages)
            except AcknowledgeError as error:
                if any(each.code is not ErrorCode.EXPIRED for each in error.failed.values()):
                    raise
                expired |= set(error.failed)
            await asyncio.sleep(random.uniform(0, UNWRITTEN))
            ledger.write("settled", [each for each in ids_of(messages) if each not in expired])
            ledger.write("expired", expired)


async def measure(ledger: Ledger) -> None:
    """Write down each second how many threads, tasks, descriptors and kilobytes of memory this process has."""
    while True:
        ledger.write("gauge", [f"0 {threading.active_count()} {len(asyncio.all_tasks())} {of_the_process()}"])
        await asyncio.sleep(1.0)


def of_the_process() -> str:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return f"{len(os.listdir('/proc/self/fd'))} {pages * os.sysconf('SC_PAGE_SIZE') // 1024}"


def ids_of(messages: Iterable[ReceivedMessage]) -> list[str]:
    return [each.message_id for each in messages]


def follow(clock: str) -> None:
    """Let :func:`time.time` follow the *clock* that the test sets."""
    with open(clock, "rb") as opened:
        offset = memoryview(mmap.mmap(opened.fileno(), 8, prot=mmap.PROT_READ)).cast("d")
    true_time = time.time
    time.time = lambda: true_time() + offset[0]


async def main(role: str, file: str, ledger: str, clock: str, *rest: str) -> None:
    follow(clock)
    options = {"path": file, "subscription": "soak", "session_timeout": "2"}
    options |= {"send_timeout": f"{TIMEOUT:g}", "ack_timeout": f"{TIMEOUT:g}"}
    written = Ledger(ledger)
    measuring = asyncio.create_task(measure(written))
    async with SQLiteClient(EventConfig("orders", options=options)) as client:
        await {"produce": produce, "consume": consume}[role](client, written, *rest)
    measuring.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
