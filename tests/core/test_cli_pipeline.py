"""Ten thousand lines through one sending and two competing receiving processes."""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

EVENTS = [sys.executable, "-m", "events_core.cli"]
URL = "sqlite:events.db/orders?subscription=billing"
LINES = 10_000
KEYS = 100
BOUND = 300.0


def line(number: int) -> str:
    """One KB: a number, its key, and its place in its key."""
    key = number % KEYS
    data = {"number": number, "place": number // KEYS}
    text = json.dumps({"data": data, "attributes": {"origin": "pipeline"}, "ordering_key": f"key-{key}"})
    padding = random.Random(number).randbytes((1024 - len(text)) // 2 - 8).hex()
    return json.dumps(
        {"data": {**data, "padding": padding}, "attributes": {"origin": "pipeline"}, "ordering_key": f"key-{key}"}
    )


def arrivals(processes: Sequence[subprocess.Popen[bytes]], ends: float) -> Iterator[tuple[int, dict[str, Any]]]:
    """Which process printed what, in the order of printing.

    One thread reads both: a process acknowledges only what has been read, so that a key's next message, which waits
    for that, is never seen before.
    """
    rests = [b"" for _ in processes]
    with selectors.DefaultSelector() as selector:
        for index, process in enumerate(processes):
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ, index)
        while selector.get_map():
            ready = selector.select(ends - time.monotonic())
            assert ready, "not everything arrived in time"
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                *lines, rests[key.data] = (rests[key.data] + chunk).split(b"\n")
                yield from ((key.data, json.loads(text)) for text in lines)


def count_of(table: str, file: Path) -> int:
    """Return the number of rows of *table*."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as opened:
        count: int = opened.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count


def sessions(file: Path) -> int:
    """Return how many receivers have joined."""
    with suppress(sqlite3.OperationalError):
        return count_of("sessions", file)
    return 0  # the file is being created


def test_every_line_is_accounted_for_and_keys_keep_their_order(tmp_path: Path) -> None:
    """Each of 10,000 lines of 1 KB arrives in exactly one of two processes, and each key's in order over both."""
    source = tmp_path / "lines.ndjson"
    source.write_text("".join(line(number) + "\n" for number in range(LINES)))
    receive = [*EVENTS, "receive", URL, "--json"]
    send = [*EVENTS, "send", URL, "--ndjson", "--file", source.name, "--quiet"]
    numbers: list[int] = []
    places: dict[str, list[int]] = defaultdict(list)
    shares = [0, 0]
    with ExitStack() as stack:
        receivers = [
            stack.enter_context(subprocess.Popen(receive, cwd=tmp_path, stdout=subprocess.PIPE, bufsize=0))
            for _ in range(2)
        ]
        for process in receivers:
            stack.callback(process.kill)
        ends = time.monotonic() + BOUND
        # Otherwise the first of them may have received everything when the second one joins.
        while sessions(tmp_path / "events.db") < len(receivers):
            assert time.monotonic() < ends
            time.sleep(0.05)
        sender = stack.enter_context(subprocess.Popen(send, cwd=tmp_path, stdout=subprocess.PIPE))
        stack.callback(sender.kill)
        for index, message in arrivals(receivers, ends):
            data = json.loads(message["data"])
            numbers.append(data["number"])
            places[message["ordering_key"]].append(data["place"])
            shares[index] += 1
            if len(numbers) == LINES:
                # A receiver has little time after the signal to settle what it has printed.
                while count_of("messages", tmp_path / "events.db"):
                    assert time.monotonic() < ends
                    time.sleep(0.05)
                for process in receivers:
                    process.send_signal(signal.SIGINT)
        assert sender.communicate(timeout=BOUND)[0] == b"%d\n" % LINES
        assert [process.wait(BOUND) for process in receivers] == [130, 130]
    assert sorted(numbers) == list(range(LINES))
    assert all(order == list(range(LINES // KEYS)) for order in places.values())
    assert min(shares) > 0
    rest = subprocess.run([*receive, "--timeout", "0.5"], cwd=tmp_path, capture_output=True, timeout=BOUND, check=False)
    assert (rest.returncode, rest.stdout) == (3, b"")
