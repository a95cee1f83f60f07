"""Two processes send, and the process that started them receives."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from events_core import EventMessage, create_client

URL = "sqlite:events.db/orders?subscription=billing"


def place_orders(shop: str) -> int:
    return asyncio.run(send_orders(shop))


async def send_orders(shop: str) -> int:
    order = EventMessage.from_string(f"an order of {shop}")
    async with create_client(URL) as client:
        return len(await client.send_messages([order] * 50))


async def main() -> None:
    async with create_client(URL) as client, client.subscribe() as receiver:
        spawning = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawning) as processes:
            leeds = processes.submit(place_orders, "Leeds")
            york = processes.submit(place_orders, "York")
            shops = map(asyncio.wrap_future, (leeds, york))
            print("placed", sum(await asyncio.gather(*shops)))
        billed = 0
        while billed < 100:
            messages = await receiver.receive_messages(100)
            await receiver.acknowledge_messages(messages)
            billed += len(messages)
        print("billed", billed)


if __name__ == "__main__":
    asyncio.run(main())
