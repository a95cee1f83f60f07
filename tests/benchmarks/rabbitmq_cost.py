"""RabbitMQ on one server: events-rabbitmq next to other clients, with bare pika as the floor.

Run ``python tests/benchmarks/rabbitmq_cost.py [--only a,b] [--with ours,floor] [--messages N] [--rounds N]``; without
options it takes a quarter of an hour.  It uses the server that ``EVENTS_TEST_RABBITMQ`` names, or starts one.  The
other clients need ``pip install aio-pika "faststream[rabbit]" kombu``.

The queue is a durable quorum queue, a message has 256 bytes and two headers.  The contenders take turns in one run.
Each has a separate process, and the CPU is that of this process.  The program prints the median of the rounds, with the
least and the most of the ratios.

Kombu waits for the confirm of each message before it sends the next one, so its figures for a and b are those of lone
sends.
"""

from __future__ import annotations

import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pika
from contest import Figures, Goal, Measure, Work, cpu, finish, median_ms, rate, run_program, start
from rabbitmq_peers import PREFETCH, Task

MESSAGES = 20_000
ROUNDS = 3
SUBSCRIPTION = "all"
PEERS = Path(__file__).with_name("rabbitmq_peers.py")
CONTENDERS = {
    "ours": "events-rabbitmq",
    "floor": "pika",
    "aio-pika": "aio-pika",
    "aio-multi": "aio-pika",
    "faststream": "faststream",
    "kombu": "kombu",
    "aiormq": "aiormq",
    "py-amqp": "amqp",
}
"""The contenders, and the distribution of each."""

SHARES = {
    ("alone", ""): 40,
    # It waits for each message.  A share of the messages takes it as long as all messages take the others.
    ("concurrently", "kombu"): 10,
    ("batches", "kombu"): 10,
}
"""Divisors of the number of messages, for a work or for one contender in it; 1 by default."""

WORKS = {
    "a": Work(
        "concurrently",
        "2,000 tasks send one at a time",
        [Goal("msg/s", rate, "faststream", 3, at_least=True), Goal("CPU µs", cpu, "aio-pika", 0.4)],
    ),
    "b": Work("batches", "send_messages of 1,000", [Goal("CPU µs", cpu, "floor", 1.5)]),
    "c": Work("alone", "a lone send_message, p50", [Goal("ms", median_ms, "floor", 1.4)]),
    "d": Work(
        "receive",
        "receive, acknowledge 100",
        [
            Goal("msg/s", rate, "kombu", 1, at_least=True),
            Goal("CPU µs", cpu, "aio-pika", 0.4),
            Goal("CPU µs", cpu, "floor", 2.5),
        ],
    ),
}


@contextmanager
def find_server() -> Iterator[str]:
    sys.path.append(str(Path(__file__).parents[2]))
    from tests.rabbitmq.server import find_or_start

    with tempfile.TemporaryDirectory() as folder, find_or_start(Path(folder)) as server:
        yield server.url


class Server:
    """The server, used for what no contender is measured for."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def queue(self, contender: str, work: str, messages: int) -> Iterator[Task]:
        """Make an exchange and a quorum queue for a task; delete both afterwards."""
        task = Task(
            contender=contender,
            work=work,
            messages=messages,
            url=self.url,
            topic=f"bench-{uuid.uuid4().hex}",
            subscription=SUBSCRIPTION,
        )
        with self._channel() as channel:
            channel.exchange_declare(task.topic, "fanout", durable=True)
            channel.queue_declare(task.queue, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(task.queue, task.topic)
        yield task
        with self._channel() as channel:
            channel.queue_delete(task.queue)
            channel.exchange_delete(task.topic)

    @contextmanager
    def _channel(self) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            yield connection.channel()

    def measure(self, contender: str, work: str, messages: int) -> Figures:
        """Return the figures of one contender at one work."""
        messages //= SHARES.get((work, contender), SHARES.get((work, ""), 1))
        with self.queue(contender, work, messages) as task:
            return run(task) if work != "receive" else self._receive(task)

    def _receive(self, task: Task) -> Figures:
        # All get the same messages.  As many are left at the end as the contender had fetched when the counting began.
        run(replace(task, contender="ours", work="batches", messages=task.messages + 2 * PREFETCH))
        return run(replace(task, warm_up=PREFETCH))


def run(task: Task) -> Figures:
    return finish(start(PEERS, asdict(task)))


@contextmanager
def find() -> Iterator[Measure]:
    with find_server() as address:
        yield Server(address).measure


def main() -> None:
    run_program(__doc__, WORKS, CONTENDERS, find, messages=MESSAGES, fewest=4_000, rounds=ROUNDS)


if __name__ == "__main__":
    main()
