"""A server ends connections while they open."""

from __future__ import annotations

import asyncio

import pytest
from pika import frame, spec

from events_core import ErrorCode, EventConnectionError, EventMessage

from ..receiving import take
from .console import Console
from .relay import Relay

FORCED = frame.Method(
    0,
    spec.Connection.Close(320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", 0, 0),
).marshal()


@pytest.mark.parametrize("farewell", [b"", FORCED], ids=["silent", "forced"])
@pytest.mark.parametrize("step", ["header", "start-ok", "open"])
def test_a_connection_that_ends_while_it_opens_is_tried_again(console: Console, step: str, farewell: bytes) -> None:
    """F1, P7: a server that dies or stops while a client connects has refused neither the user nor the virtual host."""

    async def scenario() -> None:
        async with Relay(console.server.address) as relay:
            url = console.server.url_for(address=relay.address)
            async with console.client(url=url) as both:
                relay.interrupt(step, farewell, times=1)
                with pytest.raises(EventConnectionError) as caught:
                    await both.ping(timeout=60)
                assert caught.value.code is ErrorCode.UNAVAILABLE
                assert caught.value.retryable
                async with both.subscribe() as receiver:
                    receiving = asyncio.create_task(take(receiver))
                    relay.interrupt(step, farewell, times=2)
                    await both.send_message(EventMessage(b"1"))
                    await receiver.acknowledge(await receiving)
            assert relay.left == 0

    asyncio.run(scenario())
