"""The command ``events check``."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from events_core import EventConfig, create_client, load_backend
from events_core.cli.ending import Interrupt
from events_core.cli.ndjson import dump
from events_core.cli.outcome import CommandError, ExitCode, say
from events_core.cli.output import Output
from events_core.cli.printing import printed
from events_core.cli.progress import Steps
from events_core.cli.target import usage_error
from events_core.cli.trial import Trial

if TYPE_CHECKING:
    from events_core.testing.configured import ConfiguredHarness
    from events_core.testing.findings import Result

__all__ = ["check"]

_CAPABILITIES = "§6"
_STYLES = {"broken": "red", "kept": "green"}


def check(
    config: EventConfig, *, rules: Collection[str], patience: float, lease: float | None, json_path: str | None
) -> None:
    """Print which rules the broker of *config* keeps, or write them as JSON.

    :param rules: names of rules; all rules if there are none.
    :param patience: seconds to wait for a message that must come.
    :param lease: seconds after which the broker delivers again what a dead process held.
    :param json_path: a file for the JSON; ``-`` for standard output instead of the table.
    :raises CommandError: ``FAILED`` if a rule is broken.
    :raises click.UsageError: for an unknown rule.
    """
    output = Output()
    create_client(config)  # raises for a wrong configuration before anything is written
    file = Path(json_path) if json_path and json_path != "-" else None
    if file:
        _see_that_it_can_be_written(file)
    trial = _tried(config, rules, patience, lease or 0.0)
    if trial.complaint:
        raise usage_error(trial.complaint)
    lines = b"".join(map(dump, _as_json(trial)))
    output.put(lines if json_path == "-" else printed(_table(trial), *_notes(trial), *_unproven(trial)))
    if file:
        _write(file, lines)
    broken = [rule for rule, _, results in trial.of_rules() if _outcome(results) == "broken"]
    if broken:
        raise CommandError(f"broken: {', '.join(broken)}")


def _tried(config: EventConfig, rules: Collection[str], patience: float, lease: float) -> Trial:
    steps = Steps()
    with Interrupt() as interrupt:
        try:
            with _scratch(config) as scratch, steps:
                trial = Trial(partial(_harness, scratch or config, patience, lease), rules, steps, interrupt)
                try:
                    trial.run()
                finally:
                    # Also after an interruption, so that the user learns what to delete.
                    _tell_what_is_left(trial, topics_too=scratch is None)
                return trial
        except KeyboardInterrupt:
            say("interrupted", f"{steps} tests were run")
            raise CommandError("", interrupt.code or ExitCode.INTERRUPTED) from None


@contextmanager
def _scratch(config: EventConfig) -> Iterator[EventConfig | None]:
    """Enter the backend's place for trials, if it has one, and yield its configuration."""
    place = load_backend(config.backend).scratch(config)
    if isinstance(place, AbstractContextManager):
        with place as found:
            yield found
        return
    # A runner, because asyncio.run would end an asynchronous generator together with its loop.  The trial cannot run
    # inside that loop: pytest belongs into this thread, and the tests run loops of their own.
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        found = runner.run(stack.enter_async_context(place))
        try:
            yield found
        finally:
            runner.run(stack.aclose())


def _harness(config: EventConfig, patience: float, lease: float) -> ConfiguredHarness:
    # Only now, because pytest must import the kit first (``trial.py``).
    from events_core.testing.configured import ConfiguredHarness

    return ConfiguredHarness(config, patience, lease)


def _tell_what_is_left(trial: Trial, *, topics_too: bool) -> None:
    if trial.harness is None or not trial.results:
        return
    for name, error in trial.harness.left.items():
        say("warning", f"subscription {name!r} could not be deleted: {error!r}")
    if topics_too:
        say("note", f"topics named '{trial.harness.prefix}-…' are left; delete them with the broker's own tools")


def _see_that_it_can_be_written(path: Path) -> None:
    """Raise now, not after a trial of a minute, if *path* cannot be written.  Leave its content unchanged."""
    with _writing(path):
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.resolve().unlink()  # the new file; if path is a link to it, the link stays


def _write(path: Path, data: bytes) -> None:
    """Write *data* into the file itself and not to a new file in its place: *path* may be a pipe or a link."""
    with _writing(path):
        path.write_bytes(data)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot write '{path}': {error.strerror}", ExitCode.UNUSABLE) from error


def _outcome(results: Sequence[Result]) -> str:
    from events_core.testing.findings import overall

    return overall([result.state for result in results])


def _as_json(trial: Trial) -> Iterator[dict[str, object]]:
    from events_core.testing.findings import unproven

    for rule, promise, results in trial.of_rules():
        tests = [{"name": each.test, "outcome": each.state, "message": each.detail} for each in results]
        line: dict[str, object] = {"rule": rule, "title": promise, "outcome": _outcome(results), "tests": tests}
        if rule == _CAPABILITIES:
            line["unproven"] = dict(unproven(trial.claims))
        yield line


def _table(trial: Trial) -> Table:
    table = Table("rule", "title", "outcome", box=None, pad_edge=False, header_style="bold")
    for rule, promise, results in trial.of_rules():
        outcome = _outcome(results)
        table.add_row(rule, Text(promise), Text(outcome, _STYLES.get(outcome, "dim")))
    return table


def _notes(trial: Trial) -> Iterator[Text]:
    """Yield a note for each finding other than "kept", once, with the rules that it concerns."""
    from events_core.testing.findings import notes

    for state, detail, rules in notes(map(_brief, trial.results.values())):
        yield Text(f"\n{', '.join(rules)} {state}: {detail}")


def _unproven(trial: Trial) -> Iterator[Text]:
    from events_core.testing.findings import UNPROVEN, unproven

    for claim, why in unproven(trial.claims):
        yield Text(f"\n{claim} {UNPROVEN}: {why}")


def _brief(result: Result) -> Result:
    """Return *result* with the name of the test and the first line of its message, if it is broken."""
    if result.state != "broken":
        return result
    first = result.detail.partition("\n")[0]
    return result._replace(detail=f"{result.test}: {first}" if first else result.test)
