"""Two threads send and two receive, through one client."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from events_core import (
    EventClient,
    EventMessage,
    EventReceiver,
    create_client,
)


def place_orders(client: EventClient) -> int:
    order = EventMessage.from_string("an order")
    for _ in range(50):
        asyncio.run(client.send_message(order))
    return 50


async def bill_orders(receiver: EventReceiver) -> int:
    billed = 0
    while message := await receiver.receive_message(timeout=5):
        await receiver.acknowledge(message)
        billed += 1
    return billed


def main() -> None:
    client = create_client("memory:///orders?subscription=billing")
    receiver = asyncio.run(client.subscribe())
    with ThreadPoolExecutor(4) as threads:
        placed = [threads.submit(place_orders, client) for _ in range(2)]
        billing = [bill_orders(receiver) for _ in range(2)]
        billed = [threads.submit(asyncio.run, each) for each in billing]
    print("placed", sum(future.result() for future in placed))
    print("billed", sum(future.result() for future in billed))
    asyncio.run(client.close())


if __name__ == "__main__":
    main()
