"""Waiting in one event loop for something that another thread does."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from events_core.engine import BrokerError
from events_core.engine.loop_thread import ThreadHome
from events_core.engine.waiting import LoopTimers, SingleFlight, Waiter, WaitingRoom


def test_a_waiter_is_woken_from_another_thread() -> None:
    """T1: waking it twice, or after its loop has closed, is harmless."""

    async def main() -> Waiter:
        waiter = Waiter()
        threading.Thread(target=waiter.wake).start()
        await asyncio.wait_for(waiter, 60)
        waiter.wake()
        return waiter

    asyncio.run(main()).wake()


class Owner:
    """Something that tasks wait for."""

    def __init__(self) -> None:
        self.timers = LoopTimers(self.check)
        self.looks = 0
        self.waits = True

    def check(self) -> float | None:
        self.looks += 1
        return time.monotonic() + 0.01 if self.waits else None


def test_each_loop_has_one_timer_while_something_waits() -> None:
    """P7: the timer looks again when its owner says so, and ends when nothing waits."""
    owner = Owner()

    async def look() -> None:
        before = owner.looks
        for _ in range(3):
            owner.timers.ensure(asyncio.get_running_loop())
        assert owner.looks == before + 1
        async with asyncio.timeout(60):
            while owner.looks < before + 3:
                await asyncio.sleep(0.01)

    async def end() -> None:
        await look()
        owner.waits = False
        async with asyncio.timeout(60):
            while owner.timers._loops:
                await asyncio.sleep(0.01)

    asyncio.run(look())  # leaves a closed loop behind
    asyncio.run(end())


def test_a_timer_does_not_keep_its_owner_alive() -> None:
    """C3: an application may drop a client without closing it."""

    async def main() -> None:
        owner = Owner()
        owner.timers.ensure(asyncio.get_running_loop())
        timers = weakref.ref(owner.timers)
        del owner
        async with asyncio.timeout(60):
            while timers() is not None:
                gc.collect()
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_one_waiter_of_each_loop_is_woken() -> None:
    """R3: a loop that does not run keeps no other loop waiting."""
    room = WaitingRoom()
    stopped = asyncio.new_event_loop()

    async def enter() -> Waiter:
        waiter = room.enter(room.events)
        assert waiter is not None
        return waiter

    stopped.run_until_complete(enter())

    async def main() -> None:
        waiters = [await enter() for _ in range(2)]
        room.wake()
        await asyncio.sleep(0)
        assert [waiter.is_done for waiter in waiters] == [True, False]
        assert room.enter(room.events - 1) is None

    asyncio.run(main())
    stopped.close()


def test_an_operation_runs_once_for_all_who_ask() -> None:
    """A caller that comes while it runs waits for it; after a failure the next caller runs it again."""

    async def main() -> None:
        runs: list[int] = []

        async def call(work: object, timeout: float) -> None:
            await work  # type: ignore[misc]  # whatever the operation is

        flight = SingleFlight(call)

        async def operation() -> None:
            runs.append(1)
            await asyncio.sleep(0)
            if len(runs) == 1:
                raise LookupError

        asked = [flight.run(operation, lambda: len(runs) == 2, 60) for _ in range(3)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [LookupError, type(None), type(None)]
        assert len(runs) == 2

    asyncio.run(main())


def test_an_operation_whose_caller_was_cancelled_before_it_began_runs_alone() -> None:
    """P8, C2: it runs to its end, and a second caller waits for it instead of running it too."""

    async def main() -> None:
        free = asyncio.Event()
        running: list[int] = []
        done = False

        async def call(work: Coroutine[Any, Any, None], timeout: float) -> None:
            async def later() -> None:
                await free.wait()
                await work

            await asyncio.shield(asyncio.ensure_future(later()))

        async def operation() -> None:
            nonlocal done
            running.append(len(running))
            await asyncio.sleep(0)
            done = True

        flight = SingleFlight(call)
        first = asyncio.create_task(flight.run(operation, lambda: done, 60))
        await asyncio.sleep(0)
        first.cancel()
        second = asyncio.create_task(flight.run(operation, lambda: done, 60))
        await asyncio.wait([first])
        free.set()
        await asyncio.wait_for(second, 60)
        assert running == [0]

    asyncio.run(main())


def test_an_operation_that_a_stopping_home_had_started_is_over_for_all() -> None:
    """P7: it begins, no matter how soon it is cancelled; otherwise the next caller would wait without end."""
    home = ThreadHome()
    home.start()
    thread = home._thread
    assert thread is not None
    busy, stopped = threading.Event(), threading.Event()

    async def main() -> None:
        async def operation() -> None:
            await asyncio.sleep(60)

        async def end() -> None:
            await home.end_tasks(60)
            await home.stop(60)
            stopped.set()

        thread.post(busy.wait)
        thread.post(lambda: thread.loop.create_task(end()))
        flight = SingleFlight(home.run)
        first = asyncio.create_task(flight.run(operation, lambda: False, 60))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        busy.set()
        with pytest.raises(BrokerError, match="closed"):
            await flight.run(operation, lambda: False, 60)

    asyncio.run(main())
    assert stopped.wait(60)
    asyncio.run(home.ended(60))
    assert not thread.is_alive
