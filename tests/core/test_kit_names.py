"""The tests of the conformance kit have names of their own."""

from __future__ import annotations

from collections import defaultdict

from events_core.testing import ConformanceSuite


def test_no_test_of_the_kit_hides_another() -> None:
    """Of two tests with the same name, a suite that inherits both would run only the first."""
    owners: dict[str, list[str]] = defaultdict(list)
    for rules in ConformanceSuite.__mro__:
        for name in vars(rules):
            if name.startswith("test_"):
                owners[name].append(rules.__name__)
    assert owners
    assert {name: classes for name, classes in owners.items() if len(classes) > 1} == {}
