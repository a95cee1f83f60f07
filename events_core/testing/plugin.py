"""A table of the rules, printed at the end of a run.

Enable it in the topmost ``conftest.py``: ``pytest_plugins = ["events_core.testing.plugin"]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

import pytest

from events_core.testing.rules import BEYOND_TESTS, CLAIMS, RULES

__all__ = [
    "UNPROVEN",
    "Claim",
    "Result",
    "claims_of",
    "overall",
    "pytest_itemcollected",
    "pytest_terminal_summary",
    "results_of",
    "unproven",
]

T = TypeVar("T")

_PROPERTY = "rule"
_CLAIM = "claim"
UNPROVEN = "declared, not proven"
"""What a capability is that a backend declares and for which no test could vouch."""


class Result(NamedTuple):
    """One test's outcome, for one of its rules."""

    suite: str
    test: str
    rule: str
    state: str
    detail: str


class Claim(NamedTuple):
    """One test's outcome, for one of the capabilities that it proves."""

    suite: str
    claim: str
    state: str
    detail: str


_ORDER = ("broken", "excepted", "kept", "not declared", "not shown")


def overall(states: Collection[str]) -> str:
    """What a rule is whose tests are *states*: the worst of them, and *kept* only if nothing of it was not shown."""
    worst = min(states, key=_ORDER.index, default="")
    return "partly" if worst == "kept" and "not shown" in states else worst


def unproven(found: Collection[Claim]) -> Iterator[tuple[str, str]]:
    """Each claim that not every test of it has proven, and why, unless it is broken, which its rule says."""
    for claim in CLAIMS:
        details: dict[str, set[str]] = defaultdict(set)
        for each in found:
            if each.claim == claim:
                details[each.state].add(each.detail)
        if "broken" in details or not details:
            continue
        if claim in BEYOND_TESTS:
            yield claim, BEYOND_TESTS[claim]
        elif "kept" not in details or details.keys() & {"not shown", "excepted"}:
            yield claim, "; ".join(sorted(details["not shown"] | details["excepted"] or details["not declared"]))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let each report carry its test's rules, also to another process."""
    for rule in getattr(getattr(item, "function", None), "rules", ()):
        item.user_properties.append((_PROPERTY, rule))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was kept, wholly or partly, what was not declared, what is broken, and what is excepted and why."""
    results = list(_each(terminalreporter, results_of))
    if not results:
        return
    terminalreporter.section("rules of the contract")
    for line in [*_table(results), *_notes(results), *_unproven(list(_each(terminalreporter, claims_of)))]:
        terminalreporter.write_line(line)


def results_of(report: pytest.TestReport) -> Iterator[Result]:
    """What *report*, a test's own or of a phase that did not pass, says of each of the test's rules."""
    for name, rule in getattr(report, "user_properties", ()):
        if name == _PROPERTY:
            _, suite, test = report.nodeid.rsplit("::", 2)
            yield Result(suite, test, str(rule), *_state(report, test))


def claims_of(report: pytest.TestReport) -> Iterator[Claim]:
    """Yield what *report* says of each capability that is declared, and that its test would prove."""
    for name, claim in getattr(report, "user_properties", ()):
        if name == _CLAIM:
            _, suite, test = report.nodeid.rsplit("::", 2)
            yield Claim(suite, str(claim), *_state(report, test))


def _each(reporter: pytest.TerminalReporter, found_in: Callable[[pytest.TestReport], Iterator[T]]) -> Iterator[T]:
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in reporter.stats.get(outcome, ()):
            yield from found_in(report)


def _state(report: pytest.TestReport, test: str) -> tuple[str, str]:
    if hasattr(report, "wasxfail"):
        return "excepted", str(report.wasxfail).removeprefix("reason: ")
    if report.passed:
        return "kept", ""
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        state, _, detail = reason.removeprefix("Skipped: ").partition(": ")
        return (state, detail) if state in _ORDER else ("not shown", reason)
    return "broken", test


def _table(results: Sequence[Result]) -> Iterator[str]:
    suites = list(dict.fromkeys(result.suite for result in results))
    states: dict[tuple[str, str], set[str]] = defaultdict(set)
    for result in results:
        states[result.rule, result.suite].add(result.state)
    rows = [["", "", *suites]]
    for rule, promise in RULES.items():
        cells = [_marked(overall(states[rule, suite])) for suite in suites]
        if any(cells):
            rows.append([rule, promise, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _notes(results: Sequence[Result]) -> Iterator[str]:
    """Each detail once, with the rules that it concerns."""
    rules: dict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)
    for result in results:
        if result.detail:
            rules[result.suite, result.state, result.detail][result.rule] = None
    if rules:
        yield ""
    for (suite, state, detail), concerned in sorted(rules.items()):
        yield f"{suite} {', '.join(concerned)} {_marked(state)}: {detail}"


def _unproven(found: Sequence[Claim]) -> Iterator[str]:
    for suite in dict.fromkeys(each.suite for each in found):
        for claim, why in unproven([each for each in found if each.suite == suite]):
            yield f"{suite} {claim} {UNPROVEN}: {why}"


def _marked(state: str) -> str:
    return state.upper() if state == "broken" else state
