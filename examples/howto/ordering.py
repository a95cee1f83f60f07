"""Several orders are handled at once, and each takes its steps in order."""

from __future__ import annotations

import asyncio

from events_core import (
    EventMessage,
    ReceivedMessage,
    consume,
    create_client,
)

ORDERS = ["order-1", "order-2", "order-3"]
STEPS = ["placed", "paid", "shipped"]
FAILING = ("order-2", "paid")


async def main() -> None:
    stop = asyncio.Event()
    unfinished = set(ORDERS)

    async def handle(message: ReceivedMessage) -> None:
        order, step = message.ordering_key, message.data_as_string()
        if (order, step) == FAILING and message.delivery_attempt == 1:
            print(order, step, "failed")
            raise ConnectionError("the bank does not answer")
        print(order, step)
        if step == "shipped":
            unfinished.discard(str(order))
        if not unfinished:
            stop.set()

    url = "memory:///orders?subscription=shipping"
    async with create_client(url) as client, client.subscribe() as receiver:
        for step in STEPS:
            for order in ORDERS:
                message = EventMessage.from_string(step, ordering_key=order)
                await client.send_message(message)
        await consume(receiver, handle, concurrency=3, stop=stop)


if __name__ == "__main__":
    asyncio.run(main())
