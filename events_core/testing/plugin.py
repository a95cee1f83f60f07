"""A table of the rules, printed at the end of a run, and the records of what was proven.

Enable it in the topmost ``conftest.py``: ``pytest_plugins = ["events_core.testing.plugin"]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pytest

from events_core.testing.findings import UNPROVEN, Claim, Result, claims_of, notes, overall, results_of, unproven
from events_core.testing.proof import Proof, subjects_of
from events_core.testing.rules import RULE, RULES

__all__ = ["pytest_addoption", "pytest_itemcollected", "pytest_sessionfinish", "pytest_terminal_summary"]

_PROOFS = pytest.StashKey[list[str]]()
"""Lines about the records, for the end of the report."""

T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes records."""
    parser.getgroup("events-core").addoption(
        "--events-proof",
        action="store_true",
        help="write what the kit proved into the records that harnesses name (Harness.proof); otherwise compare them",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let each report carry its test's rules, also to another process."""
    for rule in getattr(getattr(item, "function", None), "rules", ()):
        item.user_properties.append((RULE, rule))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the records, or fail the run if one does not say what the run showed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker of pytest-xdist
        return
    lines = session.config.stash[_PROOFS] = []
    for proof in _proofs(reporter):
        name, file = proof.subject.suite, proof.subject.file
        writes, missing = session.config.option.events_proof, proof.missing()
        if missing and writes:
            lines.append(f"{name}: {file} is not written, because {missing}")
        elif writes:
            proof.write()
            lines.append(f"{name}: {file} is written")
        elif not missing and (differences := proof.differences()):
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
            lines += [f"{name}: {file} does not say what was shown; --events-proof writes it", *differences]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the state of each rule, the reason for each state other than kept, and what was not proven."""
    # By the properties of reports and not of items: with pytest-xdist, tests run in other processes.
    results = list(_each(terminalreporter, results_of))
    if not results:
        return
    terminalreporter.section("rules of the contract")
    for line in [*_table(results), *_notes(results), *_unproven(list(_each(terminalreporter, claims_of)))]:
        terminalreporter.write_line(line)
    if lines := terminalreporter.config.stash.get(_PROOFS, []):
        terminalreporter.section("records of what was proven")
        for line in lines:
            terminalreporter.write_line(line)


def _proofs(reporter: pytest.TerminalReporter) -> Iterator[Proof]:
    results, claims = list(_each(reporter, results_of)), list(_each(reporter, claims_of))
    # Each process of a run introduces its suites.
    for suite, subject in {each.suite: each for each in _each(reporter, subjects_of)}.items():
        yield Proof(
            subject,
            [each for each in results if each.suite == suite],
            [each for each in claims if each.suite == suite],
        )


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
