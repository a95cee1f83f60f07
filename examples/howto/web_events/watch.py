"""Print the events of the web application as they come."""

import asyncio

from events_core import create_client


async def main() -> None:
    client = create_client("websocket-events", file="events.toml")
    async with client, client.subscribe() as receiver:
        print("watching", flush=True)
        async for message in receiver:
            async with receiver.processing(message):
                print(message.data_as_string(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
