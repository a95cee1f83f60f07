"""The worker: it bills each order, tries again while the bank is closed, and gives up on orders that cannot succeed."""

import asyncio
import signal

import bank

from events_core import ReceivedMessage, Reject, RetryAfter, consume, create_client

PAUSE = 5.0
"""Seconds until an order comes again that found the bank closed."""


async def bill(message: ReceivedMessage) -> None:
    order = message.data_as_json()
    try:
        await bank.charge(order["customer"], order["total"])
    except bank.BankClosed:
        raise RetryAfter(PAUSE) from None
    except bank.CardRefused as error:
        raise Reject(str(error)) from None
    # Anything else that is raised is logged, and the order comes again, later each time, five times in all.
    print("billed order", order["order"], flush=True)


async def work(stop: asyncio.Event) -> None:
    client = create_client("orders", file="events.toml")
    async with client, client.subscribe() as receiver:
        await consume(receiver, bill, concurrency=10, stop=stop)


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await work(stop)


if __name__ == "__main__":
    asyncio.run(main())
