"""Programs that used google-cloud-pubsub, after the move.

Run ``EVENTS_ORDERS_URL=… python from_google_cloud_pubsub.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from events_core import (
    AcknowledgeError,
    ErrorCode,
    EventClient,
    EventMessage,
    EventReceiver,
    PublishError,
    ReceivedMessage,
    consume,
    create_client,
)


async def place(client: EventClient, orders: Iterable[bytes]) -> list[str]:
    return await client.send_messages(
        EventMessage(order, attributes={"kind": "created"})
        for order in orders
    )


async def advance(
    client: EventClient, order: str, steps: Sequence[str]
) -> None:
    try:
        await client.send_messages(
            EventMessage.from_string(step, ordering_key=order)
            for step in steps
        )
    except PublishError as error:
        for step, result in zip(steps, error.results, strict=False):
            print(order, step, result)  # an id, or why it was not stored
        raise


async def pull(receiver: EventReceiver) -> list[ReceivedMessage]:
    # The list is empty if nothing came for ten seconds.
    return await receiver.receive_messages(50, timeout=10)


async def confirm(
    receiver: EventReceiver, messages: Sequence[ReceivedMessage]
) -> None:
    try:
        await receiver.acknowledge_messages(messages)
    except AcknowledgeError as error:
        for message_id, reason in error.failed.items():
            if reason.code is ErrorCode.EXPIRED:
                print(message_id, "usually comes again")
            else:
                print(message_id, "is still held:", reason)


async def serve(
    client: EventClient,
    handle: Callable[[ReceivedMessage], Awaitable[object]],
    stop: asyncio.Event,
) -> None:
    async with client.subscribe() as receiver:
        await consume(receiver, handle, concurrency=10, stop=stop)


async def main() -> None:
    stop = asyncio.Event()

    async def bill(message: ReceivedMessage) -> None:
        print(message.ordering_key, message.data_as_string())
        if message.data == b"shipped":
            stop.set()

    async with create_client("orders") as client:
        waiting = set(await place(client, [b"1", b"2", b"3"]))
        async with client.subscribe() as receiver:
            while waiting:
                messages = await pull(receiver)
                await confirm(receiver, messages)
                waiting -= {message.message_id for message in messages}
        print("pulled")
        await advance(client, "order-1", ["placed", "paid", "shipped"])
        await serve(client, bill, stop)


if __name__ == "__main__":
    asyncio.run(main())
