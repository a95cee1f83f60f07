"""A service that bills the orders."""

import asyncio
import signal

from events_core import ReceivedMessage, consume, create_client


async def bill(message: ReceivedMessage) -> None:
    print("billed order", message.data_as_json()["order"], flush=True)


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    client = create_client("orders", file="events.toml")
    async with client, client.subscribe() as receiver:
        await consume(receiver, bill, concurrency=10, stop=stop)


if __name__ == "__main__":
    asyncio.run(main())
