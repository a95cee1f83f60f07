"""SQS and SNS on an emulator: the calls of events-sqs, and its CPU next to bare aiobotocore and Kombu.

Run ``python tests/benchmarks/sqs_cost.py [--only a,b] [--topology sns] [--messages N] [--rounds N]``.  It uses the
emulator whose URL is in ``EVENTS_TEST_SQS``, or starts one.  Kombu needs ``pip install kombu boto3``.

*CPU.*  The contenders take turns in one run.  Each has a separate process, and the CPU is that of this process.  The
floor, bare aiobotocore, sends requests of ten that are written by hand.  The program prints the median of the rounds,
with the least and the most of the ratios.

*Calls.*  A proxy counts the requests that events-sqs makes.  Many tasks send, and many handlers acknowledge, one
message at a time.  The least possible is 100 calls to send 1,000 messages, 100 to receive them, and 100 to acknowledge
them.  On FIFO the messages have 1,000 keys.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import botocore.config
import botocore.session
from aws_calls import Calls
from aws_calls import counted as counting_proxy
from contest import Figures, Goal, Work, cpu, finish, installed, print_heading, print_rows, rate, start, take_turns
from sqs_peers import FULL, REGION, Task

from events_sqs.policy import policy

MESSAGES = 5_000
ROUNDS = 3
KEYS = 1_000
WARM_UP = 100
SUBSCRIPTION = "all"
MOST_CALLS = 1.15
"""The goal for calls, as a multiple of the least possible."""
MOST_IDLE_CALLS = 3
"""The goal for the calls of an idle receiver in a minute."""
PEERS = Path(__file__).with_name("sqs_peers.py")
CONTENDERS = {"ours": "events-sqs", "floor": "aiobotocore", "kombu": "kombu"}
"""The contenders, and the distribution of each."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

SHARES = {
    # It makes a request for each message.  A share of the messages takes it as long as all messages take the others.
    ("concurrently", "kombu"): 5,
    ("batches", "kombu"): 5,
    ("receive", "kombu"): 5,
}
"""Divisors of the number of messages, for one contender in a work; 1 by default."""

WORKS = {
    "a": Work(
        "concurrently",
        "2,000 tasks send one at a time",
        [Goal("CPU µs", cpu, "floor", 1.3), Goal("CPU µs", cpu, "kombu", 1), Goal("msg/s", rate, "kombu", 1, True)],
    ),
    "b": Work("batches", "send_messages of 1,000", [Goal("CPU µs", cpu, "floor", 1.3)]),
    "c": Work(
        "receive",
        "receive, acknowledge 100",
        [Goal("CPU µs", cpu, "floor", 1.5), Goal("CPU µs", cpu, "kombu", 1), Goal("msg/s", rate, "kombu", 1, True)],
    ),
}
COUNTED = {"d": False, "e": True}
"""The works whose calls are counted, and whether they are on FIFO."""
IDLE = "f"
LETTERS = [*WORKS, *COUNTED, IDLE]

KINDS = {
    "send": ("Publish", "PublishBatch", "SendMessage", "SendMessageBatch"),
    "receive": ("ReceiveMessage",),
    "acknowledge": ("DeleteMessage", "DeleteMessageBatch"),
}
"""The operations that are counted together."""


@contextmanager
def find_emulator() -> Iterator[str]:
    if address := os.environ.get("EVENTS_TEST_SQS"):
        yield address
        return
    sys.path.append(str(Path(__file__).parents[2]))
    from tests.sqs.finding import ministack

    with tempfile.TemporaryDirectory() as folder, ministack(Path(folder)) as server:
        yield server.url


class Emulator:
    """The emulator, used for what no contender is measured for."""

    def __init__(self, address: str) -> None:
        self.address = address
        session = botocore.session.get_session()
        settings: dict[str, Any] = {
            "region_name": REGION,
            "endpoint_url": address,
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "config": botocore.config.Config(read_timeout=30),
        }
        self._sqs = session.create_client("sqs", **settings)
        self._sns = session.create_client("sns", **settings)

    @contextmanager
    def topic(self, contender: str, work: str, messages: int, topology: str, fifo: bool = False) -> Iterator[Task]:
        """Make a topic and a queue for a task; delete both afterwards.

        Kombu always gets a bare queue, because it has no attributes on SNS.
        """
        topology = "queue" if contender == "kombu" else topology
        topic, suffix = f"bench-{uuid.uuid4().hex[:12]}", ".fifo" if fifo else ""
        # A topic that is a queue has one subscription, with its own name.
        subscription = SUBSCRIPTION if topology == "sns" else topic
        queue = f"{f'{topic}-{subscription}' if topology == 'sns' else topic}{suffix}"
        marks = {"FifoQueue": "true"} if fifo else {}
        queue_url = self._sqs.create_queue(QueueName=queue, Attributes=marks)["QueueUrl"]
        topic_arn = self._join(f"{topic}{suffix}", queue_url, fifo) if topology == "sns" else ""
        try:
            yield Task(
                contender=contender,
                work=work,
                messages=messages,
                address=self.address,
                topology=topology,
                fifo=fifo,
                keys=KEYS if fifo else 0,
                topic=topic,
                subscription=subscription,
                warm_up=0 if fifo else WARM_UP,
                topic_arn=topic_arn,
                queue_url=queue_url,
            )
        finally:
            if topic_arn:
                self._sns.delete_topic(TopicArn=topic_arn)
            self._sqs.delete_queue(QueueUrl=queue_url)

    def _join(self, topic: str, queue_url: str, fifo: bool) -> str:
        """Make *topic* with raw delivery to the queue; return its name."""
        marks = {"FifoTopic": "true"} if fifo else {}
        topic_arn: str = self._sns.create_topic(Name=topic, Attributes=marks)["TopicArn"]
        told = self._sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
        arn = told["Attributes"]["QueueArn"]
        self._sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"Policy": policy(arn, topic_arn)})
        self._sns.subscribe(
            TopicArn=topic_arn,
            Protocol="sqs",
            Endpoint=arn,
            Attributes={"RawMessageDelivery": "true"},
        )
        return topic_arn

    def fill(self, task: Task, messages: int) -> None:
        """Let the contender that receives them send *messages*, because each has a form of its own."""
        finish(run(replace(task, work="fill", messages=messages)))

    def measure(self, contender: str, work: str, messages: int, topology: str) -> Figures:
        """Return the figures of one contender at one work."""
        messages //= SHARES.get((work, contender), 1)
        with self.topic(contender, work, messages, topology) as task:
            return finish(run(task)) if work != "receive" else self._receive(task)

    def _receive(self, task: Task) -> Figures:
        self.fill(task, task.warm_up)
        process = run(task)
        # It stops itself when it has received these, and continues when the backlog is there.
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state is not None and state.si_code == os.CLD_STOPPED:
            self.fill(task, task.messages)
            os.kill(process.pid, signal.SIGCONT)
        return finish(process)


def run(task: Task) -> Any:
    return start(PEERS, asdict(task), CREDENTIALS)


# Counting


def measured(emulator: Emulator, task: Task, proxy: str, calls: Calls) -> Counter[str]:
    """Count the calls of a task that goes through the proxy."""
    figures = finish(run(replace(task, address=proxy)))
    return calls.between(figures["began"], figures["ended"])


def print_calls(title: str, messages: int, found: Counter[str], kinds: list[str]) -> None:
    """Print the calls of each kind per 1,000 messages, and their ratio to the least possible."""
    least = 1000 / FULL
    left = Counter(found)
    for kind in kinds:
        count = sum(left.pop(name, 0) for name in KINDS[kind])
        spent = count * 1000 / messages
        judged = "met" if spent <= MOST_CALLS * least else "not met"
        print(f"{title:44}{kind:14}{spent:9.1f}{spent / least:9.2f}   ≤ {MOST_CALLS:g} {judged}")
    if left:
        print(f"{title:44}others: {', '.join(f'{count} {name}' for name, count in sorted(left.items()))}")
    sys.stdout.flush()


def count_calls(letter: str, emulator: Emulator, messages: int, topology: str, fifo: bool) -> None:
    """Count the calls to send, then to receive a backlog, and then to do both at once."""
    where = f"{letter} {'FIFO, 1,000 keys' if fifo else 'standard'}, {topology}"
    with counting_proxy(emulator.address) as (proxy, calls):
        with emulator.topic("ours", "send one by one", messages, topology, fifo) as task:
            found = measured(emulator, task, proxy, calls)
            print_calls(f"{where}: send", messages, found, ["send"])
            found = measured(emulator, replace(task, work="receive one by one"), proxy, calls)
            print_calls(f"{where}: receive a backlog", messages, found, ["receive", "acknowledge"])
        with emulator.topic("ours", "all at once", messages, topology, fifo) as task:
            found = measured(emulator, task, proxy, calls)
            print_calls(f"{where}: all at once", messages, found, [*KINDS])


def count_idle_calls(letter: str, emulator: Emulator, topology: str) -> None:
    """Count the calls of a receiver in a minute without messages."""
    with counting_proxy(emulator.address) as (proxy, calls), emulator.topic("ours", "idle", 0, topology) as task:
        found = measured(emulator, task, proxy, calls)
    judged = "met" if found.total() <= MOST_IDLE_CALLS else "not met"
    print(f"{letter} an idle receiver, calls in a minute: {dict(found)}   ≤ {MOST_IDLE_CALLS} {judged}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(LETTERS), help="letters of the works to run, such as a,b")
    parser.add_argument("--with", default=",".join(CONTENDERS), dest="contenders", help="contenders: ours,floor,kombu")
    parser.add_argument("--topology", default="sns", choices=["sns", "queue"], help="sns by default")
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"{MESSAGES:,} by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS} by default")
    chosen = parser.parse_args()
    letters, names = chosen.only.split(","), chosen.contenders.split(",")
    if chosen.messages < 1_000 or not set(LETTERS) >= set(letters) or not CONTENDERS.keys() >= set(names):
        parser.error(
            f"--only takes letters of {', '.join(LETTERS)}, --with takes {', '.join(CONTENDERS)}, "
            "and --messages takes 1,000 or more"
        )
    contenders = installed({name: CONTENDERS[name] for name in names})
    with find_emulator() as address:
        emulator = Emulator(address)
        if cpu_letters := [letter for letter in letters if letter in WORKS]:
            print_heading(contenders)
        for letter in cpu_letters:
            work = WORKS[letter]
            rounds = take_turns(
                lambda contender, name=work.name: emulator.measure(contender, name, chosen.messages, chosen.topology),
                contenders,
                chosen.rounds,
            )
            print_rows(letter, work, contenders, rounds)
        if set(letters) & COUNTED.keys():
            print(f"\n{'calls per 1,000 messages':44}{'to':14}{'calls':>9}{'÷ least':>9}   goal")
        for letter in letters:
            if letter in COUNTED:
                count_calls(letter, emulator, chosen.messages, chosen.topology, COUNTED[letter])
        if IDLE in letters:
            count_idle_calls(IDLE, emulator, chosen.topology)


if __name__ == "__main__":
    main()
