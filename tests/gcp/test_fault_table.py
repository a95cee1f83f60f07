"""Every status code on every call: its outcome, and that the documentation names it."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest

from . import calls
from .calls import CALLS, RETRYABLE
from .connections import CASES
from .fault_table import (
    CONNECTIONS_TOP,
    OFFICIAL,
    OFFICIAL_TOP,
    PAGE,
    TOP,
    connections,
    measured,
    official,
    problems,
    section,
)
from .problems import PROBLEMS, Problem


@cache
def outcomes(call: str) -> calls.Outcomes:
    """Measure once for all tests of a process."""
    return asyncio.run(asyncio.wait_for(calls.measure(call), 300))


@pytest.mark.parametrize("call", CALLS)
def test_the_page_of_faults_says_what_happens(call: str) -> None:
    """Write a page that is out of date again with ``python -m tests.gcp.fault_table``."""
    assert section(call, outcomes(call)) in PAGE.read_text()


def test_faults_of_connections_and_credentials_have_these_outcomes() -> None:
    """F1, P7: the page describes the outcomes of today."""
    text = PAGE.read_text()
    assert [row for row in connections(measured("connections")).split("   * - ") if row not in text] == []


def test_only_missing_tokens_are_seen_by_a_program() -> None:
    """F1: of these faults, the page names an error only if no token can be had."""
    text = PAGE.read_text()
    rows = text[text.index(CONNECTIONS_TOP) : text.index(OFFICIAL_TOP)].split("   * - ")[2:]
    seen = {row.splitlines()[0] for row in rows if "Error" in row}
    assert len(rows) == len(CASES)
    assert {row for row in CASES if row.startswith("The authority")} == seen


@pytest.mark.skipif(version("google-cloud-pubsub") != OFFICIAL, reason=f"the page is about version {OFFICIAL}")
def test_the_page_compares_with_googles_client_as_measured() -> None:
    """For ten faults the page says what happens here.

    The column of Google's client is as measured when the page was written.  That client is not always as quick: after
    one failure of a stream, it sometimes brought nothing for a minute.
    """
    text = PAGE.read_text()
    rows = [row.rpartition("     - ")[0] for row in official(measured("official")).split("   * - ")[1:]]
    assert [row for row in rows if row not in text] == []


def test_the_page_of_faults_has_nothing_else() -> None:
    """The other parts are as the script writes them, and no section is left that the script does not write."""
    text = PAGE.read_text()
    assert text.startswith(TOP)
    assert text.endswith(problems())
    assert text.count("\n~~~") == len(CALLS)


@pytest.mark.parametrize("problem", PROBLEMS, ids=range(1, len(PROBLEMS) + 1))
def test_every_problem_has_a_test(problem: Problem) -> None:
    """A problem that was reported for another client has a test here, or cannot occur."""
    tests = "".join(each.read_text() for each in Path(__file__).parent.glob("test_*.py"))
    assert problem.tests or problem.here.startswith("Cannot occur")
    assert [test for test in problem.tests if f"def {test}(" not in tests] == []


@pytest.mark.parametrize("call", ["send_message", "acknowledge", "nack", "reject", "First send, with create=all"])
def test_what_may_pass_is_retried(call: str) -> None:
    """P7, S5: a failure that a retry can cure is raised only when the time is up, and then says so."""
    for status in RETRYABLE:
        once, longer = outcomes(call)[status]
        assert once == "succeeds after a retry"
        assert "at the timeout" in longer


@pytest.mark.parametrize("call", ["send_message", "acknowledge", "nack", "reject"])
def test_what_cannot_pass_is_told_at_once(call: str) -> None:
    """P7, S5: other failures are raised after a single request, with a code that says why."""
    for status in set(outcomes(call)) - RETRYABLE:
        once, longer = outcomes(call)[status]
        assert "Error`` ``" in once
        assert ", at once" in once
        assert once == longer


@pytest.mark.parametrize("call", ["receive_message", "receive_message, with receive_mode=pull"])
def test_an_outage_is_waited_for(call: str) -> None:
    """F1, R1: a receive returns the message when the outage is over, or nothing when its own time is up."""
    for status in RETRYABLE:
        assert outcomes(call)[status] == ("the message comes", "``None`` at its own timeout")


@pytest.mark.parametrize("call", ["receive_message", "receive_message, with receive_mode=pull"])
def test_what_retrying_cannot_cure_surfaces(call: str) -> None:
    """F1: the receive raises instead of waiting, and the next one tries again."""
    for status in set(outcomes(call)) - RETRYABLE - {grpc.StatusCode.NOT_FOUND}:
        assert all("Error`` ``" in outcome for outcome in outcomes(call)[status])


def test_a_lease_outlives_a_failed_renewal() -> None:
    """R6: after any failure, the renewal is repeated before the lease runs out."""
    assert {once for once, _ in outcomes("Renewing a lease").values()} == {"is renewed after a retry"}


def test_a_message_whose_lease_lapsed_is_settled_once() -> None:
    """R7: the redelivery of a held message is not handed out."""
    lapsed = "runs out; the redelivery is recognised, and settled with the message"
    assert {longer for _, longer in outcomes("Renewing a lease").values()} == {lapsed}
