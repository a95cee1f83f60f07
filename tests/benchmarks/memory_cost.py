"""CPU per message of send + receive + acknowledge on memory, ``asyncio.Queue`` and Kombu's memory transport.

Run ``python tests/benchmarks/memory_cost.py``; Kombu's row needs ``pip install kombu``.  Compare the ratios, because
absolute times mean little on a shared machine.  For the same reason all rows come from one run, and take turns in it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

from events_core import EventConfig, EventMessage, create_client

MESSAGES = 20_000
BATCH = 100
MEMORY = "events_core.backends.memory:MemoryClient"
ROUNDS = 5
PAYLOAD = b"x" * 256


async def queue() -> None:
    """Put messages into one queue and get them."""
    channel: asyncio.Queue[EventMessage] = asyncio.Queue()
    for _ in range(MESSAGES):
        await channel.put(EventMessage(PAYLOAD))
        await channel.get()


async def single() -> None:
    """Send, receive and acknowledge one message at a time."""
    async with create_client(EventConfig("single", backend=MEMORY)) as client, await client.subscribe() as receiver:
        for _ in range(MESSAGES):
            await client.send_message(EventMessage(PAYLOAD))
            message = await receiver.receive_message()
            assert message is not None
            await receiver.acknowledge(message)


async def batches() -> None:
    """Send, receive and acknowledge a hundred messages at a time."""
    async with create_client(EventConfig("batches", backend=MEMORY)) as client, await client.subscribe() as receiver:
        for _ in range(MESSAGES // BATCH):
            await client.send_messages([EventMessage(PAYLOAD) for _ in range(BATCH)])
            messages = await receiver.receive_messages(BATCH)
            assert len(messages) == BATCH
            await receiver.acknowledge_messages(messages)


def kombu() -> None:
    """Put, get and acknowledge with a ``SimpleQueue`` over the memory transport."""
    from kombu import Connection

    with Connection("memory://") as connection:
        channel = connection.SimpleQueue("cost")
        for _ in range(MESSAGES // 10):
            channel.put(PAYLOAD, serializer=None, content_type="application/data", content_encoding="binary")
            channel.get(block=True).ack()
        channel.close()


def cpu(work: Callable[[], object], messages: int) -> float:
    """Return the microseconds of CPU that *work* takes per message."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / messages * 1e6


def main() -> None:
    rows: dict[str, tuple[Callable[[], object], int]] = {
        "asyncio.Queue put+get": (lambda: asyncio.run(queue()), MESSAGES),
        "memory, single": (lambda: asyncio.run(single()), MESSAGES),
        f"memory, batches of {BATCH}": (lambda: asyncio.run(batches()), MESSAGES),
    }
    try:
        import kombu as _
    except ImportError:
        print("kombu is not installed: no rows for it")
    else:
        rows["kombu memory, single"] = (kombu, MESSAGES // 10)
    figures: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        for name, (work, messages) in rows.items():
            figures[name].append(cpu(work, messages))
    floor = statistics.median(figures["asyncio.Queue put+get"])
    print(f"{'CPU per message':28} {'median µs':>10} {'min':>8} {'max':>8} {'× queue':>8}")
    for name, values in figures.items():
        median = statistics.median(values)
        print(f"{name:28} {median:10.2f} {min(values):8.2f} {max(values):8.2f} {median / floor:8.1f}")


if __name__ == "__main__":
    main()
