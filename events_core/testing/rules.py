"""The rules that the kit proves, and how a test says which of them it is about."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec

import pytest

from events_core.testing.harness import Harness
from events_core.testing.stage import Stage

__all__ = ["RULES", "rule"]

P = ParamSpec("P")

RULES: Mapping[str, str] = {
    "§1": "what is received is what was sent",
    "§3": "a client connects on first use and tells its state",
    "§4": "a receiver tells what it holds",
    "§5": "errors say which operation failed, why and where",
    "§6": "capabilities are known without I/O and never grow",
    "O1": "wrong options are reported all at once, before any I/O",
    "O2": "option values and secrets are never shown",
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
    "C1": "a closing receiver lets settle what is held and hands the rest back",
    "C2": "a closing client flushes its sends, and closing is idempotent",
    "C3": "after closing every call says CLOSED and nothing is left",
    "F1": "an outage is not an end",
    "F2": "what was held in a lost session stays valid, or is EXPIRED",
    "F3": "what was confirmed survives the process, where declared",
    "T1": "one client serves any thread and any loop",
    "T2": "a connected client refuses to work after a fork",
    "H1": "processing settles a message by how its block ends",
    "H2": "consuming handles, settles and ends as it should",
    "V1": "an observer sees each operation, and nothing is printed",
}
"""Every rule that has a test here, in the order of the contract, as one line."""


def rule(
    *names: str,
) -> Callable[[Callable[Concatenate[Any, Stage, P], Coroutine[Any, Any, None] | None]], Callable[..., None]]:
    """Make a test of a function of a :class:`Stage`, about the rules *names*.

    A coroutine function runs on an event loop of its own, within the harness's bound, and must leave no task.  A plain
    one gives :meth:`Stage.run <events_core.testing.Stage.run>` what may take its time.
    """

    def decorate(test: Callable[Concatenate[Any, Stage, P], Coroutine[Any, Any, None] | None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(self: object, harness: Harness, *args: P.args, **params: P.kwargs) -> None:
            _check_exceptions(self, harness)
            try:
                _play(harness, lambda stage: test(self, stage, *args, **params))
            except (Exception, pytest.fail.Exception) as error:
                reason = _exception(harness, test.__name__, names)
                if reason:
                    pytest.xfail(reason)
                for name in names:
                    error.add_note(f"breaks {name}: {RULES.get(name, '')}")
                raise

        signature = inspect.signature(test)
        parameters = [
            parameter.replace(name="harness", annotation=Harness) if parameter.name == "stage" else parameter
            for parameter in signature.parameters.values()
        ]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # pytest reads it
        run.rules = names  # type: ignore[attr-defined]  # for the plugin's table
        return run

    return decorate


def _check_exceptions(suite: object, harness: Harness) -> None:
    for name in harness.exceptions:
        if name not in RULES and not hasattr(suite, name):
            pytest.fail(f"{type(harness).__name__}.exceptions names {name!r}, which is neither a rule nor a test")


def _exception(harness: Harness, test: str, rules: tuple[str, ...]) -> str:
    reasons = [harness.exceptions[name] for name in (test, *rules) if name in harness.exceptions]
    return reasons[0] if reasons else ""


def _play(harness: Harness, test: Callable[[Stage], Coroutine[Any, Any, None] | None]) -> None:
    stage = Stage(harness)
    try:
        scene = test(stage)
        if scene is not None:
            asyncio.run(_watch(scene, stage))
    finally:
        asyncio.run(stage.close())  # for a test that ran loops of its own


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
