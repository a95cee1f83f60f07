"""Programs that used confluent-kafka or aiokafka, after the move.

Run ``EVENTS_ORDERS_URL=… python from_confluent_kafka.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from events_core import (
    EventClient,
    EventMessage,
    ReceivedMessage,
    Reject,
    RetryAfter,
    consume,
    create_client,
)

closed_banks = {"order-2"}


async def place(
    client: EventClient, orders: Iterable[tuple[str, bytes]]
) -> list[str]:
    return await client.send_messages(
        EventMessage(
            order, attributes={"kind": "created"}, ordering_key=shop
        )
        for shop, order in orders
    )


async def serve(
    client: EventClient,
    handle: Callable[[ReceivedMessage], Awaitable[object]],
    stop: asyncio.Event,
) -> None:
    async with client.subscribe() as receiver:
        await consume(receiver, handle, concurrency=10, stop=stop)


async def bill(message: ReceivedMessage) -> None:
    order = message.data_as_string()
    if not order.startswith("order-"):
        raise Reject("this is no order")
    if order in closed_banks:
        closed_banks.remove(order)
        raise RetryAfter(0.5)
    print("billed", order)


async def main() -> None:
    stop = asyncio.Event()
    unbilled = {"order-1", "order-2", "order-3", "order-4"}

    async def handle(message: ReceivedMessage) -> None:
        await bill(message)
        unbilled.discard(message.data_as_string())
        if not unbilled:
            stop.set()

    async with create_client("orders") as client:
        orders = [
            ("shop-1", b"order-1"),
            ("shop-2", b"order-2"),
            ("shop-3", b"spam"),
            ("shop-2", b"order-3"),
            ("shop-1", b"order-4"),
        ]
        await place(client, orders)
        await serve(client, handle, stop)


if __name__ == "__main__":
    asyncio.run(main())
