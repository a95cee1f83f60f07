"""An outbox in front of a broker that a test can take away, and the messages that the broker has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import attrs

from events_core import EventClient, EventConfig, EventMessage
from events_core.backends import memory
from events_core.integrations.outbox import Outbox
from tests.core.network_memory import NetworkClient

_topics = count()


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when *condition* holds; fail after *seconds*."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@attrs.frozen
class Broker:
    """A topic that nobody else uses, with a subscription from its start."""

    client: EventClient

    async def stored(self) -> list[EventMessage]:
        """Return the messages that the broker has, in order."""
        messages: list[EventMessage] = []
        async with self.client.subscribe("all") as receiver:
            while memory.unsettled(self.client.project_id, self.client.topic_name)["all"]:
                messages += (batch := await receiver.receive_messages(1000))
                await receiver.acknowledge_messages(batch)
        return messages

    async def numbers(self) -> list[int]:
        """Return the numbers that :func:`numbered` made."""
        return [int(message.data) for message in await self.stored()]


@asynccontextmanager
async def broker(**options: Any) -> AsyncIterator[Broker]:
    """Yield a broker; *options* are those of its client."""
    async with asyncio.timeout(120):
        config = EventConfig(f"outbox-{next(_topics)}", options={"subscription": "all", "create": "all", **options})
        client = NetworkClient(config)
        try:
            await client.ping(60)
            async with client.subscribe():
                pass
            yield Broker(client)
        finally:
            await client.close(timeout=2)


def numbered(*numbers: int, key: str | None = "k") -> list[EventMessage]:
    """Return messages with these numbers as their data."""
    return [EventMessage(b"%d" % number, ordering_key=key) for number in numbers]


async def occupied(outbox: Outbox) -> None:
    """Put number 0 in, and return when it is on its way; with a stalled broker, all others then wait."""
    outbox.put_nowait(*numbered(0))
    await until(lambda: outbox.stats.sending == 1)
