"""A run of the conformance kit by pytest, in this process.

No module of the kit is imported at the top.  pytest has to import them first: it rewrites their asserts, so that a
failed one says which values it found.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from events_core import EventError
from events_core.cli.ending import Interrupt, opened
from events_core.cli.outcome import CommandError
from events_core.cli.progress import Steps
from events_core.options import did_you_mean

if TYPE_CHECKING:
    from events_core.testing.configured import ConfiguredHarness
    from events_core.testing.findings import Claim, Result

__all__ = ["Trial"]

_NOT_IN_THE_KIT = {"O3", "B2", "B4"}
"""Rules that the core keeps, whatever the backend; the tests of the core prove them."""


class Trial:
    """A pytest plugin that chooses the tests of some rules, gives them a harness, and keeps their outcomes.

    :param make_harness: return the harness; called by pytest's collection, because it imports the kit.
    :param rules: names of rules; all rules if there are none.
    :param interrupt: interrupts a test, and the try to reach the broker, but not pytest or the cleaning up.
    """

    def __init__(
        self,
        make_harness: Callable[[], ConfiguredHarness],
        rules: Collection[str],
        steps: Steps,
        interrupt: Interrupt,
    ) -> None:
        self.complaint = ""
        """The error in *rules*, or ``""``."""
        self.promises: Mapping[str, str] = {}
        """The chosen rules, with their promises."""
        self.results: dict[tuple[str, str], Result] = {}
        """The outcome of each test, for each of its rules: by rule and test.

        The detail of a broken one is the message of the failure."""
        self.claims: list[Claim] = []
        """The outcomes of the tests that prove declared capabilities."""
        self.harness: ConfiguredHarness | None = None
        self._make_harness = make_harness
        self._rules = rules
        self._steps = steps
        self._interrupt = interrupt
        self._failure: EventError | None = None
        self._crash = ""
        self._outcomes: list[str] = []

    def of_rules(self) -> Iterator[tuple[str, str, list[Result]]]:
        """Yield each rule that has a result, with its promise and its results, in the order of the contract."""
        for rule, promise in self.promises.items():
            results = [result for result in self.results.values() if result.rule == rule]
            if results:
                yield rule, promise, results

    def run(self) -> None:
        """Run the tests, and delete the subscriptions that they made.

        :raises EventError: if the broker cannot be reached.
        :raises KeyboardInterrupt: after a signal, and after the subscriptions were deleted.
        """
        # These variables are for the user's own tests.  Their options and plugins could change this run.
        for variable in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
            os.environ.pop(variable, None)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        arguments = ["--pyargs", "events_core.testing.configured", "-p", "events_core.testing.plugin"]
        # The command may run in the middle of a project: its pytest.ini and conftest.py are not for this run, and no
        # cache is left in it.
        arguments += ["-c", os.devnull, "--rootdir", os.curdir, "--noconftest"]
        arguments += ["-p", "no:cacheprovider", "-p", "no:terminalprogress"]
        try:
            code = pytest.main(arguments, plugins=[self])
        finally:
            if self.harness is not None:
                asyncio.run(self.harness.clean_up())  # deletes the subscriptions of an interrupted test
        self._judge(code)

    def _judge(self, code: int) -> None:
        if self._interrupt.code is not None:
            raise KeyboardInterrupt
        if self._failure is not None:
            raise self._failure
        if code == pytest.ExitCode.INTERRUPTED and not self._crash:
            raise KeyboardInterrupt
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not self.complaint:
            raise CommandError(f"pytest ended with code {int(code)}: {self._crash or 'it said nothing'}")

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Replace pytest's reporter by one that prints nothing; without any, asserts could not say what they found."""
        reporter: Any = config.pluginmanager.unregister(name="terminalreporter")
        config.pluginmanager.register(type(reporter)(config, io.StringIO()), "terminalreporter")

    @pytest.fixture
    def configured(self) -> Iterator[ConfiguredHarness]:
        """Return the harness, and delete the subscriptions of the test after it."""
        assert self.harness is not None
        yield self.harness
        asyncio.run(self.harness.clean_up())

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep the reason if the kit cannot be imported."""
        if report.failed:
            self._crash = report.longreprtext.rpartition("\n")[2]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep only the tests of the chosen rules; keep none if one of these rules is unknown."""
        from events_core.testing.rules import RULES

        chosen = {rule.upper() for rule in self._rules} or set(RULES)
        if unknown := sorted(chosen - set(RULES)):
            self.complaint = _unknown(unknown[0], RULES)
        self.promises = {rule: promise for rule, promise in RULES.items() if rule in chosen}
        wanted = set() if self.complaint else chosen
        items[:] = [item for item in items if wanted & {rule for _, rule in item.user_properties}]
        self.harness = self._make_harness()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Connect to the broker once, so that an unreachable one is found before two hundred tests wait for it."""
        if not session.items:
            return None
        try:
            with self._interrupt.allowed():
                asyncio.run(self._reach())
        except EventError as error:
            self._failure = error
            return True
        self._steps.expect(len(session.items))
        return None

    async def _reach(self) -> None:
        assert self.harness is not None
        bounded = {"connect_timeout": str(self.harness.patience)}
        async with opened(self.harness.config(self.harness.topic_name(), bounded)) as client:
            await (await client.subscribe()).close(timeout=0)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Show the name of the running test."""
        self._outcomes.clear()
        self._steps.begin(_name(nodeid))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, None, None]:
        """Let a signal interrupt the test itself."""
        with self._interrupt.allowed():
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome in *report* for each rule of the test."""
        from events_core.testing.findings import claims_of, results_of

        if report.when != "call" and report.passed:
            return
        self.claims += claims_of(report)
        for result in results_of(report):
            self._outcomes.append(result.state)
            if result.rule in self.promises:
                if result.state == "broken":
                    result = result._replace(detail=_message(report))
                self.results[result.rule, result.test] = result

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Show the outcome of the test."""
        self._steps.end(_name(nodeid), self._outcomes[-1] if self._outcomes else "not shown")


def _unknown(rule: str, known: Collection[str]) -> str:
    if rule in _NOT_IN_THE_KIT:
        return f"the kit has no test of rule {rule!r}"
    return f"no rule named {rule!r}{did_you_mean(rule, known)}"


def _name(nodeid: str) -> str:
    return nodeid.rpartition("::")[2]


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message) if crash else report.longreprtext
