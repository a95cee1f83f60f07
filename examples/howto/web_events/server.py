"""A server of the library websockets that publishes events."""

import asyncio
import signal

from websockets.asyncio.server import ServerConnection

from events_core import create_client
from events_core.integrations.websockets import (
    WebSocketEvents,
    WebSocketServerWithEvents,
)


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    client = create_client("websocket-events", file="events.toml")
    async with WebSocketServerWithEvents(
        echo,
        client,
        "localhost",
        8001,
        events=WebSocketEvents(payload="size"),
    ):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
