"""Fifty clients in one process."""

from __future__ import annotations

import asyncio
import threading

from events_core import EventMessage
from events_rabbitmq import RabbitMQClient

from ..receiving import take
from .console import Console

COUNT = 50


def test_fifty_clients_work_side_by_side(console: Console) -> None:
    """Each of them sends and receives, and all together take no thread each."""
    before = threading.active_count()

    async def work(number: int, go: asyncio.Barrier) -> None:
        each = Console(console.server)
        async with each.client() as both, both.subscribe() as receiver:
            await go.wait()
            assert threading.active_count() < before + 20
            await both.send_messages([EventMessage(b"%d" % number)] * 10)
            for _ in range(10):
                message = await take(receiver)
                assert message.data == b"%d" % number
                await receiver.acknowledge(message)
            await go.wait()

    async def scenario() -> None:
        go = asyncio.Barrier(COUNT)
        async with asyncio.timeout(600), asyncio.TaskGroup() as group:
            for number in range(COUNT):
                group.create_task(work(number, go))

    asyncio.run(scenario())
    assert not [each.name for each in threading.enumerate() if each.name.startswith("events")]


def test_fifty_clients_outlive_an_outage_together(own: Console) -> None:
    """F1: the server is killed under fifty receivers; all of them come back."""

    async def scenario() -> None:
        clients = [own.client() for _ in range(COUNT)]
        receivers = await asyncio.gather(*(each.subscribe(f"{own.subscription}-{n}") for n, each in enumerate(clients)))
        await asyncio.to_thread(own.server.kill)
        await asyncio.to_thread(own.server.start)
        await clients[0].send_message(EventMessage(b"all"))
        for message in await asyncio.gather(*(take(each, 300) for each in receivers)):
            assert message.data == b"all"
        await asyncio.gather(*map(RabbitMQClient.close, clients))

    asyncio.run(scenario())
