"""Two synchronous threads send, two with an event loop each receive, through one client."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from events_core import EventClient, EventConfig, EventMessage, EventReceiver, create_client


def place_orders(client: EventClient, shop: str) -> int:
    for number in range(50):
        asyncio.run(client.send_message(EventMessage.from_string(f"{shop} {number}")))
    return 50


async def bill_orders(receiver: EventReceiver) -> int:
    billed = 0
    while (message := await receiver.receive_message(timeout=2)) is not None:
        await receiver.acknowledge(message)
        billed += 1
    return billed


def main() -> None:
    client = create_client(EventConfig.from_url("memory:///orders?subscription=billing"))
    receiver = asyncio.run(client.subscribe())
    with ThreadPoolExecutor(4) as threads:
        placed = [threads.submit(place_orders, client, shop) for shop in ("Leeds", "York")]
        billed = [threads.submit(asyncio.run, bill_orders(receiver)) for _ in range(2)]
    print("placed", sum(future.result() for future in placed))
    print("billed", sum(future.result() for future in billed))
    asyncio.run(client.close())


if __name__ == "__main__":
    main()
