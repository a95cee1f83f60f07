"""Two processes send, each through a client of its own, and the process that started them receives."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from events_core import EventConfig, EventMessage, create_client


def place_orders(url: str, shop: str) -> int:
    return asyncio.run(send_orders(url, shop))


async def send_orders(url: str, shop: str) -> int:
    async with create_client(EventConfig.from_url(url)) as client:
        placed = await client.send_messages(EventMessage.from_string(f"{shop} {number}") for number in range(50))
    return len(placed)


async def main(url: str) -> None:
    async with create_client(EventConfig.from_url(url)) as client, client.subscribe() as receiver:
        spawning = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawning) as processes:
            placed = [processes.submit(place_orders, url, shop) for shop in ("Leeds", "York")]
            print("placed", sum([await asyncio.wrap_future(future) for future in placed]))
        billed = 0
        while billed < 100:
            messages = await receiver.receive_messages(100)
            await receiver.acknowledge_messages(messages)
            billed += len(messages)
        print("billed", billed)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:events.db/orders?subscription=billing"))
