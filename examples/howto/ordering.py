"""Orders are placed, paid and shipped; several are handled at once, each in its own order."""

from __future__ import annotations

import asyncio

from events_core import EventConfig, EventMessage, ReceivedMessage, consume, create_client

STEPS = ["placed", "paid", "shipped"]


async def main() -> None:
    config = EventConfig.from_url("memory:///orders?subscription=shipping")
    stop = asyncio.Event()
    shipped: set[str | None] = set()

    async def handle(message: ReceivedMessage) -> None:
        order, step = message.ordering_key, message.data_as_string()
        if (order, step, message.delivery_attempt) == ("order-2", "paid", 1):
            print(order, step, "failed")
            raise ConnectionError("the bank does not answer")
        print(order, step)
        if step == "shipped":
            shipped.add(order)
        if len(shipped) == 3:
            stop.set()

    async with create_client(config) as client:
        for step in STEPS:
            for order in ("order-1", "order-2", "order-3"):
                await client.send_message(EventMessage.from_string(step, ordering_key=order))
        async with client.subscribe() as receiver:
            await consume(receiver, handle, concurrency=3, stop=stop)


if __name__ == "__main__":
    asyncio.run(main())
