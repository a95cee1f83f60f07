"""Programs that used boto3 with SQS and SNS, after the move.

Run ``EVENTS_ORDERS_URL=… python from_boto3.py``.
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


async def place(client: EventClient, orders: Iterable[str]) -> list[str]:
    return await client.send_messages(
        EventMessage.from_string(order, attributes={"kind": "created"})
        for order in orders
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
        raise RetryAfter(1)
    print("billed", order)


async def main() -> None:
    stop = asyncio.Event()
    unbilled = {"order-1", "order-2", "order-3"}

    async def handle(message: ReceivedMessage) -> None:
        await bill(message)
        unbilled.discard(message.data_as_string())
        if not unbilled:
            stop.set()

    async with create_client("orders") as client:
        await place(client, ["order-1", "order-2", "spam", "order-3"])
        await serve(client, handle, stop)


if __name__ == "__main__":
    asyncio.run(main())
