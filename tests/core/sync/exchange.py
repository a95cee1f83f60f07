"""Two programs that exchange messages through one file of SQLite: a synchronous one, and one with an event loop.

Run ``python exchange.py sync FILE [MESSAGES]`` and ``python exchange.py asyncio FILE [MESSAGES]`` at the same time.
The first one sends orders, and the second one answers each with an invoice.  Some are sent and received one by one,
and some in batches.  Each program checks that all came, once and in order.
"""

from __future__ import annotations

import asyncio
import sys

import events_core
from events_core import EventMessage, sync

MESSAGES = 10_000
BATCH = 100
PATIENCE = 60.0


def urls(file: str) -> tuple[str, str]:
    """Return the URLs of the orders and of the invoices."""
    return tuple(f"sqlite:{file}/{topic}?subscription=s&durability=normal" for topic in ("orders", "invoices"))  # type: ignore[return-value]


def numbered(first: int, count: int) -> list[EventMessage]:
    return [EventMessage.from_string(str(number), ordering_key="k") for number in range(first, first + count)]


def size(first: int) -> int:
    """Return how many messages are sent at once from number *first* on: every tenth batch goes one by one."""
    return 1 if first // BATCH % 10 == 0 else BATCH


def synchronous(file: str, messages: int) -> None:
    """Send orders, then receive an invoice for each."""
    orders_url, invoices_url = urls(file)
    with sync.create_client(orders_url) as orders, sync.create_client(invoices_url) as invoices:
        sent = 0
        while sent < messages:
            if size(sent) == 1:
                orders.send_message(numbered(sent, 1)[0])
                sent += 1
            else:
                orders.send_messages(numbered(sent, BATCH))
                sent += BATCH
        got: list[str] = []
        with invoices.subscribe() as receiver:
            while len(got) < messages:
                received = receiver.receive_messages(size(len(got)), PATIENCE)
                assert received, f"{len(got)} of {messages} invoices came"
                got += [message.data_as_string() for message in received]
                receiver.acknowledge_messages(received)
            assert receiver.receive_message(timeout=0.5) is None
    assert got == [str(number) for number in range(messages)]


async def with_an_event_loop(file: str, messages: int) -> None:
    """Receive orders, and answer each with an invoice."""
    orders_url, invoices_url = urls(file)
    orders, invoices = events_core.create_client(orders_url), events_core.create_client(invoices_url)
    got: list[str] = []
    async with orders, invoices, orders.subscribe() as receiver:
        while len(got) < messages:
            received = await receiver.receive_messages(size(len(got)), PATIENCE)
            assert received, f"{len(got)} of {messages} orders came"
            got += [message.data_as_string() for message in received]
            await invoices.send_messages(received)
            await receiver.acknowledge_messages(received)
        assert await receiver.receive_message(timeout=0.5) is None
    assert got == [str(number) for number in range(messages)]


if __name__ == "__main__":
    kind, file, *rest = sys.argv[1:]
    count = int(rest[0]) if rest else MESSAGES
    if kind == "sync":
        synchronous(file, count)
    else:
        asyncio.run(with_an_event_loop(file, count))
