"""One order fails because the bank does not answer, another because it is wrong."""

from __future__ import annotations

import asyncio

from events_core import EventConfig, EventMessage, EventReceiver, ReceivedMessage, create_client

ORDERS = "memory:///orders?subscription=billing&max_delivery_attempts=3&dead_letter_topic=orders-dead"
DEAD = "memory:///orders-dead?subscription=undertaker"


def bill(message: ReceivedMessage) -> None:
    order = message.data_as_json()
    if order["total"] is None:
        raise ValueError("there is no total")
    if order["order"] == 1 and message.delivery_attempt == 1:
        raise ConnectionError("the bank does not answer")
    print(f"order {order['order']}: billed at attempt {message.delivery_attempt}")


async def bill_orders(receiver: EventReceiver, count: int) -> None:
    while count:
        message = await receiver.receive_message()
        assert message is not None  # there was no timeout
        try:
            bill(message)
        except ConnectionError as error:
            print(f"order 1: attempt {message.delivery_attempt}: {error}")
            await receiver.nack(message, delay=0.5)
        except ValueError as error:
            print(f"order 2: attempt {message.delivery_attempt}: {error}")
            await receiver.nack(message)
        else:
            await receiver.acknowledge(message)
            count -= 1


async def main() -> None:
    async with (
        create_client(EventConfig.from_url(ORDERS)) as orders,
        create_client(EventConfig.from_url(DEAD)) as dead,
    ):
        undertaker = await dead.subscribe()
        billing = asyncio.create_task(bill_orders(await orders.subscribe(), count=2))
        await orders.send_message(EventMessage.from_json({"order": 1, "total": "19.90"}))
        await orders.send_message(EventMessage.from_json({"order": 2, "total": None}))

        letter = await undertaker.receive_message(timeout=30)
        if letter is None:
            raise SystemExit("no dead letter within 30 seconds")
        print("dead letter:", letter.data_as_json(), dict(letter.attributes))
        await orders.send_message(EventMessage.from_json({**letter.data_as_json(), "total": "5.00"}))
        await undertaker.acknowledge(letter)
        await billing


if __name__ == "__main__":
    asyncio.run(main())
