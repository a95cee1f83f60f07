"""Pub/Sub on an emulator: events-gcp, Google's client and gcloud-aio-pubsub, with bare ``grpc.aio`` as the floor.

Run ``python tests/benchmarks/pubsub_cost.py [--only a,b] [--messages N] [--rounds N] [--held]``; without options it
takes four minutes.  It uses the emulator that ``EVENTS_TEST_PUBSUB`` or ``PUBSUB_EMULATOR_HOST`` names.  Without one it
starts an emulator with ``gcloud``.  The column of gcloud-aio needs ``pip install gcloud-aio-pubsub``.

The contenders take turns in one run.  Each has a separate process, and the CPU is that of this process.  Compare the
ratios, because absolute figures mean little on a shared machine.  The program prints the median of the rounds, with the
least and the most.

The emulator sends at most 100 messages every 50 ms into a stream.  So the rate of receiving says nothing, and only its
CPU counts, without the CPU that the same process spends when it waits and nothing comes.

``--held`` runs work f alone: no lease may lapse while the application's loop is blocked.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from contenders import PAYLOAD, RESPONSE, attributes
from contest import (
    Figures,
    Goal,
    Round,
    Work,
    compete,
    cpu,
    finish,
    installed,
    median_ms,
    print_heading,
    rate,
    start,
)
from pubsub_peers import LEASE, PROJECT, Task

MESSAGES = 20_000
ROUNDS = 3
HELD = 1_000
PEERS = Path(__file__).with_name("pubsub_peers.py")
CONTENDERS = {
    "ours": "events-gcp",
    "official": "google-cloud-pubsub",
    "gcloud-aio": "gcloud-aio-pubsub",
    "floor": "grpcio",
}
"""The contenders, and the distribution of each."""

SHARES = {
    ("alone", ""): 40,
    ("ordered", ""): 10,
    # These send each message in its own request, or wait for each one.  A share of the messages takes them as long as
    # all messages take the others.
    ("concurrently", "gcloud-aio"): 10,
    ("ordered", "official"): 50,
}
"""Divisors of the number of messages, for a work or for one contender in it; 1 by default."""


class Emulator:
    """The emulator, used over REST so that this process needs no gRPC and none of its threads."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://{self.address}/v1/projects/{PROJECT}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    @contextmanager
    def topic(self) -> Iterator[str]:
        name = f"t-{uuid.uuid4().hex}"
        self.ask("PUT", f"topics/{name}", {})
        yield name
        self.ask("DELETE", f"topics/{name}")

    @contextmanager
    def backlog(self, topic: str, messages: int, *, ordered: bool = False, lease: int = 60) -> Iterator[str]:
        """Make a subscription with a backlog of *messages*, all of one ordering key or without a key."""
        name = f"s-{uuid.uuid4().hex}"
        settings = {"ackDeadlineSeconds": lease, "enableMessageOrdering": ordered}
        self.ask("PUT", f"subscriptions/{name}", {"topic": f"projects/{PROJECT}/topics/{topic}", **settings})
        common = {"data": base64.b64encode(PAYLOAD).decode(), "orderingKey": "key" if ordered else ""}
        for first in range(0, messages, 1_000):
            batch = [{**common, "attributes": attributes(n)} for n in range(first, min(first + 1_000, messages))]
            self.ask("POST", f"topics/{topic}:publish", {"messages": batch})
        yield name
        self.ask("DELETE", f"subscriptions/{name}")

    def pull(self, subscription: str) -> int:
        """Return how many messages another receiver would get now."""
        answer = self.ask(
            "POST", f"subscriptions/{subscription}:pull", {"maxMessages": HELD, "returnImmediately": True}
        )
        return len(answer.get("receivedMessages", []))


@contextmanager
def find_emulator() -> Iterator[Emulator]:
    sys.path.append(str(Path(__file__).parents[2]))
    from tests.gcp.emulator import find_or_start

    with tempfile.TemporaryDirectory() as folder, find_or_start(Path(folder)) as found:
        yield Emulator(found.address)


# Measuring


def start_contender(emulator: Emulator, task: Task) -> subprocess.Popen[str]:
    return start(PEERS, asdict(task), {"PUBSUB_EMULATOR_HOST": emulator.address})


def run(emulator: Emulator, task: Task) -> Figures:
    return finish(start_contender(emulator, task))


def measure(emulator: Emulator, contender: str, work: str, messages: int) -> Figures:
    """Return the figures of one contender at one work."""
    messages //= SHARES.get((work, contender), SHARES.get((work, ""), 1))
    with emulator.topic() as topic:
        if work not in ("receive", "ordered"):
            task = Task(contender=contender, work=work, messages=messages, topic=topic)
            return run(emulator, task)
        with emulator.backlog(topic, messages + RESPONSE, ordered=work == "ordered") as subscription:
            task = Task(
                contender=contender,
                work=work,
                messages=messages,
                topic=topic,
                subscription=subscription,
                warm_up=RESPONSE,
            )
            return run(emulator, task)


def net_cpu(figures: Figures) -> float:
    return (figures["cpu"] - figures["idle"] * figures["seconds"]) / figures["messages"] * 1e6


WORKS = {
    "a": Work(
        "concurrently",
        "2,000 tasks send one at a time",
        [Goal("msg/s", rate, "official", 4, at_least=True), Goal("CPU µs", cpu, "official", 1 / 4)],
    ),
    "b": Work("batches", "send_messages of 1,000", [Goal("CPU µs", cpu, "floor", 3)]),
    "c": Work("alone", "a lone send_message, p50", [Goal("ms", median_ms, "floor", 1.8)]),
    "d": Work(
        "receive",
        "receive and acknowledge",
        [Goal("CPU µs", net_cpu, "official", 1 / 3), Goal("CPU µs", net_cpu, "floor", 2.5)],
    ),
    "e": Work("ordered", "the same, one ordering key", [Goal("msg/s", rate, "official", 10, at_least=True)]),
}


def print_idle(rounds: Sequence[Round]) -> None:
    shares = (f"{name} {statistics.median(each[name]['idle'] for each in rounds):.2%}" for name in rounds[0])
    print(f"d does not include the cost of waiting, in shares of a core: {', '.join(shares)}")


# A blocked loop


def hold(emulator: Emulator, work: str) -> str:
    """Return a line about messages held while the loop is blocked and a competitor asks for them."""
    with emulator.topic() as topic, emulator.backlog(topic, HELD, lease=LEASE) as subscription:
        task = Task(contender="ours", work=work, messages=HELD, topic=topic, subscription=subscription)
        holder = start_contender(emulator, task)
        assert holder.stdout is not None
        holder.stdout.readline()
        elsewhere = 0
        while holder.poll() is None:
            elsewhere += emulator.pull(subscription)
            time.sleep(0.05)  # as often as the emulator looks for a stream
        figures = finish(holder)
        time.sleep(LEASE + 1)
        left = emulator.pull(subscription)
    found = {
        "redelivered to a competitor": elsewhere,
        "to the holder": figures["redelivered"],
        "refused when acknowledged": figures["refused"],
        "left at the end": left,
    }
    counts = ", ".join(f"{name} {count:.0f}" for name, count in found.items())
    return f"{work}: {figures['messages']:,.0f} held: {counts}: {'not met' if any(found.values()) else 'met'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="letters of the works to run, such as a,b")
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"at least 4,000; {MESSAGES:,} by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS} by default")
    parser.add_argument("--held", action="store_true", help="run only f, which takes two minutes")
    chosen = parser.parse_args()
    letters = [letter for letter in chosen.only.split(",") if letter] or ([] if chosen.held else [*WORKS])
    if chosen.messages < 4_000 or not WORKS.keys() >= set(letters):
        parser.error(f"--only takes letters of {', '.join(WORKS)}, and --messages takes 4,000 or more")
    contenders = installed(CONTENDERS)
    with find_emulator() as emulator:
        if letters:
            print_heading(contenders)
        for letter in letters:
            rounds = compete(
                letter, WORKS[letter], contenders, partial(measure, emulator), chosen.messages, chosen.rounds
            )
            if letter == "d":
                print_idle(rounds)
        for work in ("held-sleep", "held-work") if chosen.held else ():
            print(f"f {hold(emulator, work)}")


if __name__ == "__main__":
    main()
