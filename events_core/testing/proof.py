"""The record of what a run of the kit proved: a JSON file in the repository of a backend.

It has the backend, the versions that were tested, the capabilities, and the state of each rule with the reason for each
state other than *kept*.  A run compares the record with what it showed, or writes it.
"""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from events_core.testing.findings import Claim, Result, overall, unproven
from events_core.testing.rules import CLAIMS, RULES, SUBJECT
from events_core.testing.skipping import BY_CHANCE

__all__ = ["Proof", "subjects_of"]


class Subject(NamedTuple):
    """A suite that keeps a record, and what its process has told about it."""

    suite: str
    file: Path
    tests: int
    exceptions: Mapping[str, str]
    facts: Mapping[str, Any]


def subjects_of(report: pytest.TestReport) -> Iterator[Subject]:
    """Yield the suite of a test, if the report introduces it."""
    for name, value in getattr(report, "user_properties", ()):
        if name == SUBJECT:
            told = cast("dict[str, Any]", value)
            suite = report.nodeid.rsplit("::", 2)[1]
            yield Subject(suite, Path(told["file"]), told["tests"], told["exceptions"], told["facts"])


class Proof:
    """What one suite has shown in this run, next to the record of an earlier run.

    :param results: the results of the suite.
    :param claims: those of the capabilities that it declares.
    """

    def __init__(self, subject: Subject, results: Iterable[Result], claims: Iterable[Claim]) -> None:
        self.subject = subject
        self._results = [_excepted(each, subject.exceptions, each.rule) for each in results]
        self._claims = [_excepted(each, subject.exceptions, *self._rules_of(each.test)) for each in claims]
        self._ran = {_function(each.test) for each in self._results}
        self._results = [each for each in self._results if each.detail not in BY_CHANCE]
        self._claims = [each for each in self._claims if each.detail not in BY_CHANCE]

    def missing(self) -> str:
        """Return why this run is no proof, ``""`` if it is one."""
        if any(each.state == "broken" for each in self._results):
            return "a test failed"
        if len(self._ran) < self.subject.tests:
            return f"only {len(self._ran)} of {self.subject.tests} tests ran"
        return ""

    def differences(self) -> list[str]:
        """Return the lines in which the record differs from this run.

        The versions and the suite's description say where the record comes from.  They may differ.
        """
        file = self.subject.file
        recorded = _text(_compared(json.loads(file.read_text()))) if file.exists() else ""
        shown = _text(_compared(self.record()))
        return list(difflib.unified_diff(recorded.splitlines(), shown.splitlines(), "recorded", "shown", "", "", 2, ""))

    def write(self) -> None:
        """Write the record."""
        self.subject.file.parent.mkdir(parents=True, exist_ok=True)
        self.subject.file.write_text(_text(self.record()))

    def record(self) -> dict[str, object]:
        """Return the record."""
        not_proven = dict(unproven(self._claims))
        claimed = {each.claim for each in self._claims}
        return {
            **self.subject.facts,
            "proven": [claim for claim in CLAIMS if claim in claimed and claim not in not_proven],
            "unproven": not_proven,
            "rules": {rule: state for rule in RULES if (state := self._rule(rule))},
        }

    def _rule(self, rule: str) -> dict[str, object]:
        results = [each for each in self._results if each.rule == rule]
        if not results:
            return {}
        state = overall([each.state for each in results])
        reasons: dict[tuple[str, str], set[str]] = defaultdict(set)
        for each in results:
            if each.detail:
                reasons[each.state, each.detail].add(_function(each.test))
        why = [_reason(*found, tests) for found, tests in sorted(reasons.items())]
        return {"state": state, "why": why} if why else {"state": state}

    def _rules_of(self, test: str) -> set[str]:
        return {each.rule for each in self._results if each.test == test}


def _reason(state: str, reason: str, tests: Collection[str]) -> dict[str, object]:
    """Return one reason of a state.  Only exceptions name their tests, so that a new test changes few records."""
    return {"state": state, "reason": reason, **({"tests": sorted(tests)} if state == "excepted" else {})}


def _excepted(found: Any, exceptions: Mapping[str, str], *rules: str) -> Any:
    """Return *found* as an exception if the harness names its test or rule, also if the test passed this time.

    Some faults of an environment show now and then.  A record must not depend on that.
    """
    reasons = [exceptions[name] for name in (_function(found.test), *rules) if name in exceptions]
    if not reasons or found.state not in ("kept", "excepted"):
        return found
    return found._replace(state="excepted", detail=reasons[0])


def _function(test: str) -> str:
    """Return the name of a test without its parameters."""
    return test.partition("[")[0]


def _compared(record: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in record.items() if name not in ("suite", "versions")}


def _text(record: Collection[object]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
