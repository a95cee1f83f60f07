"""The conformance kit, run by pytest in this process, and what came of it.

Nothing here imports the kit at the top: pytest must, so that it rewrites the kit's asserts to say what they found.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from events_core import EventError
from events_core.cli.ending import opened
from events_core.cli.outcome import CommandError
from events_core.cli.progress import Steps
from events_core.options import did_you_mean

if TYPE_CHECKING:
    from events_core.testing.configured import ConfiguredHarness
    from events_core.testing.plugin import Claim

__all__ = ["Trial", "Verdict"]

_NOT_IN_THE_KIT = {"O3", "B2", "B4"}
"""Rules that events-core keeps whatever the backend is."""


@attrs.frozen
class Verdict:
    """What came of one test."""

    outcome: str
    message: str = ""


class Trial:
    """A pytest plugin: picks the tests of some rules, gives them their harness, and keeps what came of them.

    :param rules: names of rules, all where there are none.
    :param make_harness: called under pytest.
    """

    def __init__(self, make_harness: Callable[[], ConfiguredHarness], rules: Collection[str], steps: Steps) -> None:
        self.complaint = ""
        """What is wrong with *rules*."""
        self.promises: Mapping[str, str] = {}
        """The rules that are looked at, with what they promise."""
        self.verdicts: dict[str, dict[str, Verdict]] = {}
        """For each rule, what came of each of its tests."""
        self.claims: list[Claim] = []
        """What came of each test that would prove a declared capability."""
        self.harness: ConfiguredHarness | None = None
        self._make_harness = make_harness
        self._rules = rules
        self._steps = steps
        self._failure: EventError | None = None
        self._crash = ""
        self._outcomes: list[str] = []

    def run(self) -> None:
        """Play the tests, and delete the subscriptions that they made.

        :raises EventError: when the broker cannot be reached.
        :raises KeyboardInterrupt: once what can be deleted is.
        """
        # What the user's own tests are told is not meant for this.
        for variable in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
            os.environ.pop(variable, None)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        arguments = ["--pyargs", "events_core.testing.configured", "-p", "events_core.testing.plugin"]
        arguments += ["-c", os.devnull, "--rootdir", os.curdir, "--noconftest"]
        arguments += ["-p", "no:cacheprovider", "-p", "no:terminalprogress"]
        try:
            code = pytest.main(arguments, plugins=[self])
        finally:
            if self.harness is not None:
                asyncio.run(self.harness.clean_up())  # of a test that was interrupted
        self._judge(code)

    def _judge(self, code: int) -> None:
        if self._failure is not None:
            raise self._failure
        if code == pytest.ExitCode.INTERRUPTED and not self._crash:
            raise KeyboardInterrupt
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not self.complaint:
            raise CommandError(f"pytest ended with code {int(code)}: {self._crash or 'it said nothing'}")

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Let pytest talk to nobody; without any reporter its rewritten asserts could not say what they found."""
        reporter: Any = config.pluginmanager.unregister(name="terminalreporter")
        config.pluginmanager.register(type(reporter)(config, io.StringIO()), "terminalreporter")

    @pytest.fixture
    def configured(self) -> Iterator[ConfiguredHarness]:
        """The harness of every test."""
        assert self.harness is not None
        yield self.harness
        asyncio.run(self.harness.clean_up())

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep why the kit cannot be imported."""
        if report.failed:
            self._crash = report.longreprtext.rpartition("\n")[2]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the tests of the rules asked for; none, where one of these is unknown."""
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
        """Reach the broker once, before so many tests wait for it in vain."""
        if not session.items:
            return None
        try:
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
        """Show which test runs."""
        self._outcomes.clear()
        self._steps.begin(_name(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what *report* says of each rule."""
        from events_core.testing.plugin import claims_of, results_of

        if report.when != "call" and report.passed:
            return
        self.claims += claims_of(report)
        for result in results_of(report):
            self._outcomes.append(result.state)
            if result.rule in self.promises:
                verdict = Verdict(result.state, _message(report) if result.state == "broken" else result.detail)
                self.verdicts.setdefault(result.rule, {})[result.test] = verdict

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Show what came of it."""
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
