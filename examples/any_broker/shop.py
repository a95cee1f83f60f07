"""A shop that does not know its broker: it sends orders, tries payments again, and keeps each order's steps in turn.

Run ``python shop.py FILE.toml``.  The file names the broker.
"""

from __future__ import annotations

import asyncio
import sys

from events_core import EventMessage, ReceivedMessage, RetryAfter, consume, create_client

REFUSALS = {"order-1": 0, "order-2": 1, "order-3": 99}
"""How often the bank refuses to pay each order."""

STEPS = ["placed", "paid", "shipped"]


async def main(file: str) -> None:
    unshipped = set(REFUSALS)
    all_shipped = asyncio.Event()

    async def handle(message: ReceivedMessage) -> None:
        order, step = str(message.ordering_key), message.data_as_string()
        attempt = message.delivery_attempt or 1
        if step == "paid" and attempt <= REFUSALS[order]:
            print(order, "refused at attempt", attempt)
            raise RetryAfter(0.1)
        print(order, step)
        if step == "shipped":
            unshipped.discard(order)
        if not unshipped:
            all_shipped.set()

    async with create_client("orders", file=file) as orders, orders.subscribe() as receiver:
        for step in STEPS:
            await orders.send_messages(EventMessage.from_string(step, ordering_key=order) for order in REFUSALS)
        await consume(receiver, handle, concurrency=3, stop=all_shipped)

    async with create_client("letters", file=file) as letters, letters.subscribe() as receiver:
        letter = await receiver.receive_message(timeout=30)
        if letter is None:
            raise SystemExit("no dead letter within 30 seconds")
        print(letter.ordering_key, "was never", letter.data_as_string())
        await receiver.acknowledge(letter)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
