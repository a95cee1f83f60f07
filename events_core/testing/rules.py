"""The rules that the kit proves, and how a test says which of them it is about."""

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
from events_core.testing.skipping import finding_of, not_shown
from events_core.testing.stage import Stage

__all__ = ["CLAIMS", "RULES", "claims", "rule"]

P = ParamSpec("P")

RULES: Mapping[str, str] = {
    "§1": "what is received is what was sent",
    "§3": "a client connects on first use and tells its state",
    "§4": "a receiver tells what it holds",
    "§5": "errors say which operation failed, why and where",
    "§6": "capabilities are known without I/O and never grow",
    "O1": "wrong options are reported all at once, before any I/O",
    "O2": "option values and secrets are never shown",
    "O4": "what a configuration requires is checked before I/O, and on joining",
    "B1": "importing the backend does not import its SDK",
    "B3": "the backend loads by its name, for this interface version",
    "P1": "a send returns the id that receivers see, once it is stored",
    "P2": "a batch is checked as a whole, kept in order, split where needed",
    "P3": "a bad message fails nobody else's",
    "P4": "keyed sends are stored in the order of the calls",
    "P5": "concurrent sends keep their order and lose nothing",
    "P6": "what is in flight is bounded",
    "P7": "every send ends, and permanent errors surface at once",
    "P8": "a cancelled send harms nobody",
    "Q1": "named subscriptions are durable and shared, ephemeral ones end",
    "Q2": "what is missing is created as the options allow, or named",
    "Q3": "a new subscription may begin with the oldest message kept",
    "Q4": "subscribe() can be awaited, and entered with async with",
    "R1": "None comes only when the timeout ran out",
    "R2": "1 to limit messages, as soon as one is there",
    "R3": "cancelled and stopped receives lose nothing",
    "R4": "no delivery goes to two tasks or threads",
    "R5": "what is held or buffered is bounded",
    "R6": "leases are kept until max_lease_duration, then expire",
    "R7": "what is held is not handed out again",
    "R8": "messages of a key come in order, to one caller at a time",
    "R9": "what is not acknowledged comes again, the same",
    "R10": "after a nack a key goes on with that message",
    "R11": "nacks are redelivered with backoff, and not before a delay",
    "R12": "what failed too often goes to the dead letter topic",
    "S1": "what was acknowledged does not come again",
    "S2": "a delivery is settled once, by message or by id",
    "S3": "settling too late, or what is unknown, says so",
    "S4": "a batch settles all that can be settled",
    "S5": "a failed or cancelled settlement ends nothing",
    "S6": "a rejected message goes to the dead letter topic at once",
    "C1": "a closing receiver lets settle what is held and hands the rest back",
    "C2": "a closing client flushes its sends, and closing is idempotent",
    "C3": "after closing every call says CLOSED and nothing is left",
    "F1": "an outage is not an end",
    "F2": "what was held in a lost session stays valid, or is EXPIRED",
    "F3": "what was confirmed survives the process, where declared",
    "T1": "one client serves any thread and any loop",
    "T2": "a connected client refuses to work after a fork",
    "N1": "the broker's own connection and messages are there, or UNSUPPORTED",
    "H1": "processing settles a message by how its block ends",
    "H2": "consuming handles, settles and ends as it should",
    "H3": "a handler may reject its message, or ask for it later",
    "V1": "an observer sees each operation, and nothing is printed",
}
"""Every rule that has a test here, in the order of the contract, as one line."""


CLAIMS: Mapping[str, str] = {
    "durable=process_crash": "what was confirmed survives the crash of a process that stores it",
    "durable=power_loss": "what was confirmed survives a power loss",
    "ordering=receiver": "a receiver gets the messages of a key in order",
    "ordering=subscription": "all receivers of a subscription get the messages of a key in order",
    "replay": "a new subscription may begin with the oldest message kept",
    "dead_letter": "what failed too often goes to another topic",
    "reject": "a handler can send a message to the dead letter topic at once",
    "delivery_attempts": "deliveries are counted",
    "ack_confirmed": "acknowledging ends with the broker's confirmation",
    "exactly_once": "what was confirmed as acknowledged never comes again",
    "idempotent_publish": "a retried send is stored once",
}
"""What a backend may declare, as one line each; each stronger value of a capability is a claim of its own."""

BEYOND_TESTS: Mapping[str, str] = {"durable=power_loss": "no test makes a power loss"}
"""What may be declared and is never proven, and why."""

RULE, CLAIM, STATE = "rule", "claim", "state"
"""Names of the user properties of a test: a rule that it is about, a capability that it proves, and its state with a
detail if it ended without a verdict."""

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

    A coroutine function runs on an event loop of its own, within the harness's bound, and must leave no task.  A plain
    one gives :meth:`Stage.run <events_core.testing.Stage.run>` what may take its time.

    :param proves: claims of the backend, each as in ``CLAIMS``, that are proven only when this test passes.
    """

    def decorate(test: Callable[Concatenate[Any, Stage, P], Coroutine[Any, Any, None] | None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(self: object, harness: Harness, request: pytest.FixtureRequest, **params: Any) -> None:
            _check_exceptions(self, harness)
            losses = _losses.setdefault(type(self), Losses())
            stage = Stage(harness)
            _claim(request.node, stage, proves)
            began = time.monotonic()
            try:
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

        run.__signature__ = given.replace(parameters=[*_fixtures(given)])  # type: ignore[attr-defined]  # pytest reads it
        run.rules = names  # type: ignore[attr-defined]  # for the plugin's table
        run.proves = proves  # type: ignore[attr-defined]
        return run

    return decorate


def _fixtures(signature: inspect.Signature) -> Iterator[inspect.Parameter]:
    """Yield what pytest must give to a test: a harness where the test has a stage, and the request."""
    for parameter in signature.parameters.values():
        if parameter.name == "stage":
            yield parameter.replace(name="harness", annotation=Harness)
        elif parameter.name != "request":
            yield parameter
    yield inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)


class Losses:
    """The time that a suite has lost with what is broken."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._failed: list[str] = []

    def failed(self, test: str, seconds: float) -> None:
        """*test* has failed."""
        self._failed.append(test)
        self._seconds += seconds

    def closed(self, seconds: float) -> None:
        """A test that passed has closed its clients."""
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


_losses: dict[type, Losses] = {}


def _claim(item: pytest.Item, stage: Stage, proves: Collection[str]) -> None:
    """Let the report of *item* carry what is declared and not proven without it."""
    if not proves:
        return
    try:
        declared = set(claims(stage.capabilities))
    except Exception:  # a broken backend's may be any; what it breaks is for its tests to say
        return
    item.user_properties += [(CLAIM, claim) for claim in proves if claim in declared]


def _note(item: pytest.Item, state: str, detail: str) -> None:
    """Let the report of *item* carry its state in the table of rules."""
    item.user_properties.append((STATE, (state, detail)))


def _check_exceptions(suite: object, harness: Harness) -> None:
    for name in harness.exceptions:
        if name not in RULES and not hasattr(suite, name):
            pytest.fail(f"{type(harness).__name__}.exceptions names {name!r}, which is neither a rule nor a test")


def _exception(harness: Harness, test: str, rules: tuple[str, ...]) -> str:
    reasons = [harness.exceptions[name] for name in (test, *rules) if name in harness.exceptions]
    return reasons[0] if reasons else ""


def _play(stage: Stage, test: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
    log = Log()
    with log.of("events_core", *_package(stage)), logged(log), explained(stage.where, stage.waited_on):
        try:
            scene = test()
            if scene is not None:
                asyncio.run(_watch(scene, stage))
        finally:
            asyncio.run(stage.close())  # for a test that ran loops of its own


def _package(stage: Stage) -> Iterator[str]:
    """The name under which the backend logs."""
    with contextlib.suppress(Exception):  # what is wrong with the backend is for its tests to say
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
        # What was cancelled needs a turn of the loop to end.
        _, tasks = await asyncio.wait(tasks, timeout=1)
    if tasks:
        raise AssertionError(f"tasks are left after closing (C3): {tasks}")
