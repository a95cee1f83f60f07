"""One process of the soak: a producer or a consumer that writes down what it does, each line after it was done.

Run as ``soak_worker.py ROLE FILE LEDGER CLOCK …``; a line that the system call has taken survives ``kill -9``.  The
system's clock is ``CLOCK`` seconds fast, a number in a file that the test changes under all processes.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import sys
import time
from collections.abc import Iterable

from events_core import AcknowledgeError, ErrorCode, EventConfig, EventMessage, ReceivedMessage
from events_core.backends.sqlite import SQLiteClient

BATCH = 20
PAUSE = 0.05
"""Seconds between two batches of a producer, so that kills meet it at work."""
UNWRITTEN = 0.02
"""Most seconds before what was done is written down, so that kills meet that as well."""
HANDLING = 0.1
"""Most seconds for which a consumer holds a batch, so that kills meet it holding one."""


class Ledger:
    """What this process writes down."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def write(self, kind: str, entries: Iterable[str]) -> None:
        """One line for each of *entries*, with the time on the clock that all processes share."""
        now = time.monotonic_ns()
        os.write(self._file, "".join(f"{kind} {now} {entry}\n" for entry in entries).encode())


async def produce(client: SQLiteClient, ledger: Ledger, name: str, *share: str) -> None:
    """Send a share: its first number, the one after its last, of how many keys; ``sent`` tells name, number and key."""
    first, end, keys = map(int, share)
    for start in range(first, end, BATCH):
        rows = [(number, f"key-{random.randrange(keys)}") for number in range(start, min(start + BATCH, end))]
        ids = await client.send_messages(
            EventMessage(f"{name} {number}".encode(), ordering_key=key) for number, key in rows
        )
        await asyncio.sleep(random.uniform(0, UNWRITTEN))
        ledger.write("sent", (f"{sent} {name} {number} {key}" for sent, (number, key) in zip(ids, rows, strict=True)))
        await asyncio.sleep(PAUSE)


async def consume(client: SQLiteClient, ledger: Ledger) -> None:
    """Acknowledge all that comes; ``held`` tells the same as ``sent``."""
    async with await client.subscribe() as receiver:
        while True:
            messages = await receiver.receive_messages(BATCH)
            ledger.write("held", (f"{each.message_id} {each.data.decode()} {each.ordering_key}" for each in messages))
            await asyncio.sleep(random.uniform(0, HANDLING))
            ledger.write("asked", ids_of(messages))
            expired: set[str] = set()
            try:
                await receiver.acknowledge_messages(messages)
            except AcknowledgeError as error:
                if any(each.code is not ErrorCode.EXPIRED for each in error.failed.values()):
                    raise
                expired |= set(error.failed)
            await asyncio.sleep(random.uniform(0, UNWRITTEN))
            ledger.write("settled", [each for each in ids_of(messages) if each not in expired])
            ledger.write("expired", expired)


def ids_of(messages: Iterable[ReceivedMessage]) -> list[str]:
    return [each.message_id for each in messages]


def follow(clock: str) -> None:
    """Let :func:`time.time` be that of a system whose clock is set now and then."""
    with open(clock, "rb") as opened:
        offset = memoryview(mmap.mmap(opened.fileno(), 8, prot=mmap.PROT_READ)).cast("d")
    true_time = time.time
    time.time = lambda: true_time() + offset[0]


async def main(role: str, file: str, ledger: str, clock: str, *rest: str) -> None:
    follow(clock)
    options = {"path": file, "subscription": "soak", "session_timeout": "2"}
    async with SQLiteClient(EventConfig("orders", options=options)) as client:
        await {"produce": produce, "consume": consume}[role](client, Ledger(ledger), *rest)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
