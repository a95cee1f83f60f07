"""``examples/any_broker/shop.py`` prints the same on every broker, and only its configuration differs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ..kafka.server import Server as KafkaServer
from ..rabbitmq.server import Server
from ..sqs.server import KEY, REGION, SECRET
from ..sqs.server import Server as SQSServer

FOLDER = Path(__file__).parents[2] / "examples" / "any_broker"
README = (FOLDER / "README.rst").read_text()


def shown() -> list[str]:
    """Return the output that the README shows."""
    block = re.search(r"^\.\. code-block:: text\n\n((?: +.+\n)+)", README, re.MULTILINE)
    assert block is not None
    return textwrap.dedent(block[1]).splitlines()


def run(file: str, folder: Path, **environ: str) -> None:
    """Run the shop in *folder*, and check that each order goes as the README shows."""
    done = subprocess.run(
        [sys.executable, FOLDER / "shop.py", FOLDER / file],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Sorting is stable: it keeps the lines of an order in turn.
    assert sorted(done.stdout.splitlines(), key=lambda line: line.split()[0]) == shown(), done.stderr


@pytest.mark.parametrize("file", ["memory.toml", "sqlite.toml"])
def test_on_the_embedded_brokers(file: str, tmp_path: Path) -> None:
    """In memory and in a file, orders are kept in turn, tried again and dead-lettered."""
    run(file, tmp_path)


def test_on_pubsub(emulator: str, tmp_path: Path) -> None:
    """On the emulator of Pub/Sub, the same happens."""
    run("pubsub.toml", tmp_path, PUBSUB_EMULATOR_HOST=emulator)


def test_on_rabbitmq(server: Server, tmp_path: Path) -> None:
    """On a server of RabbitMQ, the same happens."""
    run("rabbitmq.toml", tmp_path, RABBITMQ_URL=server.url)


def test_on_kafka(kafka_server: KafkaServer, tmp_path: Path) -> None:
    """On a broker of Kafka, the same happens."""
    run("kafka.toml", tmp_path, KAFKA_SERVERS=kafka_server.address)


def test_on_sqs(sqs_server: SQSServer, tmp_path: Path) -> None:
    """On an emulator of SQS and SNS, the same happens."""
    login = {"AWS_DEFAULT_REGION": REGION, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    run("sqs.toml", tmp_path, AWS_ENDPOINT_URL=sqs_server.url, **login)


def test_a_second_run_finds_nothing_of_the_first(tmp_path: Path) -> None:
    """Everything was acknowledged, so a run on the same file is like the first."""
    run("sqlite.toml", tmp_path)
    run("sqlite.toml", tmp_path)
