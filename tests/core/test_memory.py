"""What the memory backend promises beyond the contract."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable

import pytest

from events_core import ErrorCode, EventConfig, EventMessage, EventRuntimeError, create_client
from events_core.backends.memory import MemoryClient, MemoryDriver, MemorySource


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


def test_a_subscription_that_comes_while_another_thread_closes_the_client_goes_with_it() -> None:
    """C3: no receiver outlives its client."""

    class Driver(MemoryDriver):
        async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
            source = await super().subscribe(subscription, wake)
            closing = threading.Thread(target=lambda: asyncio.run(client.close(timeout=0)))
            closing.start()
            closing.join(10)
            return source

    class Client(MemoryClient):
        api_version = 1
        driver_class = Driver

    client = Client(EventConfig("closing"))
    with pytest.raises(EventRuntimeError) as caught:
        asyncio.run(client.subscribe("s"))
    assert caught.value.code is ErrorCode.CLOSED
    assert not client._receivers
