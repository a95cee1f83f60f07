"""A run of the kit compares what it showed with the record of a backend, or writes the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUITE = '''
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.testing import Harness, rule
from events_core.testing.skipping import SHORT_RUN, not_declared, not_shown


class RecordedHarness(Harness):
    proof = Path("records/memory.json")
    exceptions = {"test_that_passes_now": "the emulator fails now and then"}
    not_applicable = {"outage": "there is no connection"}

    def config(self, topic_name, options):
        return EventConfig(topic_name, options=options, backend="memory")

    def versions(self):
        return {"memory": "of 2026"}


class TestRecorded:
    """A small suite.

    It has a test for each state."""

    @pytest.fixture
    def harness(self):
        return RecordedHarness()

    @rule("S1", proves=["exactly_once"])
    async def test_that_passes(self, stage):
        pass

    @rule("S2", proves=["replay"])
    async def test_that_passes_now(self, stage):
        pass

    @rule("F1")
    async def test_an_outage(self, stage):
        stage.require_outage()

    @rule("P7")
    async def test_lost_answers(self, stage):
        stage.require_lost_answers()

    @rule("S2", "R8")
    async def test_by_chance(self, stage):
        not_shown(SHORT_RUN)

    @rule("S1", "F3")
    @pytest.mark.parametrize("number", [1, 2])
    async def test_durability(self, stage, number):
        not_declared("durable")
'''

ARGUMENTS = ("-c", os.devnull, "--rootdir", ".", "--noconftest", "-p", "no:cacheprovider")


def run(folder: Path, *arguments: str, suite: str = SUITE) -> subprocess.CompletedProcess[str]:
    """Run the suite in *folder*, with these arguments of pytest."""
    (folder / "test_recorded.py").write_text(suite)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *ARGUMENTS, "-p", "events_core.testing.plugin", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def file(folder: Path) -> Path:
    """Return the path of the record."""
    return folder / "records" / "memory.json"


def written(folder: Path, *arguments: str) -> dict[str, Any]:
    """Return the record that a run has written."""
    done = run(folder, "--events-proof", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    record: dict[str, Any] = json.loads(file(folder).read_text())
    return record


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the record that a run in one process has written."""
    return written(tmp_path_factory.mktemp("recorded"))


def keep(folder: Path, record: dict[str, Any]) -> None:
    """Write a record into *folder*."""
    file(folder).parent.mkdir()
    file(folder).write_text(json.dumps(record))


def test_the_record_has_the_state_of_each_rule(record: dict[str, Any]) -> None:
    """Each state other than kept has its reason."""
    assert {rule: found["state"] for rule, found in record["rules"].items()} == {
        "P7": "not shown",
        "S1": "kept",
        "S2": "excepted",
        "F1": "not applicable",
        "F3": "not declared",
    }
    assert record["rules"]["S1"]["why"] == [{"state": "not declared", "reason": "durable"}]
    assert record["rules"]["F1"]["why"] == [{"state": "not applicable", "reason": "there is no connection"}]


def test_an_exception_is_recorded_although_its_test_passed(record: dict[str, Any]) -> None:
    """A fault that shows now and then is in every record, with its tests."""
    assert record["rules"]["S2"]["why"] == [
        {"state": "excepted", "reason": "the emulator fails now and then", "tests": ["test_that_passes_now"]}
    ]
    assert record["unproven"] == {"replay": "the emulator fails now and then"}


def test_what_depends_on_chance_is_not_recorded(record: dict[str, Any]) -> None:
    """A busy machine may keep a test from its situation; the next run would show something else."""
    assert "R8" not in record["rules"]


def test_the_record_says_what_was_tested(record: dict[str, Any]) -> None:
    """It has the backend, its capabilities, the suite and the versions."""
    assert record["backend"] == "memory"
    assert record["suite"] == "A small suite."
    assert record["versions"].keys() == {"events-core", "memory"}
    assert record["capabilities"]["ordering"] == "subscription"
    assert record["capabilities"]["limits"]["max_attributes"] == 100
    assert record["full_capabilities"]["durable"] == "none"
    assert record["proven"] == ["exactly_once"]


def test_several_processes_write_the_same(record: dict[str, Any], tmp_path: Path) -> None:
    """With pytest-xdist, no process has run all tests."""
    assert written(tmp_path, "-n", "2") == record


def test_a_run_that_shows_what_is_recorded_passes(record: dict[str, Any], tmp_path: Path) -> None:
    """Other versions of what was tested do not matter."""
    keep(tmp_path, {**record, "versions": {"memory": "of 2025"}})
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "records of what was proven" not in done.stdout


def test_a_run_that_shows_something_else_fails(record: dict[str, Any], tmp_path: Path) -> None:
    """The report says in which lines the record differs, and how to write it."""
    keep(tmp_path, {**record, "rules": {**record["rules"], "S2": {"state": "kept"}}})
    done = run(tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "does not say what was shown; --events-proof writes it" in done.stdout
    assert '+      "state": "excepted",' in done.stdout


def test_a_missing_record_fails_the_run(tmp_path: Path) -> None:
    """A backend that names a record must have it."""
    assert run(tmp_path).returncode == pytest.ExitCode.TESTS_FAILED


def test_a_part_of_the_suite_compares_nothing(record: dict[str, Any], tmp_path: Path) -> None:
    """Nobody wants to hear of the record after a single test."""
    keep(tmp_path, {**record, "rules": {}})
    done = run(tmp_path, "-k", "test_that_passes")
    assert done.returncode == 0, done.stdout


def test_a_part_of_the_suite_writes_nothing(tmp_path: Path) -> None:
    """A record is about the whole suite; the report says why it is not written."""
    done = run(tmp_path, "--events-proof", "-k", "test_that_passes")
    assert "is not written, because only 2 of 6 tests ran" in done.stdout
    assert not file(tmp_path).exists()


def test_a_failed_run_writes_nothing(tmp_path: Path) -> None:
    """What is broken is no exception, and is not recorded."""
    done = run(tmp_path, "--events-proof", suite=SUITE.replace("pass\n", "raise ValueError\n", 1))
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "is not written, because a test failed" in done.stdout
    assert not file(tmp_path).exists()
