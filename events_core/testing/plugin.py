"""A table of the rules, printed at the end of a run.

Enable it in the topmost ``conftest.py``: ``pytest_plugins = ["events_core.testing.plugin"]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pytest

from events_core.testing.findings import UNPROVEN, Claim, Result, claims_of, notes, overall, results_of, unproven
from events_core.testing.rules import RULE, RULES

__all__ = ["pytest_itemcollected", "pytest_terminal_summary"]

T = TypeVar("T")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let each report carry its test's rules, also to another process."""
    for rule in getattr(getattr(item, "function", None), "rules", ()):
        item.user_properties.append((RULE, rule))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the state of each rule, the reason for each state other than kept, and what was not proven."""
    # By the properties of reports and not of items: with pytest-xdist, tests run in other processes.
    results = list(_each(terminalreporter, results_of))
    if not results:
        return
    terminalreporter.section("rules of the contract")
    for line in [*_table(results), *_notes(results), *_unproven(list(_each(terminalreporter, claims_of)))]:
        terminalreporter.write_line(line)


def _each(reporter: pytest.TerminalReporter, found_in: Callable[[pytest.TestReport], Iterator[T]]) -> Iterator[T]:
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in reporter.stats.get(outcome, ()):
            yield from found_in(report)


def _suites(found: Sequence[Result | Claim]) -> list[str]:
    return list(dict.fromkeys(each.suite for each in found))


def _table(results: Sequence[Result]) -> Iterator[str]:
    suites = _suites(results)
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
    if any(result.detail for result in results):
        yield ""
    for suite in sorted(_suites(results)):
        for state, detail, rules in notes(result for result in results if result.suite == suite):
            yield f"{suite} {', '.join(rules)} {_marked(state)}: {detail}"


def _unproven(found: Sequence[Claim]) -> Iterator[str]:
    for suite in _suites(found):
        for claim, why in unproven([each for each in found if each.suite == suite]):
            yield f"{suite} {claim} {UNPROVEN}: {why}"


def _marked(state: str) -> str:
    return state.upper() if state == "broken" else state
