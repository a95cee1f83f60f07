"""The CPU per message of the synchronous client, next to the asyncio client, on SQLite.

Run ``python tests/benchmarks/sync_cost.py [--only a] [--messages N] [--rounds N] [--backend memory]``; without
options it takes some minutes.  Each client sends, receives and acknowledges *messages* one by one, or ten times as many
in batches of 100.

The two take turns in one run.  Each has a process of its own, and the CPU is that of this process, with the engine's
thread.  Compare the ratios, because absolute figures mean little on a shared machine.  The program prints the median of
the rounds, with the least and the most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from contest import Figures, Goal, Meter, Work, cpu, finish, print_heading, print_rows, start, take_turns

from events_core import EventMessage
from events_core import create_client as create_asyncio_client
from events_core.sync import create_client

MESSAGES = 10_000
ROUNDS = 5
BATCH = 100
PAYLOAD = b"x" * 256
WARM_UP = 2 * BATCH
CONTENDERS = ["ours", "asyncio"]
BOUND = 1.5
WORKS = {
    "a": Work("single", "one message at a time", [Goal("CPU µs", cpu, "asyncio", BOUND)]),
    "b": Work("batches", f"{BATCH} messages at a time", [Goal("CPU µs", cpu, "asyncio", BOUND)]),
}


def message() -> EventMessage:
    return EventMessage(PAYLOAD)


def ours(url: str, messages: int, batch: int) -> Figures:
    with create_client(url) as client, client.subscribe("cost") as receiver:

        def work(count: int) -> None:
            for _ in range(count):
                client.send_message(message())
                received = receiver.receive_message()
                assert received is not None
                receiver.acknowledge(received)

        def work_in_batches(count: int) -> None:
            for _ in range(count // batch):
                client.send_messages([message() for _ in range(batch)])
                left = batch
                while left:
                    received = receiver.receive_messages(left)
                    receiver.acknowledge_messages(received)
                    left -= len(received)

        chosen = work if batch == 1 else work_in_batches
        chosen(WARM_UP)
        meter = Meter()
        chosen(messages)
        return meter.read(messages)


async def theirs(url: str, messages: int, batch: int) -> Figures:
    async with create_asyncio_client(url) as client, client.subscribe("cost") as receiver:

        async def work(count: int) -> None:
            for _ in range(count):
                await client.send_message(message())
                received = await receiver.receive_message()
                assert received is not None
                await receiver.acknowledge(received)

        async def work_in_batches(count: int) -> None:
            for _ in range(count // batch):
                await client.send_messages([message() for _ in range(batch)])
                left = batch
                while left:
                    received = await receiver.receive_messages(left)
                    await receiver.acknowledge_messages(received)
                    left -= len(received)

        chosen = work if batch == 1 else work_in_batches
        await chosen(WARM_UP)
        meter = Meter()
        await chosen(messages)
        return meter.read(messages)


def measure(contender: str, work: str, messages: int, backend: str) -> Figures:
    """Return the figures of one client at one work, in a new process and on a new file."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:{folder}/events.db/cost?durability=normal" if backend == "sqlite" else "memory:///cost"
        # A message of a batch costs little.  So take more of them, or the CPU is too short to be compared.
        counts = {"messages": messages, "batch": 1} if work == "single" else {"messages": 10 * messages, "batch": BATCH}
        task = {"contender": contender, "url": url, **counts}
        return finish(start(Path(__file__), task))


def perform(task: dict[str, object]) -> Figures:
    contender = task.pop("contender")
    if contender == "ours":
        return ours(**task)  # type: ignore[arg-type]
    return asyncio.run(theirs(**task))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"{MESSAGES:,} by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS} by default")
    parser.add_argument("--backend", choices=["sqlite", "memory"], default="sqlite", help="sqlite by default")
    parser.add_argument("--only", choices=[*WORKS], help="one of the works; all by default")
    chosen = parser.parse_args()
    print_heading(CONTENDERS)
    for letter in chosen.only or WORKS:
        work, name = WORKS[letter], WORKS[letter].name
        rounds = take_turns(
            lambda contender, name=name: measure(contender, name, chosen.messages, chosen.backend),
            CONTENDERS,
            chosen.rounds,
        )
        print_rows(letter, work, CONTENDERS, rounds)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(perform(json.loads(sys.argv[1]))))
    else:
        main()
