"""The rules that the kit proves, and the decorator that makes a test of them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec

import pytest

from events_core import Capabilities, load_backend
from events_core.testing.explaining import Log, explained, logged
from events_core.testing.harness import Harness
from events_core.testing.introducing import introduced
from events_core.testing.skipping import finding_of, not_shown
from events_core.testing.stage import Stage

__all__ = ["CLAIMS", "RULES", "claims", "rule"]

P = ParamSpec("P")

RULES: Mapping[str, str] = {
    "§1": "a message arrives as it was sent",
    "§3": "a client connects on first use and tells its state",
    "§4": "the stats of a receiver count what it holds",
    "§5": "errors say which operation failed, why and where",
    "§6": "capabilities are known without I/O and never grow",
    "O1": "wrong options are reported all at once, before any I/O",
    "O2": "option values and secrets are never shown",
    "O4": "a requirement is checked before any I/O, and again on joining",
    "B1": "importing the backend does not import its SDK",
    "B3": "the backend loads by its name, for this interface version",
    "P1": "a send returns the id that receivers see, once the message is stored",
    "P2": "a batch is checked as a whole, kept in order, and split where needed",
    "P3": "a message that fails does not fail the messages of others",
    "P4": "messages of a key are stored in the order of the calls",
    "P5": "concurrent sends keep their order and lose nothing",
    "P6": "messages and bytes in flight are bounded",
    "P7": "every send ends, and permanent errors surface at once",
    "P8": "a cancelled send does no harm to others",
    "Q1": "named subscriptions are durable and shared, ephemeral ones end",
    "Q2": "a missing topic or subscription is created as options allow, or named",
    "Q3": "a new subscription may begin with the oldest message kept",
    "Q4": "subscribe() can be awaited, and entered with async with",
    "R1": "receive_message returns None only when its timeout ran out",
    "R2": "a batch has 1 to limit messages, and comes as soon as one is there",
    "R3": "a cancelled or stopped receive loses nothing",
    "R4": "no delivery goes to two tasks or threads",
    "R5": "messages and bytes held or buffered are bounded",
    "R6": "leases are kept until max_lease_duration, then they expire",
    "R7": "a held message is not handed out again",
    "R8": "messages of a key come in order, to one caller at a time",
    "R9": "a message that is not acknowledged comes again, unchanged",
    "R10": "after a nack, a key goes on with that message",
    "R11": "a nacked message comes again after a backoff, or after its delay",
    "R12": "a message that failed too often goes to the dead-letter topic",
    "S1": "an acknowledged message does not come again",
    "S2": "a delivery is settled once, by message or by id",
    "S3": "settling too late, or an unknown id, is an error that says so",
    "S4": "a batch settles every message that it can",
    "S5": "after a settlement that failed or was cancelled, the receiver goes on",
    "S6": "a rejected message goes to the dead-letter topic at once",
    "C1": "a closing receiver waits for held messages and hands back the rest",
    "C2": "a closing client flushes its sends, and may be closed again",
    "C3": "after closing, every call raises CLOSED and nothing is left",
    "F1": "an outage does not end a receiver",
    "F2": "after a lost session, a held message is still valid, or EXPIRED",
    "F3": "a confirmed message survives a crash, where declared",
    "T1": "one client serves any thread and any event loop",
    "T2": "a connected client refuses to work after a fork",
    "N1": "the broker's own connection and messages are there, or UNSUPPORTED",
    "H1": "processing settles a message by how its block ends",
    "H2": "consume handles and settles messages, and ends as it should",
    "H3": "a handler may reject its message, or ask for it later",
    "V1": "an observer is told of each operation, and nothing is printed",
}
"""Every rule that has a test here, in the order of the contract, as one line."""


CLAIMS: Mapping[str, str] = {
    "durable=process_crash": "a confirmed message survives the crash of a process that stores it",
    "durable=power_loss": "a confirmed message survives a power loss",
    "ordering=receiver": "a receiver gets the messages of a key in order",
    "ordering=subscription": "all receivers of a subscription get the messages of a key in order",
    "replay": "a new subscription may begin with the oldest message kept",
    "dead_letter": "a message that failed too often goes to another topic",
    "reject": "a handler can send a message to the dead-letter topic at once",
    "delivery_attempts": "deliveries are counted",
    "ack_confirmed": "acknowledge returns when the broker has confirmed it",
    "exactly_once": "a message whose acknowledgement was confirmed never comes again",
    "idempotent_publish": "a retried send is stored once",
}
"""The capabilities that a backend may declare, one line each.  Each stronger value of a scale is a separate claim."""

BEYOND_TESTS: Mapping[str, str] = {"durable=power_loss": "no test makes a power loss"}
"""The claims that no test can prove, and why."""

_LAST_TURNS = 10.0
"""Seconds that cancelled tasks have to end, after everything is closed."""

RULE, CLAIM, STATE, SUBJECT = "rule", "claim", "state", "subject"
"""Names of the user properties of a test: a rule that it is about, a capability that it proves, its state with a detail
if it ended without a verdict, and the facts about the backend for its record."""

# A backend that declares the stronger value promises the weaker one too.
_WEAKER = {"durable=power_loss": "durable=process_crash", "ordering=subscription": "ordering=receiver"}


def claims(capabilities: Capabilities) -> Iterator[str]:
    """Yield the claims that *capabilities* make."""
    for claim in CLAIMS:
        name = claim.partition("=")[0]
        declared = getattr(capabilities, name)
        if declared is True or f"{name}={declared}" == claim or _WEAKER.get(f"{name}={declared}") == claim:
            yield claim


def rule(
    *names: str, proves: Collection[str] = ()
) -> Callable[[Callable[Concatenate[Any, Stage, P], Coroutine[Any, Any, None] | None]], Callable[..., None]]:
    """Make a test of a function of a :class:`Stage`, about the rules *names*.

    A coroutine function runs on a new event loop, within the harness's bound, and must leave no task.  A plain
    function passes its coroutines to :meth:`Stage.run <events_core.testing.Stage.run>`, which keeps that bound.

    :param proves: keys of ``CLAIMS``: the capabilities that are proven only if this test passes.
    """

    def decorate(test: Callable[Concatenate[Any, Stage, P], Coroutine[Any, Any, None] | None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(self: object, harness: Harness, request: pytest.FixtureRequest, **params: Any) -> None:
            _check_exceptions(self, harness)
            losses = _losses.setdefault(type(self), Losses())
            stage = Stage(harness)
            _claim(request.node, stage, proves)
            if harness.proof is not None and type(self) not in _introduced:
                _introduced.add(type(self))
                request.node.user_properties.append((SUBJECT, introduced(type(self), stage)))
            began = time.monotonic()
            try:
                # Inside the ``try``, so that the table also shows a test that the kit left out.
                losses.check(harness.give_up_after)
                _play(stage, functools.partial(test, self, stage, **_taken(params, request)))
            except pytest.skip.Exception as skipped:
                finding = finding_of(skipped)
                if finding is not None:
                    _note(request.node, *finding)
                raise
            except (Exception, pytest.fail.Exception) as error:
                reason = _exception(harness, test.__name__, names)
                if reason:
                    _note(request.node, "excepted", reason)
                    pytest.xfail(reason)
                losses.failed(request.node.name, time.monotonic() - began)
                for name in names:
                    error.add_note(f"breaks {name}: {RULES.get(name, '')}")
                raise
            losses.closed(stage.closing)

        given = inspect.signature(test)
        takes_request = "request" in given.parameters

        def _taken(params: Mapping[str, Any], request: pytest.FixtureRequest) -> Mapping[str, Any]:
            return {**params, "request": request} if takes_request else params

        # Pytest reads fixtures from this signature.  A stage is no fixture: only ``run`` knows when its test is over.
        run.__signature__ = given.replace(parameters=[*_fixtures(given)])  # type: ignore[attr-defined]  # pytest reads it
        run.rules = names  # type: ignore[attr-defined]  # for the plugin's table
        run.proves = proves  # type: ignore[attr-defined]
        return run

    return decorate


def _fixtures(signature: inspect.Signature) -> Iterator[inspect.Parameter]:
    """Yield the fixtures of a test: a harness in the place of its stage, and the request."""
    for parameter in signature.parameters.values():
        if parameter.name == "stage":
            yield parameter.replace(name="harness", annotation=Harness)
        elif parameter.name != "request":
            yield parameter
    yield inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)


class Losses:
    """The time that a suite has lost in failing tests and in closing.

    A broker that delivers nothing makes nearly every test wait in vain.  So the kit gives up after a while.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._failed: list[str] = []

    def failed(self, test: str, seconds: float) -> None:
        """Note that *test* has failed."""
        self._failed.append(test)
        self._seconds += seconds

    def closed(self, seconds: float) -> None:
        """Note how long a test that passed has closed its clients."""
        self._seconds += seconds

    def check(self, limit: float) -> None:
        """Leave out the next test if *limit* seconds are lost.

        Closing counts as lost time only once something has failed: until then a slow broker is only slow.
        """
        if self._failed and self._seconds > limit:
            not_shown(
                f"the kit gave up after {self._seconds:.0f} s in failing tests and in closing (Harness.give_up_after); "
                f"fix the first failures first: {', '.join(self._failed[:3])}"
            )


# By suite and not by instance: pytest makes an instance for each test.
_losses: dict[type, Losses] = {}


_introduced: set[type] = set()
"""The suites whose facts this process has reported.  Once is enough, and a server may have to be asked for them."""


def _claim(item: pytest.Item, stage: Stage, proves: Collection[str]) -> None:
    """Let the report of *item* carry the capabilities that are declared, and that this test proves."""
    if not proves:
        return
    try:
        declared = set(claims(stage.capabilities))
    except Exception:  # a broken backend may raise anything here; its tests will say so
        return
    item.user_properties += [(CLAIM, claim) for claim in proves if claim in declared]


def _note(item: pytest.Item, state: str, detail: str) -> None:
    """Let the report of *item* carry its state in the table of rules."""
    item.user_properties.append((STATE, (state, detail)))


def _check_exceptions(suite: object, harness: Harness) -> None:
    # A misspelt name would excuse nothing, and nobody would notice.
    for name in harness.exceptions:
        if name not in RULES and not hasattr(suite, name):
            pytest.fail(f"{type(harness).__name__}.exceptions names {name!r}, which is neither a rule nor a test")


def _exception(harness: Harness, test: str, rules: tuple[str, ...]) -> str:
    reasons = [harness.exceptions[name] for name in (test, *rules) if name in harness.exceptions]
    return reasons[0] if reasons else ""


def _play(stage: Stage, test: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
    # The log is attached before the test, because what matters often happened before the failure.
    log = Log()
    with log.of("events_core", *_package(stage)), logged(log), explained(stage.where, stage.waited_on):
        try:
            scene = test()
            if scene is not None:
                asyncio.run(_watch(scene, stage))
        finally:
            asyncio.run(stage.close())  # a coroutine has closed its clients; this is for a plain function


def _package(stage: Stage) -> Iterator[str]:
    """Yield the name under which the backend logs."""
    with contextlib.suppress(Exception):  # a broken backend may raise anything here; its tests will say so
        yield load_backend(stage.config().backend).__module__.partition(".")[0]


async def _watch(scene: Coroutine[Any, Any, None], stage: Stage) -> None:
    try:
        await stage.bounded(scene)
    finally:
        await stage.close()
    await _assert_no_task_left()


async def _assert_no_task_left() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        # A cancelled task needs a turn of the loop to end, and a busy machine may need a while for it.
        _, tasks = await asyncio.wait(tasks, timeout=_LAST_TURNS)
    if tasks:
        raise AssertionError(f"tasks are left after closing (C3): {tasks}")
