"""Three orders that fail: for a moment, for good, and for a while."""

from __future__ import annotations

import asyncio

from events_core import (
    EventMessage,
    ReceivedMessage,
    Reject,
    RetryAfter,
    consume,
    create_client,
)

OPTIONS = {"max_delivery_attempts": 3, "dead_letter_topic": "orders-dead"}
ORDERS = [
    {"order": 1, "total": "19.90"},
    {"order": 2, "total": None},
    {"order": 3, "total": "12,50"},
]
unbilled = {1, 2, 3}
all_billed = asyncio.Event()


async def bill(message: ReceivedMessage) -> None:
    order, attempt = message.data_as_json(), message.delivery_attempt
    print("order", order["order"], "attempt", attempt)
    if order["order"] == 1 and attempt == 1:
        raise RetryAfter(0.5)  # the bank is closed
    if order["total"] is None:
        raise Reject("there is no total")
    float(order["total"])  # raises a ValueError if there is a comma
    unbilled.remove(order["order"])
    if not unbilled:
        all_billed.set()


async def main() -> None:
    async with (
        create_client("memory:///orders", options=OPTIONS) as orders,
        create_client("memory:///orders-dead") as dead,
        orders.subscribe("billing") as receiver,
        dead.subscribe("orders-dead-letters") as letters,
    ):
        for order in ORDERS:
            await orders.send_message(EventMessage.from_json(order))
        consuming = consume(receiver, bill, stop=all_billed)
        billing = asyncio.create_task(consuming)
        for _ in range(2):
            letter = await letters.receive_message()
            assert letter is not None  # there was no timeout
            print("letter", letter.data_as_json(), letter.attributes)
            order = {**letter.data_as_json(), "total": "12.50"}
            await orders.send_message(EventMessage.from_json(order))
            await letters.acknowledge(letter)
        await billing


if __name__ == "__main__":
    asyncio.run(main())
