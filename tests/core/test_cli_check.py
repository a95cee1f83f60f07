"""``events check``, run as processes: its findings, and the things that it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from events_core import ConfigurationError, EventConfig
from events_core.testing.configured import ConfiguredHarness

BOUND = 180.0

ACME = """
import asyncio
import os
import signal
import tempfile
from contextlib import asynccontextmanager, nullcontext

import attrs

from events_core.backends.memory import MemoryClient
from events_core.backends.sqlite import SQLiteClient


class Remote(SQLiteClient):
    \"\"\"A broker on which nothing can be set aside.\"\"\"

    @classmethod
    def scratch(cls, config):
        return nullcontext()


class Apart(SQLiteClient):
    \"\"\"A broker whose place for trials is made and removed by coroutines.\"\"\"

    @classmethod
    @asynccontextmanager
    async def scratch(cls, config):
        folder = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="apart-", dir=".")
        try:
            yield attrs.evolve(config, options={**config.options, "path": f"{folder.name}/trial.db"})
        finally:
            await asyncio.to_thread(folder.cleanup)


class Repeating(MemoryClient):
    async def send_message(self, message):
        await super().send_message(message)
        return "1"


class Swallowing(MemoryClient):
    \"\"\"A client whose first send gets a signal and swallows the cancellation.\"\"\"

    sent = False

    async def send_message(self, message):
        if not Swallowing.sent:
            Swallowing.sent = True
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                pass
        return await super().send_message(message)
"""

CONFIG = """
[clients.remote]
backend = "acme_brokers:Remote"
topic_name = "orders"
options = { path = "events.db", subscription = "billing" }
[clients.apart]
backend = "acme_brokers:Apart"
topic_name = "orders"
options = { path = "events.db", subscription = "billing" }
[clients.repeating]
backend = "acme_brokers:Repeating"
topic_name = "orders"
[clients.swallowing]
backend = "acme_brokers:Swallowing"
topic_name = "orders"
"""

REMOTE = ["--config", "c.toml", "--client", "remote"]


class Shell:
    """The command ``events check``, run in its own directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        self._environ = {**os.environ, "PYTHONPATH": path}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command; it runs during the test."""
        # Twice the usual time for each message, because a busy machine may need it.
        patience = [] if "--timeout" in arguments else ["--timeout", "20"]
        return subprocess.Popen(
            [sys.executable, "-m", "events_core.cli", "check", *arguments, *patience],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self._environ,
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Standard output and standard error; the exit code must be *code*."""
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=BOUND)
        assert process.returncode == code, stdout + stderr
        assert "Traceback" not in stderr, stderr
        return stdout, stderr

    def subscriptions(self) -> list[str]:
        """Return the names of the subscriptions in the broker's file."""
        with closing(sqlite3.connect(self.folder / "events.db")) as connection:
            return [name for (name,) in connection.execute("SELECT name FROM subscriptions")]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "acme_brokers.py").write_text(ACME)
    (tmp_path / "c.toml").write_text(CONFIG)
    return Shell(tmp_path)


def rules(text: str) -> dict[str, Any]:
    return {line["rule"]: line for line in map(json.loads, text.splitlines())}


def test_the_table_says_what_is_kept(shell: Shell) -> None:
    """A row for each rule asked for, in the order of the contract, and a line for each test on standard error."""
    table, progress = shell.run("memory:///orders", "-k", "r2", "--rule", "§1")
    head, *rows = table.splitlines()
    assert head.split() == ["rule", "title", "outcome"]
    assert [re.split("  +", row)[::2] for row in rows] == [["§1", "kept"], ["R2", "kept"]]
    assert re.fullmatch(r"(\d+/\d+ kept: test_.+\n)+", progress)
    last = progress.splitlines()[-1]
    assert re.fullmatch(r"(\d+)/\1 .+", last)


def test_what_is_not_declared_or_shown_says_why(shell: Shell) -> None:
    """The reason stands below the table, with the rules that it concerns."""
    table, _ = shell.run("memory:///orders", "-k", "F2", "-k", "F3")
    assert re.search(r"^F2 .+ not shown$", table, re.MULTILINE)
    assert "\nF2 not shown: an outage; it needs Harness.outage in a backend's tests\n" in table
    assert "\nF3 not declared: durable\n" in table


def test_only_what_was_shown_is_called_kept(shell: Shell) -> None:
    """Rules that need a lease, an SDK or an outage are shown partly, or not at all."""
    chosen = [word for rule in ("B1", "Q2", "R2", "R6", "R7") for word in ("-k", rule)]
    text, _ = shell.run("memory:///orders", *chosen, "--json", "-")
    outcomes = {name: rule["outcome"] for name, rule in rules(text).items()}
    assert outcomes == {"B1": "not shown", "Q2": "partly", "R2": "kept", "R6": "partly", "R7": "not shown"}


def test_a_broken_rule_is_named_with_what_was_found(shell: Shell) -> None:
    """The table, the error line and the JSON name the rule; the message has the values that the assert compared."""
    chosen = ["--config", "c.toml", "--client", "repeating", "-k", "P1", "-k", "R2", "--json", "out.ndjson"]
    table, errors = shell.run(*chosen, code=1)
    assert re.search(r"^P1 .+ broken$", table, re.MULTILINE)
    assert "\nP1 broken: test_ids_are_unique_and_those_that_receivers_see: " in table
    assert errors.endswith("events: error: broken: P1\n")
    found = rules((shell.folder / "out.ndjson").read_text())
    assert {name: rule["outcome"] for name, rule in found.items()} == {"P1": "broken", "R2": "kept"}
    test = next(test for test in found["P1"]["tests"] if test["name"].startswith("test_ids_are_unique"))
    assert test["outcome"] == "broken"
    assert re.search(r"assert \d+ == 200", test["message"])
    assert "breaks P1: " in test["message"]


def test_a_check_that_fails_leaves_the_file_of_the_last_one(shell: Shell) -> None:
    """A mistyped command neither loses the old result nor creates an empty file."""
    (shell.folder / "last.ndjson").write_text("known")
    for name in ("last.ndjson", "new.ndjson"):
        shell.run("memory:///orders", "-k", "R99", "--json", name, code=2)
    assert (shell.folder / "last.ndjson").read_text() == "known"
    assert not (shell.folder / "new.ndjson").exists()


def test_a_file_is_not_used_for_its_own_check(shell: Shell) -> None:
    """SQLite is tried on another file in the same folder.  The check leaves neither this one nor the configured one."""
    before = set(shell.folder.iterdir())
    text, progress = shell.run("sqlite:events.db/orders?subscription=billing", "-k", "R2", "-k", "Q1", "--json", "-")
    assert {name: rule["outcome"] for name, rule in rules(text).items()} == {"Q1": "partly", "R2": "kept"}
    assert "are left" not in progress
    assert set(shell.folder.iterdir()) - before <= {shell.folder / "__pycache__"}


def test_a_place_for_trials_may_be_asynchronous(shell: Shell) -> None:
    """The tests run in the place, and its asynchronous context manager removes it after them."""
    text, progress = shell.run("--config", "c.toml", "--client", "apart", "-k", "R2", "--json", "-")
    assert {name: rule["outcome"] for name, rule in rules(text).items()} == {"R2": "kept"}
    assert "are left" not in progress
    assert list(shell.folder.glob("apart-*")) == []
    assert not (shell.folder / "events.db").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_removes_an_asynchronous_place(shell: Shell, number: signal.Signals, code: int) -> None:
    """An interrupted check removes the place before it ends."""
    with shell.start("--config", "c.toml", "--client", "apart", "-k", "R1", "-k", "R11") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("1/")
        assert list(shell.folder.glob("apart-*")) != []
        process.send_signal(number)
        _, stderr = process.communicate(timeout=BOUND)
    assert process.returncode == code, stderr
    assert list(shell.folder.glob("apart-*")) == []


def test_subscriptions_are_deleted_and_topics_named(shell: Shell) -> None:
    """Without a place for trials, the check leaves topics and prints their names.  It uses no configured topic."""
    _, progress = shell.run(*REMOTE, "-k", "Q1", "-k", "R12", "-k", "§3")
    (prefix,) = re.findall(r"^events: note: topics named '(events-check-\w+)-…' are left", progress, re.MULTILINE)
    assert shell.subscriptions() == []
    with closing(sqlite3.connect(shell.folder / "events.db")) as connection:
        topics = [name for (name,) in connection.execute("SELECT name FROM topics")]
    assert topics
    assert all(name.startswith(prefix) for name in topics)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_subscription(shell: Shell, number: signal.Signals, code: int) -> None:
    """An interrupted check deletes the subscriptions of the running test, says how far it was, and prints no table."""
    with shell.start(*REMOTE, "-k", "R1", "-k", "R11") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("1/")
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=BOUND)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert re.search(r"^events: interrupted: \d+ of \d+ tests were run$", stderr, re.MULTILINE)
    assert "Traceback" not in stderr, stderr
    assert shell.subscriptions() == []


def test_a_signal_ends_a_check_whose_test_swallows_the_cancellation(shell: Shell) -> None:
    """The test is the first one that sends; no other test runs after it."""
    stdout, stderr = shell.run("--config", "c.toml", "--client", "swallowing", "-k", "P1", code=130)
    assert stdout == ""
    assert re.search(r"^events: interrupted: \d+ of \d+ tests were run$", stderr, re.MULTILINE)
    assert "broken" not in stderr


INTERRUPTED = """
import asyncio, os, signal, time
from events_core.cli.ending import Interrupt

def get_signal():
    os.kill(os.getpid(), signal.SIGTERM)

class Finalized:
    def __del__(self):
        get_signal()

with Interrupt() as interrupt:
    {before}
    try:
        with interrupt.allowed():
            {work}
    except KeyboardInterrupt:
        print(interrupt.code.name, end="")
"""

SIGNALLED = {
    "before the work": ("get_signal()", "time.sleep(600)"),
    "in a finalizer": ("pass", "Finalized(); asyncio.run(asyncio.sleep(600))"),
    "in work that blocks": ("pass", "get_signal(); time.sleep(600)"),
    "in a loop": ("pass", "asyncio.run(asyncio.to_thread(lambda: (get_signal(), time.sleep(1)))); time.sleep(600)"),
}


@pytest.mark.parametrize(("before", "work"), SIGNALLED.values(), ids=SIGNALLED)
def test_a_signal_interrupts_work_wherever_it_comes(before: str, work: str) -> None:
    """Nothing is printed by a finalizer or a callback, and the work does not go on."""
    program = INTERRUPTED.format(before=before, work=work)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "TERMINATED", "")


def test_without_pytest_it_says_what_to_install() -> None:
    """One line with the command, as for the other extras."""
    program = "import sys; sys.modules['pytest'] = None; from events_core.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "check", "memory:///orders"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 2
    assert done.stderr == "events: error: pytest is not installed: pip install 'events-core[cli,testing]'\n"


BAD = {
    "no such rule": (["memory:///orders", "-k", "R99"], 2, "no rule named 'R99'; did you mean 'R9'?"),
    "rule of the core": (["memory:///orders", "-k", "b4"], 2, "the kit has no test of rule 'B4'"),
    "no such option": (["memory:///orders?subscripton=x"], 2, "did you mean 'subscription'"),
    "no time": (["memory:///orders", "--timeout", "0"], 2, "positive number of seconds"),
    "no such folder": (["sqlite:none/events.db/orders"], 2, "cannot make a folder in 'none': No such file"),
    "no file for JSON": (["memory:///orders", "--json", "none/out"], 2, "cannot write 'none/out': No such file"),
    "nobody there": (["--config", "c.toml", "--client", "remote"], 1, "events.db"),
}


@pytest.mark.parametrize(("arguments", "code", "text"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_one_clear_line(shell: Shell, arguments: list[str], code: int, text: str) -> None:
    """Nothing is run where arguments are wrong, nor where the broker cannot be used at all."""
    (shell.folder / "events.db").write_text("no database" * 100)
    stdout, stderr = shell.run(*arguments, code=code)
    assert stdout == ""
    (line,) = stderr.splitlines()
    assert line.startswith("events: error: ")
    assert text in line


# The harness


@pytest.fixture
def harness() -> Callable[..., ConfiguredHarness]:
    config = EventConfig(
        "orders", options={"path": "e.db", "subscription": "billing", "start": "earliest"}, backend="sqlite"
    )
    return lambda **times: ConfiguredHarness(config, **times)


def test_the_harness_keeps_only_the_backends_own_options(harness: Callable[..., ConfiguredHarness]) -> None:
    """The address of the broker is kept; the tests choose the options that every backend has."""
    config = harness().config("topic", {"ordering": "true"})
    assert (config.topic_name, config.backend) == ("topic", "sqlite")
    assert dict(config.options) == {"path": "e.db", "create": "all", "ordering": "true"}


def test_a_slow_broker_gets_more_of_every_time(harness: Callable[..., ConfiguredHarness]) -> None:
    """Patience, settle time and bound grow together, and a lease is always within the bound."""
    usual, slow = harness(), harness(patience=40.0, lease=60.0)
    assert slow.patience == 4 * usual.patience == 40
    assert slow.settle_time == 4 * usual.settle_time
    assert slow.bound == 4 * usual.bound + 3 * slow.lease


def test_every_run_has_names_of_its_own(harness: Callable[..., ConfiguredHarness]) -> None:
    """Topics and subscriptions begin alike within one run, and differ between two."""
    one, other = harness(), harness()
    topics = [one.topic_name(), one.topic_name(), other.topic_name()]
    assert len(set(topics)) == 3
    assert one.name(topics[0], "shared").startswith(one.prefix)
    assert one.prefix.startswith("events-check-")
    assert one.prefix != other.prefix


def test_a_name_that_is_no_text_has_nothing_to_delete(harness: Callable[..., ConfiguredHarness]) -> None:
    """A test of the kit tries such names, and cleaning up goes on after it."""
    tried = harness()
    tried.config(tried.topic_name(), {"dead_letter_topic": "x\ud800"})
    with pytest.raises(ConfigurationError):
        tried.config("x\ud800", {})
    asyncio.run(tried.clean_up())
    assert tried.left == {}
