"""The findings of a run of the kit, and their sum for a rule, for a reason and for a capability.

Each test's item carries what pytest must report of it as user properties, also from another process (pytest-xdist):
its rules, the capabilities that it proves, and its state if it ended without a verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, cast

import pytest

from events_core.testing.rules import BEYOND_TESTS, CLAIM, CLAIMS, RULE, RULES, STATE

__all__ = ["UNPROVEN", "Claim", "Result", "claims_of", "notes", "overall", "results_of", "unproven"]

UNPROVEN = "declared, not proven"
"""The state of a capability that a backend declares and that no test could prove."""

_WORST_FIRST = ("broken", "excepted", "kept", "not declared", "not shown", "not applicable")

_UNDECIDED = {"excepted", "not shown", "not applicable"}


class Result(NamedTuple):
    """The outcome of one test, for one of its rules."""

    suite: str
    test: str
    rule: str
    state: str
    detail: str


class Claim(NamedTuple):
    """The outcome of one test, for one of the capabilities that it proves."""

    suite: str
    test: str
    claim: str
    state: str
    detail: str


def results_of(report: pytest.TestReport) -> Iterator[Result]:
    """Yield the outcome of a test for each of its rules.

    :param report: of the test itself, or of a phase that did not pass.
    """
    for name, rule in getattr(report, "user_properties", ()):
        if name == RULE:
            _, suite, test = report.nodeid.rsplit("::", 2)
            yield Result(suite, test, str(rule), *_state(report, test))


def claims_of(report: pytest.TestReport) -> Iterator[Claim]:
    """Yield the outcome of a test for each capability that it proves and that the backend declares."""
    for name, claim in getattr(report, "user_properties", ()):
        if name == CLAIM:
            _, suite, test = report.nodeid.rsplit("::", 2)
            yield Claim(suite, test, str(claim), *_state(report, test))


def _state(report: pytest.TestReport, test: str) -> tuple[str, str]:
    if report.passed:
        return "kept", ""
    if report.failed:
        return "broken", test
    for name, value in report.user_properties:
        if name == STATE:
            state, detail = cast("tuple[str, str]", value)
            return state, detail
    # Something other than the kit ended the test: a fixture or a mark.  Pytest keeps its reason in this text only.
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if hasattr(report, "wasxfail"):
        return "excepted", str(report.wasxfail)
    return "not shown", reason.removeprefix("Skipped: ")


def overall(states: Collection[str]) -> str:
    """Return the state of a rule whose tests have *states*: the worst; *partly* if something kept was not all shown."""
    worst = min(states, key=_WORST_FIRST.index, default="")
    return "partly" if worst == "kept" and "not shown" in states else worst


def notes(results: Iterable[Result]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each state and detail of one suite once, with the rules that it concerns in the order of the contract."""
    concerned: dict[tuple[str, str], set[str]] = defaultdict(set)
    for result in results:
        if result.detail:
            concerned[result.state, result.detail].add(result.rule)
    for (state, detail), rules in sorted(concerned.items()):
        yield state, detail, sorted(rules, key=list(RULES).index)


def unproven(found: Collection[Claim]) -> Iterator[tuple[str, str]]:
    """Yield each claim that some test of it could not prove, and why.

    A claim that is broken is left out: its rule says so.
    """
    for claim in CLAIMS:
        details: dict[str, set[str]] = defaultdict(set)
        for each in found:
            if each.claim == claim:
                details[each.state].add(each.detail)
        if "broken" in details or not details:
            continue
        if claim in BEYOND_TESTS:
            yield claim, BEYOND_TESTS[claim]
        # A claim that is declared and was never tried is as unproven as one whose test was left out.
        elif "kept" not in details or details.keys() & _UNDECIDED:
            reasons = set[str]().union(*(details[state] for state in _UNDECIDED))
            yield claim, "; ".join(sorted(reasons or details["not declared"]))
