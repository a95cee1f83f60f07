"""A contest of clients: each works in a process of its own, in turns, and the ratios of their figures are judged.

Compare only the ratios of one run, because absolute figures mean little on a shared machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

Figures = dict[str, float]
"""What a contender measured in one work, by name."""
Round = dict[str, Figures]
"""The figures of each contender."""
Measure = Callable[[str, str, int], Figures]
"""A function that lets a contender do a work, by its name, with a number of messages."""


@dataclass(frozen=True)
class Meter:
    """A meter of the time and of this process's CPU since its construction, in seconds."""

    began: float = field(default_factory=time.perf_counter)
    cpu_began: float = field(default_factory=time.process_time)

    def read(self, messages: int) -> Figures:
        cpu = time.process_time() - self.cpu_began
        return {"messages": messages, "seconds": time.perf_counter() - self.began, "cpu": cpu}


# Measuring


def start(program: Path, task: Mapping[str, object], environment: Mapping[str, str] = {}) -> subprocess.Popen[str]:
    """Start *program* with *task* as JSON; it prints its figures as JSON in the last line."""
    return subprocess.Popen(
        [sys.executable, str(program), json.dumps(task)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process: subprocess.Popen[str]) -> Figures:
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    if process.returncode:
        raise SystemExit(f"{process.args[-1]} fails:\n{errors}")  # type: ignore[index]
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures


def take_turns(measure: Callable[[str], Figures], contenders: Sequence[str], rounds: int) -> list[Round]:
    """Return the figures of each contender, for each round; no contender is always first."""
    found = []
    for number in range(rounds):
        turn = number % len(contenders)
        order = [*contenders[turn:], *contenders[:turn]]
        found.append({contender: measure(contender) for contender in order})
    return found


# Judging


def rate(figures: Figures) -> float:
    return figures["messages"] / figures["seconds"]


def cpu(figures: Figures) -> float:
    return figures["cpu"] / figures["messages"] * 1e6


def median_ms(figures: Figures) -> float:
    return figures["median"] * 1e3


@dataclass(frozen=True)
class Goal:
    """A bound for the ratio of our figure to a peer's."""

    unit: str
    value: Callable[[Figures], float]
    peer: str
    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:.3g}"

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.at_least else ratio <= self.bound


@dataclass(frozen=True)
class Work:
    """A work, by its name in the program of the contenders, with our goals for it."""

    name: str
    title: str
    goals: Sequence[Goal]


def print_heading(contenders: Iterable[str]) -> None:
    names = "".join(f"{name:>11}" for name in contenders)
    print(f"\n{'work':34}{'':8}{names}   {'ours ÷':11}{'median (least … most)':>24}   goal")


def print_rows(letter: str, work: Work, contenders: Sequence[str], rounds: Sequence[Round]) -> None:
    for goal in work.goals:
        medians = "".join(f"{_middle(goal, rounds, name):>11}" for name in contenders)
        line = f"{letter} {work.title:32}{goal.unit:8}{medians}   {goal.peer:11}"
        print(f"{line}{_judge(goal, rounds)}" if {"ours", goal.peer} <= rounds[0].keys() else line, flush=True)


def compete(
    letter: str, work: Work, contenders: Sequence[str], measure: Measure, messages: int, rounds: int
) -> list[Round]:
    """Let *contenders* take turns in *work*, print the rows of its goals, and return the rounds."""
    measure("floor", work.name, messages // 4)  # this warms the broker
    found = take_turns(lambda contender: measure(contender, work.name, messages), contenders, rounds)
    print_rows(letter, work, contenders, found)
    return found


def run_program(
    description: str | None,
    works: Mapping[str, Work],
    contenders: Mapping[str, str],
    find: Callable[[], AbstractContextManager[Measure]],
    *,
    messages: int,
    fewest: int,
    rounds: int,
) -> None:
    """Read the command line, and let the chosen contenders compete in the chosen works.

    :param works: the works, by their letters.
    :param contenders: the contenders, and the distribution of each.
    :param find: finds or starts the broker.
    :param messages: the default of ``--messages``, which takes *fewest* at least.
    :param rounds: the default of ``--rounds``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(works), help="letters of the works to run, such as a,b")
    parser.add_argument(
        "--with", default=",".join(contenders), dest="contenders", help="contenders, such as ours,floor"
    )
    parser.add_argument("--messages", type=int, default=messages, help=f"at least {fewest:,}; {messages:,} by default")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"{rounds} by default")
    chosen = parser.parse_args()
    letters, names = chosen.only.split(","), chosen.contenders.split(",")
    if chosen.messages < fewest or not works.keys() >= set(letters) or not contenders.keys() >= set(names):
        parser.error(
            f"--only takes letters of {', '.join(works)}, --with takes {', '.join(contenders)}, "
            f"and --messages takes {fewest:,} or more"
        )
    there = installed({name: contenders[name] for name in names})
    with find() as measure:
        print_heading(there)
        for letter in letters:
            compete(letter, works[letter], there, measure, chosen.messages, chosen.rounds)


def _judge(goal: Goal, rounds: Sequence[Round]) -> str:
    ratios = [goal.value(each["ours"]) / goal.value(each[goal.peer]) for each in rounds]
    ratio = statistics.median(ratios)
    shown = f"{ratio:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
    return f"{shown:>24}   {goal} {'met' if goal.met(ratio) else 'not met'}"


def _middle(goal: Goal, rounds: Sequence[Round], contender: str) -> str:
    if contender not in rounds[0]:
        return "–"
    median = statistics.median(goal.value(each[contender]) for each in rounds)
    return f"{median:,.0f}" if median >= 1_000 else f"{median:.2f}"


def installed(contenders: Mapping[str, str]) -> list[str]:
    """Print the version of each contender's distribution, and return the contenders that are installed."""
    found = []
    versions: dict[str, str] = {}
    for contender, name in contenders.items():
        try:
            versions[name] = importlib.metadata.version(name)
            found.append(contender)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed: no figures for {contender}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    return found
