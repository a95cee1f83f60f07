"""``events check`` on Kafka leaves nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from events_core import EventConfig, EventMessage
from events_kafka import KafkaClient

from .console import Console, client

BOUND = 600.0
"""Seconds that a check of a few rules may take; it takes 10 on a quiet machine."""


def topics(console: Console) -> set[str]:
    """Return the names of all topics that clients have made."""
    return {name for name in console.admin.list_topics(timeout=60).topics if not name.startswith("__")}


def test_a_check_leaves_nothing_behind(own: Console, tmp_path: Path) -> None:
    """The topics of the kit are deleted, also those of dead letters."""
    before = topics(own)
    (tmp_path / "c.toml").write_text(
        f'[clients.orders]\nbackend = "kafka"\ntopic_name = "orders"\n'
        f'options = {{ bootstrap_servers = "{own.address}" }}\n'
    )
    command = ["check", "--config", "c.toml", "--client", "orders", "--timeout", "30", "--rule", "R12", "--rule", "Q3"]
    done = subprocess.run(
        [sys.executable, "-m", "events_core.cli", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.stdout, done.stderr
    own.until_known(lambda: topics(own) == before)
    assert " left" not in done.stderr


def test_a_scratch_deletes_what_its_clients_created(console: Console) -> None:
    """Topics of a trial are deleted at its end; those that were made before it stay."""
    other = Console(console.server)
    config = EventConfig(
        console.topic, options={"bootstrap_servers": console.address, "create": "all"}, backend="kafka"
    )

    async def scenario() -> None:
        async with other.client() as before:
            await before.ping(timeout=60)
        async with KafkaClient.scratch(config) as trial:
            async with client(other.topic, **trial.options) as found:
                await found.ping(timeout=60)
            async with client(trial.topic_name, **trial.options) as made:
                await made.send_message(EventMessage(b"x"))
            assert console.partitions() == 1

    asyncio.run(scenario())
    console.until_known(lambda: console.partitions() == 0)
    assert other.partitions() == 1
