"""Code that the garbage collector runs: coroutines of closed loops, in any thread, perhaps under a lock."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from events_core import (
    EventClient,
    EventConfig,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    ReceivedMessage,
    consume,
)
from events_core.backends.memory import MemoryClient
from events_core.engine import client as client_module
from events_core.engine import inbox as inbox_module
from events_core.engine import publisher as publisher_module
from events_core.engine import waiting as waiting_module
from events_core.engine.client import EngineClient
from events_core.engine.loop_order import LoopOrder
from events_core.engine.loop_thread import LoopThread
from events_core.engine.receiver import EngineReceiver
from events_core.engine.waiting import WaitingRoom
from events_core.observing import Operation

from ..network_memory import NetworkClient

_topics = itertools.count()


class CollectingLock:
    """A lock that collects garbage as soon as it is taken, and finds a thread that takes it twice."""

    is_armed = False
    taken_twice = 0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def __enter__(self) -> None:
        if self._holder == threading.get_ident():
            CollectingLock.taken_twice += 1
            raise RuntimeError("a thread waits for a lock that it holds")
        self._lock.acquire()
        self._holder = threading.get_ident()
        if CollectingLock.is_armed:
            gc.collect()

    def __exit__(self, *_: object) -> None:
        self._holder = None
        self._lock.release()


@pytest.fixture(autouse=True)
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collect garbage only where a test says so, and under each lock of a client or receiver."""
    locks = types.SimpleNamespace(Lock=CollectingLock)
    for module in (client_module, publisher_module, inbox_module, waiting_module):
        monkeypatch.setattr(module, "threading", locks)
    monkeypatch.setattr(CollectingLock, "is_armed", False)
    monkeypatch.setattr(CollectingLock, "taken_twice", 0)
    gc.collect()
    # Otherwise each lock would collect all that the tests before have left in this process: seconds on a busy machine.
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def leave_behind(*coroutines: Coroutine[Any, Any, Any], until: Callable[[], bool] = lambda: True) -> None:
    """Run *coroutines* until they wait and *until* is true, in a loop that is then closed without cancelling them."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(coroutine) for coroutine in coroutines]

    async def wait() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while not until():
                await asyncio.sleep(0.001)

    loop.run_until_complete(wait())
    del tasks
    loop.close()


@pytest.fixture(params=[MemoryClient, NetworkClient], ids=["inline", "thread"])
def client(request: pytest.FixtureRequest) -> Iterator[EventClient]:
    made: EventClient = request.param(EventConfig(f"topic-{next(_topics)}"))
    yield made
    CollectingLock.is_armed = False
    asyncio.run(made.close(timeout=0))


async def _receiver(client: EventClient, *messages: bytes) -> tuple[EventReceiver, list[ReceivedMessage]]:
    """Return a receiver that holds *messages*."""
    receiver = await client.subscribe("s")
    await client.send_messages([EventMessage(data) for data in messages])
    held: list[ReceivedMessage] = []
    while len(held) < len(messages):
        held += await receiver.receive_messages(10, 60)
    return receiver, held


async def _process(receiver: EventReceiver, message: ReceivedMessage) -> None:
    async with receiver.processing(message):
        await asyncio.get_running_loop().create_future()


def test_a_collected_processing_hands_its_message_back(client: EventClient, caplog: pytest.LogCaptureFixture) -> None:
    """H1: the next turn of the engine hands it back uncounted, and the collector takes no lock and logs nothing."""
    receiver, (held,) = asyncio.run(_receiver(client, b"x"))
    with caplog.at_level(logging.DEBUG, "events_core"):
        leave_behind(_process(receiver, held))
        CollectingLock.is_armed = True

        async def again() -> ReceivedMessage | None:
            return await receiver.receive_message(60)

        came = asyncio.run(again())
    assert CollectingLock.taken_twice == 0
    assert [record for record in caplog.records if "given back" in record.getMessage()] == []
    assert came is not None
    assert (came.message_id, came.delivery_attempt) == (held.message_id, 1)


async def _iterate(receiver: EventReceiver) -> None:
    async for _ in receiver:
        pass


async def _receive(receiver: EventReceiver) -> None:
    await receiver.receive_message()


@pytest.mark.parametrize("waits", [_receive, _iterate])
def test_a_collected_receive_hinders_no_other(
    client: EventClient, waits: Callable[[EventReceiver], Coroutine[Any, Any, Any]]
) -> None:
    """R3: the next message wakes a receive in another loop."""
    receiver, _ = asyncio.run(_receiver(client))
    leave_behind(*(waits(receiver) for _ in range(3)))
    CollectingLock.is_armed = True

    async def send_and_receive() -> bytes | None:
        receiving = asyncio.create_task(receiver.receive_message(60))
        await asyncio.sleep(0)
        await client.send_message(EventMessage(b"x"))
        message = await receiving
        return None if message is None else message.data

    assert asyncio.run(send_and_receive()) == b"x"
    assert CollectingLock.taken_twice == 0


def test_a_collected_settlement_is_still_applied(client: EventClient) -> None:
    """S5: it is applied or not, and the receiver goes on."""
    receiver, (held,) = asyncio.run(_receiver(client, b"x"))
    leave_behind(receiver.acknowledge(held))
    CollectingLock.is_armed = True

    async def again() -> None:
        await receiver.acknowledge(held)

    asyncio.run(again())
    assert CollectingLock.taken_twice == 0
    assert receiver.stats.held == 0


def test_an_observer_is_not_told_by_the_collector(client: EventClient) -> None:
    """V1: the observer may take locks, so it does not hear of the end of the operation."""
    receiver, _ = asyncio.run(_receiver(client))
    ended: list[BaseException | None] = []

    class Observing:
        def start(self, operation: Operation) -> None: ...

        def end(self, operation: Operation, error: BaseException | None) -> None:
            ended.append(error)

    client.observer = Observing()
    leave_behind(receiver.receive_message())
    receiver._waiting.wake()  # type: ignore[attr-defined]  # nobody knows the waiter any more
    gc.collect()
    assert ended == []


async def _handle(message: ReceivedMessage) -> None:
    await asyncio.get_running_loop().create_future()


def test_what_a_collected_consumer_handled_comes_again(client: EventClient) -> None:
    """H2: the consumer was waiting for messages, or handling one."""
    receiver, _ = asyncio.run(_receiver(client))
    asyncio.run(client.send_message(EventMessage(b"x")))  # type: ignore[arg-type]  # a coroutine, as an awaitable
    leave_behind(consume(receiver, _handle, concurrency=3), until=lambda: receiver.stats.held == 1)
    CollectingLock.is_armed = True

    async def again() -> bytes:
        async with asyncio.timeout(60):
            while (message := await receiver.receive_message(0.1)) is None:
                pass
        return message.data

    assert asyncio.run(again()) == b"x"
    assert CollectingLock.taken_twice == 0


def test_a_close_does_not_wait_for_what_was_abandoned(client: EventClient) -> None:
    """C1: an abandoned message goes back at once."""
    receiver, (held,) = asyncio.run(_receiver(client, b"x"))
    leave_behind(_process(receiver, held))
    gc.collect()

    async def close_and_receive() -> ReceivedMessage | None:
        await asyncio.wait_for(receiver.close(timeout=3600), 60)
        return await (await client.subscribe("s")).receive_message(60)

    again = asyncio.run(close_and_receive())
    assert again is not None
    assert (again.message_id, again.delivery_attempt) == (held.message_id, 1)


async def _stay(entered: EventClient | EventReceiver) -> None:
    async with entered:
        await asyncio.get_running_loop().create_future()


# An ``async with`` cannot end without awaiting, so Python reports each one that the collector has ended.
reported = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@reported
def test_a_client_outlives_a_block_that_was_collected(client: EventClient, caplog: pytest.LogCaptureFixture) -> None:
    """C2: the collector takes none of its locks, and a later close works without a warning."""
    assert isinstance(client, EngineClient)
    receiver, _ = asyncio.run(_receiver(client))
    assert isinstance(receiver, EngineReceiver)
    caplog.set_level(logging.WARNING)
    leave_behind(_stay(client), _stay(receiver))
    CollectingLock.is_armed = True
    for lock in (client._starting, client._publisher._lock, receiver._lock):
        with lock:
            pass
    assert CollectingLock.taken_twice == 0
    CollectingLock.is_armed = False  # collecting at each lock would keep the thread from closing in time
    asyncio.run(asyncio.wait_for(client.close(timeout=3600), 60))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("events_core")] == []


@reported
def test_a_receiver_whose_block_was_collected_keeps_nothing(client: EventClient) -> None:
    """R9: what it had buffered goes to other receivers."""
    receiver, _ = asyncio.run(_receiver(client))
    leave_behind(_stay(receiver))
    del receiver
    gc.collect()

    async def receive() -> ReceivedMessage | None:
        other = await client.subscribe("s")
        await client.send_message(EventMessage(b"x"))
        return await other.receive_message(60)

    assert asyncio.run(receive()) is not None


@reported
def test_leaving_a_block_in_the_collector_wakes_no_loop(client: EventClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no lock and does no I/O: the thread at home looks for itself."""
    receiver, _ = asyncio.run(_receiver(client))
    leave_behind(_stay(receiver))
    del receiver
    here, posting = threading.get_ident(), set[int]()
    post = LoopThread.post

    def noted(thread: LoopThread, callback: Callable[[], object]) -> bool:
        posting.add(threading.get_ident())
        return post(thread, callback)

    monkeypatch.setattr(LoopThread, "post", noted)
    gc.collect()
    assert here not in posting


def test_a_generator_that_is_closed_closes_its_receiver(client: EventClient) -> None:
    """C1: a generator ends with GeneratorExit too, and may await."""

    async def received() -> AsyncIterator[ReceivedMessage]:
        async with await client.subscribe("s") as receiver:
            receivers.append(receiver)
            async for message in receiver:
                yield message

    receivers: list[EventReceiver] = []

    async def scene() -> None:
        messages = received()
        first = asyncio.ensure_future(anext(messages))
        while not receivers:
            await asyncio.sleep(0)
        await client.send_message(EventMessage(b"x"))
        await first
        await messages.aclose()
        with pytest.raises(EventRuntimeError):
            await receivers[0].receive_message()

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_a_line_is_forgotten_with_its_loop() -> None:
    """P4: all sends that had their turn or waited for it are forgotten."""
    order = LoopOrder()

    async def enter() -> None:
        async with order.turn():
            while True:
                await asyncio.sleep(0)

    leave_behind(*(enter() for _ in range(3)))
    gc.collect()
    assert order.lines == {}


@pytest.mark.parametrize("happen", [WaitingRoom.wake, WaitingRoom.wake_all])
def test_a_waiting_room_forgets_waiters_of_closed_loops(happen: Callable[[WaitingRoom], None]) -> None:
    """The next event drops them, whether it wakes one waiter or all."""
    room = WaitingRoom()

    async def wait() -> None:
        waiter = room.enter(room.events)
        assert waiter is not None
        await room.wait(waiter, None)

    leave_behind(wait(), wait())
    assert len(room._waiters) == 1
    happen(room)
    assert room._waiters == {}


def test_a_waiter_that_was_collected_is_not_woken_in_place_of_another() -> None:
    """The next event wakes a waiter whose coroutine still runs."""
    room = WaitingRoom()

    async def wait() -> None:
        waiter = room.enter(room.events)
        assert waiter is not None
        await room.wait(waiter, None)

    async def test() -> None:
        ended = wait()
        ended.send(None)  # waits
        with room._lock:
            ended.close()
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        room.wake()
        await asyncio.wait_for(waiting, 60)

    asyncio.run(test())
    assert CollectingLock.taken_twice == 0
