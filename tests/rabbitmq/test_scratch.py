"""``events check`` on RabbitMQ leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from events_core import EventConfig, EventMessage
from events_rabbitmq import RabbitMQClient

from .console import Console, client
from .server import Server

BOUND = 600.0
"""Seconds that a check of a few rules may take; it takes 5 on a quiet machine."""


@pytest.fixture
def vhost(own_server: Server) -> Iterator[str]:
    """Yield a virtual host in which nothing exists except the server's own exchanges."""
    own_server.add_vhost("scratch")
    yield "scratch"
    own_server.delete_vhost("scratch")


def things(server: Server, vhost: str) -> Sequence[str]:
    """Return the names of all exchanges and queues that clients have made."""
    rows = [row for what in ("list_exchanges", "list_queues") for row in server.listed(what, "name", vhost=vhost)]
    return [row["name"] for row in rows if row["name"] and not row["name"].startswith("amq.")]


@contextmanager
def check(server: Server, vhost: str, folder: Path, rules: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run ``events check``; kill it if the test ends first."""
    url = server.url_for(vhost=vhost)
    (folder / "c.toml").write_text(
        f'[clients.orders]\nbackend = "rabbitmq"\ntopic_name = "orders"\noptions = {{ url = "{url}" }}\n'
    )
    chosen = [word for rule in rules for word in ("--rule", rule)]
    command = ["check", "--config", "c.toml", "--client", "orders", "--timeout", "30", *chosen]
    process = subprocess.Popen(
        [sys.executable, "-m", "events_core.cli", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(BOUND, process.kill)
    killer.start()
    try:
        with process:
            yield process
    finally:
        killer.cancel()
        process.kill()


def test_a_check_leaves_nothing_behind(own_server: Server, vhost: str, tmp_path: Path) -> None:
    """The exchanges and queues of the kit are deleted, also those of dead letters and of ephemeral subscriptions."""
    with check(own_server, vhost, tmp_path, ["R12", "Q1"]) as process:
        _, progress = process.communicate()
    assert process.returncode == 0, progress
    assert things(own_server, vhost) == []
    assert " left" not in progress


def test_an_interrupted_check_leaves_nothing_behind(own_server: Server, vhost: str, tmp_path: Path) -> None:
    """Ctrl-C in the middle of the tests deletes what they have made."""
    # All rules, so that tests are left when the signal comes, however long rabbitmqctl takes.
    with check(own_server, vhost, tmp_path, []) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith("1/")
        assert things(own_server, vhost) != []
        process.send_signal(signal.SIGINT)
        _, progress = process.communicate()
    assert process.returncode == 130, first + progress
    assert things(own_server, vhost) == []
    assert " left" not in progress


@pytest.mark.parametrize("options", [{}, {"topology": "queue"}], ids=["exchange", "queue"])
def test_a_scratch_deletes_what_its_clients_left(console: Console, options: Mapping[str, str]) -> None:
    """Topics and subscriptions of a trial are deleted at its end; those that were made before it stay."""
    other = Console(console.server)
    own = {} if options else {"subscription": console.subscription}
    config = EventConfig(
        console.topic, options={"url": console.url, "create": "all", **own, **options}, backend="rabbitmq"
    )
    queue = console.topic if options else console.queue

    async def scenario() -> None:
        async with other.client() as before:
            await before.ping(timeout=60)
        async with RabbitMQClient.scratch(config) as trial:
            async with client(trial.topic_name, **trial.options) as made:
                await made.send_message(EventMessage(b"x"))
            assert console.has_queue(queue)

    asyncio.run(scenario())
    assert not console.has_queue(queue)
    assert not console.has_exchange()
    assert other.has_queue()
    assert other.has_exchange()
