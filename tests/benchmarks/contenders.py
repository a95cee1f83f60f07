"""The side of the contenders in a contest: their base class, and the works that each contest has.

A program of contenders gets a :class:`Task` as JSON, does its work and prints the figures as JSON (``contest.py``).
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from contest import Figures, Meter

PAYLOAD = bytes(range(256))
SENDERS = 2_000
BATCH = 1_000
RESPONSE = 100
"""Messages that are received and acknowledged together: the emulator of Pub/Sub sends no more in one response."""
FIRST_ALONE = 50


@dataclass(frozen=True, kw_only=True)
class Task:
    """A work for a contender, and its place."""

    contender: str
    work: str
    messages: int
    topic: str
    subscription: str = ""
    warm_up: int = 0
    """Messages to receive before the others count."""


TaskT = TypeVar("TaskT", bound=Task)


def attributes(number: int) -> dict[str, str]:
    return {"kind": "order.placed", "number": str(number)}


def read(data: bytes | None, attributes: Mapping[str, Any] | None) -> None:
    """Look at a message as an application does, because some clients decode only what is read."""
    assert data is not None
    assert attributes is not None
    assert len(data) == len(PAYLOAD)
    assert attributes["kind"] == "order.placed"


class Contender(ABC, Generic[TaskT]):
    """A client of one topic and, where the task names one, of a subscription."""

    def __init__(self, task: TaskT) -> None:
        self.task = task
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def send(self, number: int) -> None: ...

    async def send_batch(self, numbers: Iterable[int]) -> None:
        await asyncio.gather(*map(self.send, numbers))

    @abstractmethod
    async def take(self) -> int:
        """Receive and acknowledge messages that are there.  Return how many."""

    async def send_concurrently(self, messages: int) -> None:
        """Send from 2,000 tasks, each of which sends one message at a time."""

        async def sender(numbers: Iterable[int]) -> None:
            for number in numbers:
                await self.send(number)

        await asyncio.gather(*(sender(range(first, messages, SENDERS)) for first in range(SENDERS)))


# Works


async def send_concurrently(contender: Contender[Any]) -> Figures:
    await contender.send_concurrently(min(SENDERS, contender.task.messages))
    meter = Meter()
    await contender.send_concurrently(contender.task.messages)
    return meter.read(contender.task.messages)


async def send_batches(contender: Contender[Any]) -> Figures:
    await contender.send_batch(range(BATCH))
    meter = Meter()
    for first in range(0, contender.task.messages, BATCH):
        await contender.send_batch(range(first, min(first + BATCH, contender.task.messages)))
    return meter.read(contender.task.messages)


async def send_alone(contender: Contender[Any]) -> Figures:
    """Send one message after the other."""
    spent = []
    for number in range(FIRST_ALONE + contender.task.messages):
        began = time.perf_counter()
        await contender.send(number)
        spent.append(time.perf_counter() - began)
    return {"median": statistics.median(spent[FIRST_ALONE:])}


async def receive(contender: Contender[Any]) -> Figures:
    """Receive and acknowledge a backlog."""
    left = contender.task.warm_up
    while left > 0:
        left -= await contender.take()
    meter = Meter()
    counted = left = left + contender.task.messages
    while left > 0:
        left -= await contender.take()
    return meter.read(counted - left)


async def receive_backlog(contender: Contender[Any]) -> Figures:
    """Receive and acknowledge a backlog that is sent while this process is stopped.

    First receive the messages that show that the subscription works.  Then stop this process until the backlog is
    there.  So nothing is fetched before the meter runs, and nothing is fetched that does not count.
    """
    left = contender.task.warm_up
    while left > 0:
        left -= await contender.take()
    meter = Meter()
    os.kill(os.getpid(), signal.SIGSTOP)
    meter = replace(meter, began=time.perf_counter())
    left = contender.task.messages
    while left > 0:
        left -= await contender.take()
    return meter.read(contender.task.messages)
