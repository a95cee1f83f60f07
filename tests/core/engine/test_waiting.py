"""Waiting in one loop for another thread."""

from __future__ import annotations

import asyncio
import threading

from events_core.engine.waiting import SingleFlight, Waiter, WaitingRoom, _mailbox


def test_a_waiter_is_woken_from_another_thread() -> None:
    """T1: and waking it twice, or after its loop has closed, is harmless."""

    async def main() -> Waiter:
        waiter = Waiter()
        threading.Thread(target=waiter.wake).start()
        await asyncio.wait_for(waiter.wait(), 10)
        waiter.wake()
        return waiter

    asyncio.run(main()).wake()


def test_bounded_waits_end_when_their_time_is_up() -> None:
    """P7: those that were woken before it are not kept."""

    async def main() -> None:
        for _ in range(100):
            waiter = Waiter()
            waiter.wake()
            await waiter.wait_within(0.05)
        assert len(_mailbox()._queues[0.05]) == 1
        await asyncio.wait_for(asyncio.gather(*(Waiter().wait_within(0.05) for _ in range(3))), 10)

    asyncio.run(main())


def test_one_waiter_of_each_loop_is_woken() -> None:
    """R3: a loop that does not run keeps nobody else waiting."""
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
        assert [waiter.done for waiter in waiters] == [True, False]
        assert room.enter(room.events - 1) is None

    asyncio.run(main())
    stopped.close()


def test_an_operation_runs_once_for_all_who_ask() -> None:
    """Whoever asks while it runs waits for it; after a failure the next runs it again."""

    async def main() -> None:
        runs: list[int] = []

        async def call(work: object) -> None:
            await work  # type: ignore[misc]  # whatever the operation is

        flight = SingleFlight(call)

        async def operation() -> None:
            runs.append(1)
            await asyncio.sleep(0)
            if len(runs) == 1:
                raise LookupError

        asked = [flight.run(operation, lambda: len(runs) == 2) for _ in range(3)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [LookupError, type(None), type(None)]
        assert len(runs) == 2

    asyncio.run(main())
