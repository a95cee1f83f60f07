"""The programs of the how-to pages do what the pages say."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from ..kafka.server import Server as KafkaServer
from ..rabbitmq.server import Server
from ..servers.ports import reserved_address, reserved_ports
from ..sqs.server import KEY, REGION, SECRET
from ..sqs.server import Server as SQSServer
from .reader import Reader

PAGES = Path(__file__).parents[2] / "docs" / "howto"
HOWTO = Path(__file__).parents[2] / "examples" / "howto"


@contextmanager
def started(folder: Path, *command: object, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program in *folder*, for five minutes at most."""
    program = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(300, program.kill)
    watchdog.start()
    try:
        with program:
            yield program
    finally:
        watchdog.cancel()


def finished(program: subprocess.Popen[str]) -> tuple[str, str]:
    """Return the rest of its standard output and standard error.  It must end with exit code 0."""
    assert program.stdout is not None
    assert program.stderr is not None
    output, complaints = program.stdout.read(), program.stderr.read()
    assert program.wait() == 0, complaints
    return output, complaints


def run(folder: Path, *command: object, log: str = "", **environ: str) -> list[str]:
    """Run a program, and return the lines that it printed.  Its standard error must be *log*."""
    with started(folder, *command, **environ) as program:
        output, complaints = finished(program)
    assert complaints == log
    return output.splitlines()


def test_testing(tmp_path: Path) -> None:
    """The application's tests pass without a broker, quickly."""
    options = ("-p", "no:cacheprovider", "--rootdir", tmp_path, "-q")
    assert "3 passed" in run(tmp_path, "-m", "pytest", *options, HOWTO / "testing.py")[-1]


def test_ordering(tmp_path: Path) -> None:
    """Each order takes its steps in turn, the failed one again; the failure is logged."""
    with started(tmp_path, HOWTO / "ordering.py") as program:
        output, complaints = finished(program)
    steps = {key: list(lines) for key, lines in itertools.groupby(sorted(output.splitlines(), key=_key), _key)}
    plain = ["placed", "paid", "shipped"]
    assert steps == {
        "order-1": [f"order-1 {step}" for step in plain],
        "order-2": [f"order-2 {step}" for step in ("placed", "paid failed", "paid", "shipped")],
        "order-3": [f"order-3 {step}" for step in plain],
    }
    assert "the handler failed on message" in complaints


def _key(line: str) -> str:
    return line.partition(" ")[0]


def test_retries(tmp_path: Path) -> None:
    """One order comes again after a delay; two become letters, and are billed when they are sent again."""
    with started(tmp_path, HOWTO / "retries.py") as program:
        output, log = finished(program)
    lines = output.splitlines()
    attempts = {order: [line for line in lines if line.startswith(f"order {order} ")] for order in "123"}
    assert attempts == {
        "1": ["order 1 attempt 1", "order 1 attempt 2"],
        "2": ["order 2 attempt 1", "order 2 attempt 1"],
        "3": ["order 3 attempt 1", "order 3 attempt 2", "order 3 attempt 3", "order 3 attempt 1"],
    }
    rejected, failed = (line for line in lines if line.startswith("letter"))
    assert "'dead_letter_reason': 'there is no total'" in rejected
    assert "'dead_letter_delivery_attempts': '3'" in failed
    assert "message 2 was rejected at attempt 1 in subscription 'billing'" in log
    assert "message 3 failed 3 times in subscription 'billing' and was moved to dead-letter topic" in log


@pytest.mark.parametrize(
    ("grace", "ending"), [("20", ["billed 1", "stopped"]), ("0.05", ["gave up"])], ids=["drained", "out of grace"]
)
def test_shutdown(tmp_path: Path, grace: str, ending: list[str]) -> None:
    """After SIGTERM the handler may finish within its grace, and the next process gets the orders not billed."""
    url = f"sqlite://{tmp_path}/events.db/orders?subscription=billing"
    for order in ("1", "2"):
        run(tmp_path, "-m", "events_core.cli", "send", url, order)
    with started(tmp_path, HOWTO / "shutdown.py", grace, EVENTS_ORDERS_URL=url) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "billing 1\n"
        program.send_signal(signal.SIGTERM)
        output, complaints = finished(program)
    assert (output.splitlines(), complaints) == (ending, "")
    left = run(tmp_path, "-m", "events_core.cli", "receive", url, "--timeout", "5")
    assert left == (["2"] if "billed 1" in ending else ["1", "2"])


def test_shutdown_before_it_is_connected(tmp_path: Path) -> None:
    """SIGTERM ends it within its grace also while it waits for a broker that does not answer."""
    with socket.create_server(("localhost", 0)) as silent:
        url = f"gcp://acme/orders?subscription=billing&emulator_host=localhost:{silent.getsockname()[1]}"
        with started(tmp_path, HOWTO / "shutdown.py", "0.05", EVENTS_ORDERS_URL=url) as program, silent.accept()[0]:
            program.send_signal(signal.SIGTERM)
            output, complaints = finished(program)
    assert (output, complaints) == ("gave up\n", "")


@pytest.mark.skipif(not shutil.which("curl"), reason="the page sends its order with curl, which is not installed")
def test_fastapi(tmp_path: Path) -> None:
    """An order that comes by HTTP is billed by a worker, and the test of both passes, as the page shows."""
    folder = shutil.copytree(HOWTO / "fastapi_shop", tmp_path / "shop")
    with reserved_address() as address, Reader(files=folder, terminals=folder) as reader:
        port = address.rpartition(":")[2]
        reader.follow((PAGES / "fastapi.rst").read_text().replace("8000", port))


@pytest.mark.skipif(not shutil.which("curl"), reason="the page sends its orders with curl, which is not installed")
def test_without_an_event_loop(tmp_path: Path) -> None:
    """A script, a worker, and applications of Flask and Django do what the page shows."""
    folder = shutil.copytree(HOWTO / "blocking_shop", tmp_path / "shop")
    page = (PAGES / "without-an-event-loop.rst").read_text()
    with reserved_ports(2) as (one, two), Reader(files=folder, terminals=folder) as reader:
        reader.follow(page.replace("8000", str(one)).replace("8001", str(two)))


def test_fastapi_takes_few_lines() -> None:
    """Application, worker and test have at most sixty lines of code."""
    programs = (HOWTO / "fastapi_shop").glob("*.py")
    lines = sum(bool(line.strip()) for program in programs for line in program.read_text().splitlines())
    assert lines < 60  # as docs/why-not.rst says
    assert f"The three programs have {lines} lines together" in (PAGES / "fastapi.rst").read_text()


def test_threads(tmp_path: Path) -> None:
    """Two threads place orders, and two others bill all of them."""
    assert run(tmp_path, HOWTO / "threads.py") == ["placed 100", "billed 100"]


def test_processes(tmp_path: Path) -> None:
    """Two processes place orders, and a third one bills all of them."""
    assert run(tmp_path, HOWTO / "processes.py") == ["placed 100", "billed 100"]


def test_long_handlers(tmp_path: Path) -> None:
    """Each film is rendered once, at its first attempt, two by each service."""
    lines = run(tmp_path, HOWTO / "long_handlers.py")
    rendered = [re.fullmatch(r"(one|two) rendered (\w+) at attempt 1", line) for line in lines]
    assert sorted(match[2] for match in rendered if match) == ["Brazil", "Kes", "Ran", "Stalker"]
    assert sorted(match[1] for match in rendered if match) == ["one", "one", "two", "two"]


def test_observing(tmp_path: Path) -> None:
    """It prints a record of the connection, the state of a receiver, and a count for each kind of operation."""
    connected, state, *counts = run(tmp_path, HOWTO / "observing.py")
    assert connected == "INFO events_core.engine: memory orders: connected"
    assert state == "held 2 of billing"
    assert [re.sub(r"\d+\.\d+ s", "… s", line) for line in counts] == [
        "publish ok: 3 messages in … s",
        "receive ok: 3 messages in … s",
        "settle ok: 1 messages in … s",
    ]


def test_tracing(tmp_path: Path) -> None:
    """It prints one trace from the request to the handler, and the receive next to it, as the page shows."""
    lines = run(tmp_path, HOWTO / "tracing.py")
    assert lines == TRACE
    assert "\n".join(f"   {line}" for line in TRACE) in (PAGES / "tracing.rst").read_text()


TRACE = [
    "POST /orders",
    "  send orders",
    "    process orders (links to the sender)",
    "      charge the card",
    "      ack orders (links to the sender)",
    "receive orders (links to the sender)",
]


def test_prometheus(tmp_path: Path) -> None:
    """It serves the metrics, and prints the counts that the page shows."""
    lines = run(tmp_path, HOWTO / "prometheus.py")
    assert sorted(lines) == sorted(COUNTS)
    page = (PAGES / "tracing.rst").read_text()
    assert all(f"   {line}\n" in page for line in COUNTS)


COUNTS = [
    "messaging_client_operation_duration_seconds_count send: 1",
    "messaging_client_operation_duration_seconds_count receive: 1",
    "messaging_client_operation_duration_seconds_count ack: 2",
    "messaging_client_sent_messages_total send: 2",
    "messaging_client_consumed_messages_total receive: 2",
    "messaging_process_duration_seconds_count process: 2",
]


PULLED_AND_BILLED = ["pulled", *(f"order-1 {step}" for step in ("placed", "paid", "shipped"))]


def test_from_google_cloud_pubsub(tmp_path: Path) -> None:
    """A batch is pulled and acknowledged, then an order's steps come in turn."""
    url = "memory:///orders?subscription=billing"
    assert run(tmp_path, HOWTO / "from_google_cloud_pubsub.py", EVENTS_ORDERS_URL=url) == PULLED_AND_BILLED


@pytest.mark.parametrize("mode", ["stream", "pull"])
def test_from_google_cloud_pubsub_on_its_emulator(emulator: str, tmp_path: Path, mode: str) -> None:
    """On the emulator of Pub/Sub the program prints the same, in both modes of receiving."""
    url = f"gcp://acme-prod/coming-{mode}?subscription=coming-{mode}&receive_mode={mode}"
    program = HOWTO / "from_google_cloud_pubsub.py"
    assert run(tmp_path, program, EVENTS_ORDERS_URL=url, PUBSUB_EMULATOR_HOST=emulator) == PULLED_AND_BILLED


def from_aio_pika(folder: Path, url: str) -> None:
    """Run the program on a new topic: three orders are billed, one after a delay, and what is no order is rejected."""
    options = "subscription=billing&max_delivery_attempts=5&dead_letter_topic=from-aio-pika-dead"
    with started(folder, HOWTO / "from_aio_pika.py", EVENTS_ORDERS_URL=f"{url}&{options}") as program:
        output, log = finished(program)
    assert sorted(output.splitlines()) == ["billed order-1", "billed order-2", "billed order-3"]
    assert "was rejected at attempt 1 in subscription 'billing'" in log


def from_confluent_kafka(folder: Path, url: str) -> None:
    """Run the program on a new topic: four orders are billed, those of a shop in turn, and the rest is rejected."""
    options = "subscription=billing&max_delivery_attempts=5&dead_letter_topic=from-confluent-kafka-dead"
    with started(folder, HOWTO / "from_confluent_kafka.py", EVENTS_ORDERS_URL=f"{url}&{options}") as program:
        output, log = finished(program)
    lines = output.splitlines()
    assert sorted(lines) == [f"billed order-{number}" for number in (1, 2, 3, 4)]
    assert lines.index("billed order-1") < lines.index("billed order-4")
    assert lines.index("billed order-2") < lines.index("billed order-3")
    assert "was rejected at attempt 1 in subscription 'billing'" in log


def from_boto3(folder: Path, url: str) -> None:
    """Run the program on a new topic: three orders are billed, one after a delay, and what is no order is rejected."""
    options = "subscription=billing&max_delivery_attempts=5&dead_letter_topic=from-boto3-dead"
    with started(folder, HOWTO / "from_boto3.py", EVENTS_ORDERS_URL=f"{url}&{options}") as program:
        output, log = finished(program)
    assert sorted(output.splitlines()) == ["billed order-1", "billed order-2", "billed order-3"]
    assert "was rejected at attempt 1 in subscription 'billing'" in log


def from_kombu(folder: Path, url: str) -> None:
    """Run the program on a new topic: it takes one order, and bills the others in threads."""
    lines = run(folder, HOWTO / "from_kombu.py", EVENTS_ORDERS_URL=f"{url}&subscription=billing")
    assert (lines[0], sorted(lines[1:])) == ("took {'order': 1}", ["billed 2", "billed 3"])


@pytest.mark.parametrize("program", [from_aio_pika, from_kombu])
def test_from_other_clients_of_rabbitmq(tmp_path: Path, program: Callable[[Path, str], None]) -> None:
    """Both programs run without a server."""
    program(tmp_path, f"memory:///{program.__name__}?create=all")


@pytest.mark.parametrize("program", [from_aio_pika, from_kombu])
def test_from_other_clients_on_rabbitmq(server: Server, tmp_path: Path, program: Callable[[Path, str], None]) -> None:
    """On a server of RabbitMQ both print the same."""
    program(tmp_path, f"rabbitmq:///{program.__name__}?create=all&url={quote(server.url, safe='')}")


def test_from_confluent_kafka(tmp_path: Path) -> None:
    """The program runs without a broker."""
    from_confluent_kafka(tmp_path, "memory:///from-confluent-kafka?create=all")


def test_from_confluent_kafka_on_kafka(kafka_server: KafkaServer, tmp_path: Path) -> None:
    """On a broker of Kafka it prints the same."""
    topic = f"from-confluent-kafka-{secrets.token_hex(4)}"
    from_confluent_kafka(tmp_path, f"kafka://{kafka_server.address}/{topic}?create=all&start=earliest")


def test_from_boto3(tmp_path: Path) -> None:
    """The program runs without a broker."""
    from_boto3(tmp_path, "memory:///from-boto3?create=all")


def test_from_boto3_on_sqs(sqs_server: SQSServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an emulator of SQS and SNS it prints the same."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    topic = f"from-boto3-{secrets.token_hex(4)}"
    from_boto3(tmp_path, f"sqs://{REGION}/{topic}?create=all&endpoint_url={quote(sqs_server.url, safe='')}")
