"""What the memory backend promises beyond the contract."""

from __future__ import annotations

import asyncio
import sys

from events_core import EventConfig, EventMessage, create_client


def test_what_was_acknowledged_is_freed() -> None:
    """The engine remembers thousands of settled deliveries; their data goes at once."""

    async def scenario() -> None:
        data = bytes(1000)
        references = sys.getrefcount(data)
        config = EventConfig("freed", backend="memory")
        async with create_client(config) as client, await client.subscribe() as receiver:
            await client.send_message(EventMessage(data))
            message = await receiver.receive_message()
            assert message is not None
            await receiver.acknowledge(message)
            del message
            assert sys.getrefcount(data) == references

    asyncio.run(scenario())
