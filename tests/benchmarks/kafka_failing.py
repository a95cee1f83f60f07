"""Message 2 of 5 fails on Kafka, and the process is killed: what events-core and FastStream do with it.

The topic has one partition.  The handler fails for message 2, each time, and succeeds for the others.  When all others
are handled, or 20 s later, the program waits until the libraries have committed.  Then it kills the process (SIGKILL),
sends message 6 and starts a process whose handler never fails.  When that one has handled message 6, the program prints
what it got.

Run ``python tests/benchmarks/kafka_failing.py``.  It uses the broker that ``EVENTS_TEST_KAFKA`` names as host:port, or
starts one.  It needs this environment::

    pip install . ./events_kafka "faststream[kafka,confluent]==0.7.8"

All cases run at once, because they mostly wait.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_cost import find_broker

FAILING = 2
OTHERS = {1, 3, 4, 5}
MARK = 6
GROUP = "billing"
START = 60.0
FIRST = 20.0
"""Seconds for the handling of the other messages."""
COMMITTED = 7.0
"""Seconds after which every library here has committed: FastStream does so every 5 s, events-kafka every second."""
SECOND = 120.0
"""Seconds for the second process.  The broker first waits for the session of the killed one to end."""


def say(word: object) -> None:
    print(word, flush=True)


def handle(text: bytes, fails: bool) -> None:
    """Do what the handler of each worker does."""
    number = int(text)
    say(number)
    if fails and number == FAILING:
        raise ValueError(f"message {number} fails")


# The workers.  Each prints "ready", and the number of each message that its handler gets.


def events_core(address: str, topic: str, fails: bool) -> None:
    """events-core on Kafka, default settings."""
    from events_core import ReceivedMessage, consume, create_client

    async def bill(message: ReceivedMessage) -> None:
        handle(message.data, fails)

    async def main() -> None:
        url = f"kafka://{address}/{topic}?subscription={GROUP}&create=subscription&start=earliest"
        async with create_client(url) as client, client.subscribe() as receiver:
            say("ready")
            await consume(receiver, bill)

    asyncio.run(main())


def faststream(broker: Any, message_type: object, topic: str, fails: bool, policy: str) -> None:
    from faststream import AckPolicy, FastStream

    settings: dict[str, Any] = {"ack_policy": AckPolicy[policy]} if policy else {}

    async def bill(message: Any) -> None:
        handle(message.body, fails)
        if policy == "MANUAL":
            await message.ack()

    # Its annotations cannot be strings of this module, because the names are local.
    bill.__annotations__ = {"message": message_type, "return": None}
    broker.subscriber(topic, group_id=GROUP, auto_offset_reset="earliest", **settings)(bill)
    app = FastStream(broker, logger=None)
    app.after_startup(lambda: say("ready"))
    asyncio.run(app.run())


def on_aiokafka(address: str, topic: str, fails: bool, policy: str = "") -> None:
    from faststream.kafka import KafkaBroker
    from faststream.kafka.annotations import KafkaMessage

    faststream(KafkaBroker(address, logger=None), KafkaMessage, topic, fails, policy)


def on_confluent(address: str, topic: str, fails: bool, policy: str = "") -> None:
    from faststream.confluent import KafkaBroker
    from faststream.confluent.annotations import KafkaMessage

    faststream(KafkaBroker(address, logger=None), KafkaMessage, topic, fails, policy)


def aiokafka_default(address: str, topic: str, fails: bool) -> None:
    """FastStream (aiokafka), default settings: AckPolicy.ACK_FIRST."""
    on_aiokafka(address, topic, fails)


def aiokafka_manual(address: str, topic: str, fails: bool) -> None:
    """FastStream (aiokafka), AckPolicy.MANUAL, and message.ack() when the handler succeeds."""
    on_aiokafka(address, topic, fails, "MANUAL")


def aiokafka_nack(address: str, topic: str, fails: bool) -> None:
    """FastStream (aiokafka), AckPolicy.NACK_ON_ERROR."""
    on_aiokafka(address, topic, fails, "NACK_ON_ERROR")


def confluent_default(address: str, topic: str, fails: bool) -> None:
    """FastStream (confluent-kafka), default settings: AckPolicy.ACK_FIRST."""
    on_confluent(address, topic, fails)


def confluent_nack(address: str, topic: str, fails: bool) -> None:
    """FastStream (confluent-kafka), AckPolicy.NACK_ON_ERROR."""
    on_confluent(address, topic, fails, "NACK_ON_ERROR")


CASES: list[Callable[[str, str, bool], None]] = [
    events_core,
    aiokafka_default,
    aiokafka_manual,
    aiokafka_nack,
    confluent_default,
    confluent_nack,
]


class Worker:
    """A process that runs one case, and what it has printed."""

    def __init__(self, case: str, address: str, topic: str, log: Path, fails: bool) -> None:
        self.handled: list[int] = []
        self._lines: queue.Queue[str] = queue.Queue()
        command = [sys.executable, __file__, "--work", case, address, topic, *(["--fails"] if fails else [])]
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def wait(self, condition: Callable[[str], bool], seconds: float) -> bool:
        """Read on until *condition* holds for a line; return false if that is not so within *seconds*."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            if line.isdigit():
                self.handled.append(int(line))
            if condition(line):
                return True
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Trial:
    """The run of one case."""

    def __init__(self, case: str, address: str, folder: Path) -> None:
        self.case = case
        self.address = address
        self.topic = f"failing-{uuid.uuid4().hex[:8]}"
        self.log = folder / f"{case}.log"
        self.admin = AdminClient({"bootstrap.servers": address, "log_level": 3})
        self.producer = confluent_kafka.Producer({"bootstrap.servers": address})

    def run(self) -> str:
        """Return what both processes got."""
        self.admin.create_topics([NewTopic(self.topic, 1, 1)])[self.topic].result(START)
        try:
            first = self._work(fails=True)
            self._send(1, FAILING, *sorted(OTHERS - {1}))
            first.wait(lambda _: set(first.handled) >= OTHERS, FIRST)
            first.wait(lambda _: False, COMMITTED)
            first.kill()
            self._send(MARK)
            second = self._work(fails=False)
            came = second.wait(lambda line: line == str(MARK), SECOND)
            second.kill()
        finally:
            self.admin.delete_topics([self.topic])[self.topic].result(START)
        if not came:
            return f"    has not finished: {self.log.read_text()[-1000:]}"
        times = collections.Counter(first.handled)
        return "\n".join(
            [
                f"    first process:   {', '.join(f'{number} ({n} times)' for number, n in sorted(times.items()))}",
                f"    second process:  {', '.join(map(str, second.handled))}",
                f"    message {FAILING} {'comes again' if FAILING in second.handled else 'is lost'}",
            ]
        )

    def _work(self, fails: bool) -> Worker:
        worker = Worker(self.case, self.address, self.topic, self.log, fails)
        if not worker.wait(lambda line: line == "ready", START):
            worker.kill()
            raise SystemExit(f"{self.case} does not start:\n{self.log.read_text()[-1000:]}")
        return worker

    def _send(self, *numbers: int) -> None:
        for number in numbers:
            self.producer.produce(self.topic, str(number))
        assert self.producer.flush(START) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", nargs=3, metavar=("CASE", "ADDRESS", "TOPIC"), help="run the worker of one case")
    parser.add_argument("--fails", action="store_true", help=f"the worker's handler fails for message {FAILING}")
    parser.add_argument("--only", default=",".join(case.__name__ for case in CASES), help="cases to run")
    given = parser.parse_args()
    if given.work:
        case, address, topic = given.work
        globals()[case](address, topic, given.fails)
        return
    cases = [case for case in CASES if case.__name__ in given.only.split(",")]
    with tempfile.TemporaryDirectory() as folder, find_broker() as address, ThreadPoolExecutor(len(cases)) as pool:
        runs = [pool.submit(Trial(case.__name__, address, Path(folder)).run) for case in cases]
        for case, run in zip(cases, runs, strict=True):
            print(f"{case.__doc__}\n{run.result()}", flush=True)


if __name__ == "__main__":
    main()
