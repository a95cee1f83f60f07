"""``events check`` on SQS leaves nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from events_core import EventConfig, EventMessage
from events_sqs import SQSClient

from ..receiving import PATIENCE
from .console import LOGIN, Console
from .server import REGION, Server

BOUND = 600.0
"""Seconds that a check of a few rules may take; it takes 20 on a quiet machine."""


async def names(console: Console) -> set[str]:
    """Return the names of all topics and queues that a check has made."""
    topics = [
        each["TopicArn"]
        async for page in console.sns.get_paginator("list_topics").paginate()
        for each in page["Topics"]
    ]
    queues = [
        each
        async for page in console.sqs.get_paginator("list_queues").paginate(QueueNamePrefix="events-check-")
        for each in page.get("QueueUrls", ())
    ]
    return {each for each in (*topics, *queues) if "events-check-" in each}


def test_a_check_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    """The topics and queues of the kit are deleted, also those of dead letters."""
    options = {"region": REGION, "endpoint_url": server.url, "wait_time": "1", **LOGIN}
    (tmp_path / "c.toml").write_text(
        '[clients.orders]\nbackend = "sqs"\ntopic_name = "orders"\n[clients.orders.options]\n'
        + "".join(f'{name} = "{value}"\n' for name, value in options.items())
    )
    command = ["check", "--config", "c.toml", "--client", "orders", "--timeout", "30", "--rule", "R12", "--rule", "Q3"]

    async def left() -> set[str]:
        async with Console(server) as console:
            return await names(console)

    before = asyncio.run(left())
    done = subprocess.run(
        [sys.executable, "-m", "events_core.cli", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.stdout, done.stderr
    # Another check may run on the same server.
    assert asyncio.run(left()) <= before
    assert " left" not in done.stderr


def test_a_scratch_deletes_what_its_clients_created(server: Server) -> None:
    """Topics and queues of a trial are deleted at its end; those that were made before it stay."""

    async def scenario() -> None:
        async with Console(server) as console, Console(server) as other:
            async with other.client() as before:
                await before.ping(PATIENCE)
            options = {"region": REGION, "endpoint_url": server.url, "create": "all", "subscription": "s", **LOGIN}
            config = EventConfig(console.topic, options=options, backend="sqs")
            async with SQSClient.scratch(config) as trial:
                async with other.client() as found:
                    await found.ping(PATIENCE)
                async with SQSClient(trial) as made:
                    await made.send_message(EventMessage(b"x"))
                assert await console.has_queue()
            assert not await console.has_queue()
            assert await other.has_queue()
            assert await other.subscriptions()

    asyncio.run(scenario())
