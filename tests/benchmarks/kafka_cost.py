"""Kafka on one broker: events-kafka next to other clients, with bare confluent-kafka as the floor.

Run ``python tests/benchmarks/kafka_cost.py [--only a,b] [--with ours,floor] [--messages N] [--rounds N]``.  It uses the
broker that ``EVENTS_TEST_KAFKA`` names as host:port, or starts one.  The other clients need ``pip install aiokafka
"faststream[kafka]" kafka-python``.

A topic has six partitions, and a message has 256 bytes and two headers.  The contenders take turns in one run.  Each
has a separate process, and the CPU is that of all threads of this process.  The program prints the median of the
rounds, with the least and the most of the ratios.

The goals for FastStream are for its default settings (``faststream``).  With the larger batches of ``fs-set`` it sends
several times as many messages per second.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic
from contenders import PAYLOAD, attributes
from contest import Figures, Goal, Measure, Work, cpu, finish, median_ms, rate, run_program, start
from kafka_peers import Task

MESSAGES = 50_000
ROUNDS = 5
PARTITIONS = 6
WARM_UP = 600
SUBSCRIPTION = "all"
TIMEOUT = 30.0
PEERS = Path(__file__).with_name("kafka_peers.py")
CONTENDERS = {
    "ours": "events-kafka",
    "floor": "confluent-kafka",
    "aiokafka": "aiokafka",
    "faststream": "faststream",
    "fs-set": "faststream",
    "fs-batch": "faststream",
    "cf-asyncio": "confluent-kafka",
    "kafka-py": "kafka-python",
}
"""The contenders, and the distribution of each."""

SHARES = {
    ("alone", ""): 50,
    # A share of the messages takes it as long as all messages take the others.
    ("concurrently", "faststream"): 5,
    ("batches", "faststream"): 5,
    ("receive", "faststream"): 5,
}
"""Divisors of the number of messages, for a work or for one contender in it; 1 by default."""

WORKS = {
    "a": Work(
        "concurrently",
        "2,000 tasks send one at a time",
        [
            Goal("msg/s", rate, "aiokafka", 0.7, at_least=True),
            Goal("msg/s", rate, "faststream", 10, at_least=True),
            Goal("CPU µs", cpu, "aiokafka", 1.7),
        ],
    ),
    "b": Work("batches", "send_messages of 1,000", [Goal("CPU µs", cpu, "floor", 2)]),
    "c": Work("alone", "a lone send_message, p50", [Goal("ms", median_ms, "aiokafka", 1.3)]),
    "d": Work(
        "receive",
        "receive, acknowledge 100",
        [Goal("msg/s", rate, "faststream", 8, at_least=True), Goal("CPU µs", cpu, "floor", 5)],
    ),
}


@contextmanager
def find_broker() -> Iterator[str]:
    if address := os.environ.get("EVENTS_TEST_KAFKA"):
        yield address
        return
    # By its full name, because kafka-python has a package of the name kafka.
    sys.path.append(str(Path(__file__).parents[2]))
    from tests.kafka.finding import find_or_start

    with tempfile.TemporaryDirectory() as folder, find_or_start(Path(folder)) as server:
        yield server.address


class Broker:
    """The broker, used for what no contender is measured for."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._admin = AdminClient({"bootstrap.servers": address, "log_level": 3})

    @contextmanager
    def topic(self, contender: str, work: str, messages: int) -> Iterator[Task]:
        """Make a topic for a task; delete it afterwards."""
        topic = f"bench-{uuid.uuid4().hex}"
        task = Task(
            contender=contender,
            work=work,
            messages=messages,
            address=self.address,
            topic=topic,
            subscription=SUBSCRIPTION,
            warm_up=WARM_UP,
        )
        self._admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(TIMEOUT)
        try:
            yield task
        finally:
            self._admin.delete_topics([topic])[topic].result(TIMEOUT)

    def fill(self, task: Task, messages: int) -> None:
        """Spread *messages* over the partitions of the task's topic."""
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": self.address, "enable.idempotence": True, "queue.buffering.max.messages": 1_000_000}
        )
        for number in range(messages):
            producer.produce(task.topic, PAYLOAD, headers=attributes(number), partition=number % PARTITIONS)
        assert producer.flush(TIMEOUT) == 0

    def measure(self, contender: str, work: str, messages: int) -> Figures:
        """Return the figures of one contender at one work."""
        messages //= SHARES.get((work, contender), SHARES.get((work, ""), 1))
        with self.topic(contender, work, messages) as task:
            return finish(start(PEERS, asdict(task))) if work != "receive" else self._receive(task)

    def _receive(self, task: Task) -> Figures:
        self.fill(task, task.warm_up)
        process = start(PEERS, asdict(task))
        # It stops itself when it has received these, and continues when the backlog is there.
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state is not None and state.si_code == os.CLD_STOPPED:
            self.fill(task, task.messages)
            os.kill(process.pid, signal.SIGCONT)
        return finish(process)


@contextmanager
def find() -> Iterator[Measure]:
    with find_broker() as address:
        yield Broker(address).measure


def main() -> None:
    run_program(__doc__, WORKS, CONTENDERS, find, messages=MESSAGES, fewest=5_000, rounds=ROUNDS)


if __name__ == "__main__":
    main()
