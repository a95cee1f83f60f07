"""Requests that are given up leave no channel behind."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from events_core import EventConnectionError
from events_rabbitmq.address import addresses
from events_rabbitmq.connection import connect
from events_rabbitmq.options import RabbitMQOptions
from events_rabbitmq.publishing import _Confirms
from events_rabbitmq.topology import Place

from ..receiving import PATIENCE
from ..waiting import until
from .console import client
from .server import Server


class Host:
    """A virtual host of one test."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"v-{uuid.uuid4().hex[:8]}"
        self.url = server.add_vhost(self.name)

    def channels(self) -> int:
        """Return the number of channels on its connections, as the server counts them."""
        return self.server.command("list_channels", "vhost").split().count(self.name)


@pytest.fixture
def host(own_server: Server) -> Iterator[Host]:
    """Yield a new virtual host."""
    host = Host(own_server)
    yield host
    own_server.delete_vhost(host.name)


def test_a_ping_that_is_given_up_leaves_no_channel(host: Host) -> None:
    """C3: a health check goes on while the server is silent; each of its pings has asked for a channel."""

    async def scenario() -> None:
        async with client("orders", url=host.url, heartbeat="60") as pinging:
            await pinging.ping(timeout=PATIENCE)
            host.server.pause()
            for _ in range(5):
                with pytest.raises(EventConnectionError):
                    await pinging.ping(timeout=0.2)
            host.server.resume()
            await pinging.ping(timeout=PATIENCE)
            await until(lambda: host.channels() == 1)

    asyncio.run(scenario())


def test_a_send_that_is_given_up_leaves_no_channel(host: Host) -> None:
    """P7: a send is given up after its channel has opened, and before the server has answered that it will confirm."""

    async def scenario() -> None:
        address = addresses(RabbitMQOptions(url=host.url))[0]
        connection = await connect(address, None, heartbeat=60, timeout=PATIENCE, client_name="test")
        try:
            opening = asyncio.create_task(_Confirms.open(connection, Place("", "orders")))
            channels = connection.native._channels
            while not opening.done() and not any(channel.is_open for channel in channels.values()):
                await asyncio.sleep(0)  # so that the task has at most asked for confirms when the server is paused
            host.server.pause()
            assert not opening.done()
            opening.cancel()
            await asyncio.wait([opening])
            assert opening.cancelled()
            host.server.resume()
            await until(lambda: host.channels() == 0)
            assert connection.is_open
        finally:
            await connection.close()

    asyncio.run(scenario())
