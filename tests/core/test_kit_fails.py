"""The conformance kit can fail: each broken backend is found out, on the rule that it breaks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of the broken backends."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(Path(__file__).with_name("broken_backends.py"))),
            *("-c", os.devnull, "--rootdir", str(tmp_path_factory.mktemp("kit"))),
            *("-p", "no:cacheprovider", "-p", "events_core.testing.plugin", "--tb=short"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("suite", "rule"),
    [
        ("TestLosesAttributes", "§1"),
        ("TestIgnoresUnknownOptions", "O1"),
        ("TestImportsItsSdk", "B1"),
        ("TestRepeatsIds", "P1"),
        ("TestDeclaresSmallerLimits", "P2"),
        ("TestReversesBatches", "P4"),
        ("TestDeniesReplay", "Q3"),
        ("TestIgnoresLimits", "R2"),
        ("TestHandsOutTwice", "R4"),
        ("TestFreesKeysAtOnce", "R8"),
        ("TestLosesNacks", "R9"),
        ("TestNacksPiecemeal", "R10"),
        ("TestIgnoresDelays", "R11"),
        ("TestBuriesNothing", "R12"),
        ("TestForgetsAcknowledgements", "S1"),
        ("TestKeepsWhatItHeld", "C1"),
        ("TestLeaksFiles", "C3"),
        ("TestClaimsDurability", "F3"),
        ("TestWorksAfterAFork", "T2"),
    ],
)
def test_a_broken_backend_fails_on_its_rule(output: str, suite: str, rule: str) -> None:
    """The table names suite, rule and test, and the failure itself says which rule it breaks."""
    assert re.search(rf"^{suite} (.+, )?{rule}(, .+)? BROKEN: test_", output, re.MULTILINE)
    assert f"breaks {rule}: " in output


def test_an_exception_is_reported_with_its_reason(output: str) -> None:
    """What the environment does wrong is neither broken nor hidden."""
    assert "TestExcepted R9 excepted: the emulator loses nacks" in output


def test_an_exception_must_name_a_rule_or_test(output: str) -> None:
    """One that names neither fails the suite."""
    assert "MistakenHarness.exceptions names 'R99', which is neither a rule nor a test" in output


def test_a_test_is_bounded(output: str) -> None:
    """One that waits for ever fails."""
    assert "TestUnending R1 BROKEN: test_that_waits_for_ever" in output


def test_a_test_must_leave_no_task(output: str) -> None:
    """A task that outlives its clients is a failure."""
    assert "TestUnending C3 BROKEN: test_that_leaves_a_task" in output
