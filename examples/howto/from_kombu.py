"""Programs that used Kombu, after the move.

Run ``EVENTS_ORDERS_URL=… python from_kombu.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from events_core import (
    EventClient,
    EventMessage,
    EventReceiver,
    ReceivedMessage,
    consume,
    create_client,
)


def place(client: EventClient, orders: Iterable[Any]) -> list[str]:
    messages = [EventMessage.from_json(order) for order in orders]
    return asyncio.run(client.send_messages(messages))


async def serve(
    client: EventClient,
    handle: Callable[[ReceivedMessage], object],
    stop: asyncio.Event,
) -> None:
    async with client.subscribe() as receiver:
        await consume(
            receiver, handle, concurrency=10, threads=True, stop=stop
        )


async def take(receiver: EventReceiver) -> Any:
    message = await receiver.receive_message(timeout=10)
    if message is None:
        return None  # nothing came for ten seconds
    await receiver.acknowledge(message)
    return message.data_as_json()


async def bill_all(client: EventClient) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    unbilled = {2, 3}

    def bill(message: ReceivedMessage) -> None:
        order = message.data_as_json()["order"]
        print("billed", order)
        unbilled.discard(order)
        if not unbilled:
            loop.call_soon_threadsafe(stop.set)

    async with client.subscribe() as receiver:
        print("took", await take(receiver))
    await serve(client, bill, stop)
    await client.close()


def main() -> None:
    client = create_client("orders")
    place(client, [{"order": number} for number in (1, 2, 3)])
    asyncio.run(bill_all(client))


if __name__ == "__main__":
    main()
