"""Four films are rendered by two services, each film for longer than the broker's lease."""

from __future__ import annotations

import asyncio
import tempfile
import time

from events_core import EventConfig, EventMessage, ReceivedMessage, consume, create_client

FILMS = ["Brazil", "Kes", "Ran", "Stalker"]
left = set(FILMS)
OPTIONS = "subscription=rendering&session_timeout=1&max_outstanding_messages=2&max_lease_duration=14400"


def render(film: str) -> None:
    time.sleep(1.5)  # stands for an hour


async def serve(service: str, url: str, stop: asyncio.Event) -> None:
    async def handle(message: ReceivedMessage) -> None:
        film = message.data_as_string()
        await asyncio.to_thread(render, film)
        print(f"{service} rendered {film} at attempt {message.delivery_attempt}")
        left.remove(film)
        if not left:
            stop.set()

    async with create_client(EventConfig.from_url(url)) as client, client.subscribe() as receiver:
        await consume(receiver, handle, concurrency=2, stop=stop)


async def main(folder: str) -> None:
    url = f"sqlite://{folder}/events.db/films?{OPTIONS}"
    async with create_client(EventConfig.from_url(url)) as client:
        await client.send_messages(map(EventMessage.from_string, FILMS))
    stop = asyncio.Event()
    await asyncio.gather(serve("one", url, stop), serve("two", url, stop))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
