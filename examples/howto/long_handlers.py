"""Two services render four films, each for longer than the lease."""

from __future__ import annotations

import asyncio
import tempfile
import time

from events_core import (
    EventMessage,
    ReceivedMessage,
    consume,
    create_client,
)

FILMS = ["Brazil", "Kes", "Ran", "Stalker"]
OPTIONS = {
    "subscription": "rendering",
    "session_timeout": 5,  # the lease of SQLite, in seconds
    "max_outstanding_messages": 2,
    "max_lease_duration": 4 * 3600,
}
left = set(FILMS)


def render(film: str) -> None:
    time.sleep(7)  # stands for an hour


async def serve(service: str, url: str, stop: asyncio.Event) -> None:
    async def handle(message: ReceivedMessage) -> None:
        film = message.data_as_string()
        await asyncio.to_thread(render, film)
        attempt = message.delivery_attempt
        print(service, "rendered", film, "at attempt", attempt)
        left.remove(film)
        if not left:
            stop.set()

    client = create_client(url, options=OPTIONS)
    async with client, client.subscribe() as receiver:
        await consume(receiver, handle, concurrency=2, stop=stop)


async def main(folder: str) -> None:
    url = f"sqlite://{folder}/events.db/films"
    async with create_client(url, options=OPTIONS) as client:
        await client.send_messages(map(EventMessage.from_string, FILMS))
    stop = asyncio.Event()
    await asyncio.gather(serve("one", url, stop), serve("two", url, stop))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
