"""Closing when a task does not end, a thread hangs, or a loop stands still."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from events_core import (
    ErrorCode,
    EventClient,
    EventConfig,
    EventError,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
)
from events_core.backends.memory import MemoryClient
from events_core.engine import Delivery, EngineClient, Settlement, Source
from events_core.engine import closing as closing_module
from events_core.engine.closing import CloseTime, cancel_all
from events_core.engine.loop_thread import LoopThread, ThreadHome

from ..network_memory import NetworkClient, NetworkDriver, NetworkSource
from ..patience import succeeds

BOUND = 60.0
"""Seconds after which a call that must return has hung."""

X = EventMessage(b"x")


class AwkwardSource(NetworkSource):
    """A source that records when it is closed, and what still runs then."""

    def __init__(self, inline: Source) -> None:
        super().__init__(inline)
        self.running: set[str] = set()
        self.at_close: list[set[str]] = []
        self.settle_gate: asyncio.Event | None = None
        self.deaf: Callable[[], bool] = lambda: False
        """Asked at each cancellation of a fetch: whether to swallow it."""

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        self.running.add(what)
        try:
            yield
        finally:
            self.running.discard(what)

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        with self._doing("fetch"):
            while True:
                try:
                    return await super().fetch(limit)
                except asyncio.CancelledError:
                    if not self.deaf():
                        raise

    async def settle(self, settlements: Sequence[Settlement]) -> Any:
        with self._doing("settle"):
            if self.settle_gate is not None:
                await self.settle_gate.wait()
            return await super().settle(settlements)

    async def close(self) -> None:
        self.at_close.append(set(self.running))
        await super().close()


class AwkwardDriver(NetworkDriver):
    """A driver with a thread of its own, which a test may block."""

    blocking: ClassVar[bool] = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sources: list[AwkwardSource] = []
        self.closed = False
        self.open_hangs: threading.Event | None = None
        self.subscribe_gate: asyncio.Event | None = None
        self.asked = threading.Event()

    async def open(self) -> None:
        if self.open_hangs is not None:
            self.open_hangs.wait(2 * BOUND)  # as in a system call that does not return
        await super().open()

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:  # type: ignore[override]
        self.asked.set()
        if self.subscribe_gate is not None:
            await self.subscribe_gate.wait()
        source = await super().subscribe(subscription, wake)
        assert isinstance(source, NetworkSource)
        self.sources.append(AwkwardSource(source._inline))
        return self.sources[-1]

    async def close(self) -> None:
        self.closed = True
        await super().close()


class AwkwardClient(NetworkClient):
    """The client under test."""

    driver_class = AwkwardDriver

    @property
    def broker(self) -> AwkwardDriver:
        """Return the driver, for a test to interfere with."""
        assert isinstance(self._driver, AwkwardDriver)
        return self._driver

    def hang(self, until: threading.Event) -> None:
        """Block the client's thread, as a system call would."""
        self._home.wake(lambda: until.wait(2 * BOUND))


def awkward(**options: str) -> AwkwardClient:
    return AwkwardClient(EventConfig("topic", options=options, backend="awkward"))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """C3: no thread is left, whatever a test did, once nothing hangs any more."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(BOUND)
    assert set(threading.enumerate()) <= before


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """Yield an event that a blocked thread waits for; set it at the end."""
    event = threading.Event()
    yield event
    event.set()


def run(scene: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scene, BOUND)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made *condition* true; the time of the test bounds the wait."""
    while not condition():  # that thread knows nothing of this loop
        await asyncio.sleep(0.005)


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


# Tasks that do not end


def test_a_source_that_swallows_a_cancellation_is_closed_after_its_fetch() -> None:
    """The fetch is cancelled again, and the source is closed when the fetch has ended."""
    lost: list[bool] = []

    async def scene() -> None:
        async with awkward() as client:
            receiver = await client.subscribe("s")
            (source,) = client.broker.sources
            await until(lambda: "fetch" in source.running)
            source.deaf = lambda: not lost and not lost.append(True)  # type: ignore[func-returns-value]
            await receiver.close()
            assert lost
            assert source.at_close == [set()]

    run(scene())


def test_what_a_fetch_returns_after_its_cancellation_was_swallowed_goes_back() -> None:
    """The message comes to another receiver at once, and not only when its lease is over."""

    async def scene() -> None:
        async with awkward() as client:
            receiver = await client.subscribe("s")
            (source,) = client.broker.sources
            await until(lambda: "fetch" in source.running)
            source.deaf = lambda: bool(client._home.spawn(send(client)))
            closing = asyncio.create_task(receiver.close())
            await closing
            other = await client.subscribe("s")
            message = await other.receive_message(BOUND)
            assert message is not None
            await other.acknowledge(message)

    async def send(client: AwkwardClient) -> None:
        await client.broker.publish([X])

    run(scene())


def test_a_fetch_that_ignores_cancellation_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The receiver and the client close, and drop what the fetch returns later."""

    async def scene() -> None:
        client = awkward()
        receiver = await client.subscribe("s")
        (source,) = client.broker.sources
        await until(lambda: "fetch" in source.running)
        source.deaf = lambda: True
        await receiver.close(timeout=0)
        # The thread may be later than the caller, who then gives up first.
        await until(lambda: "fetching from 's'" in warnings(caplog))
        await client.close(timeout=0)
        await until(lambda: client.broker.closed)
        assert receiver.stats.buffered == 0

    run(scene())


def test_a_settlement_without_an_answer_is_over_before_its_source_closes() -> None:
    """The request is cancelled, so that it cannot go on during the closing or after it."""

    async def scene() -> None:
        async with awkward() as client:
            receiver = await client.subscribe("s")
            (source,) = client.broker.sources
            source.settle_gate = asyncio.Event()
            await client.send_message(X)
            message = await receiver.receive_message(BOUND)
            assert message is not None
            settling = asyncio.create_task(receiver.acknowledge(message))
            await until(lambda: "settle" in source.running)
            await receiver.close(timeout=0)
            await until(lambda: bool(source.at_close))
            assert source.at_close == [set()]
            with pytest.raises(EventRuntimeError):
                await settling

    run(scene())


def test_a_closing_source_that_ignores_cancellation_does_not_hold_its_client_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client closes its driver, and its thread ends."""

    async def never() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    async def scene() -> None:
        client = awkward()
        await client.subscribe("s")
        client.broker.sources[0].close = never  # type: ignore[method-assign]
        await client.close(timeout=0)
        await until(lambda: client.broker.closed)
        assert "closing 's'" in warnings(caplog)

    run(scene())


@pytest.mark.parametrize(("timeout", "given"), [(60, 5), (4, 0.96875), (0, 0.4375)])
def test_a_source_that_needs_longer_to_close_has_what_the_callers_timeout_leaves(timeout: float, given: float) -> None:
    """The engine lowers ``close_time`` before it calls ``close``, and never raises it."""
    told: list[float] = []

    async def scene() -> None:
        client = awkward()
        receiver = await client.subscribe("s")
        (source,) = client.broker.sources
        source.close_time = 5

        async def close() -> None:
            told.append(source.close_time)

        source.close = close  # type: ignore[method-assign]
        await receiver.close(timeout=timeout)
        await client.close()

    run(scene())
    (left,) = told
    assert 0 < left <= given


def test_a_source_may_take_its_time_to_close(caplog: pytest.LogCaptureFixture) -> None:
    """It is not cancelled, although it takes longer than a source that asks for no time."""
    ended: list[bool] = []

    async def scene() -> None:
        client = awkward()
        receiver = await client.subscribe("s")
        (source,) = client.broker.sources
        source.close_time = 20

        async def close() -> None:
            await asyncio.sleep(1.5)
            ended.append(True)

        source.close = close  # type: ignore[method-assign]
        await receiver.close(timeout=2 * BOUND)
        await client.close()

    run(scene())
    assert ended
    assert warnings(caplog) == ""


def test_cancelling_ends_with_the_last_task() -> None:
    """It waits for a task that is ending, and does not cancel it twice."""
    cancellations = 0

    async def scene() -> None:
        async def clean_up() -> None:
            nonlocal cancellations
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancellations += 1
                await asyncio.sleep(0.01)
                raise

        task = asyncio.create_task(clean_up())
        await asyncio.sleep(0)
        await cancel_all([task], within=BOUND)
        assert task.cancelled()
        assert cancellations == 1

    run(scene())


# Threads that hang


CALLS: dict[str, Callable[[EventClient], Awaitable[object]]] = {
    "ping": lambda client: client.ping(0.1),
    "subscribe": lambda client: client.subscribe("s"),
    "delete": lambda client: client.delete_subscription("s"),
    "send": lambda client: client.send_message(X),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_first_call_of_a_client_whose_thread_hangs_ends(name: str, hanging: threading.Event) -> None:
    """P7, Q2: the caller's own timer ends it."""

    async def scene() -> None:
        client = awkward(connect_timeout="0.1", send_timeout="0.1")
        client.broker.open_hangs = hanging
        with pytest.raises(EventError) as caught:
            await CALLS[name](client)
        assert caught.value.code is ErrorCode.TIMEOUT
        hanging.set()
        await client.close()

    run(scene())


@pytest.mark.parametrize("name", CALLS)
def test_a_call_to_a_thread_that_hangs_ends(name: str, hanging: threading.Event) -> None:
    """P7, Q2: it ends also on a client that is connected."""

    async def scene() -> None:
        client = awkward(connect_timeout="0.1", send_timeout="0.1")
        await succeeds(lambda: client.ping(BOUND))
        client.hang(hanging)
        with pytest.raises(EventError) as caught:
            await CALLS[name](client)
        assert caught.value.code is ErrorCode.TIMEOUT
        hanging.set()
        await client.close()

    run(scene())


def test_connecting_is_not_begun_twice_because_a_caller_gave_up(hanging: threading.Event) -> None:
    """The driver is opened once at a time, because the attempt of the first caller goes on."""

    async def scene() -> None:
        client = awkward(connect_timeout="0.1")
        opened = 0
        began = client.broker.open

        async def count() -> None:
            nonlocal opened
            opened += 1
            await began()

        client.broker.open = count  # type: ignore[method-assign]
        client._start()
        client.hang(hanging)
        for _ in range(2):
            with pytest.raises(EventError):
                await client.ping(0.1)
        hanging.set()
        await client.ping(BOUND)
        await client.close()
        assert opened == 1

    run(scene())


def test_a_receiver_whose_thread_hangs_closes(caplog: pytest.LogCaptureFixture, hanging: threading.Event) -> None:
    """C1: it closes in time and names the thread, which gives back what is held when it goes on."""

    async def scene() -> None:
        client = awkward()
        receiver = await client.subscribe("s")
        await client.send_message(X)
        message = await receiver.receive_message(BOUND)
        assert message is not None
        client.hang(hanging)
        await receiver.close(timeout=0)
        assert "'events awkward topic'" in warnings(caplog)
        with pytest.raises(EventRuntimeError) as caught:
            await receiver.acknowledge(message)
        assert caught.value.code is ErrorCode.CLOSED
        hanging.set()
        other = await client.subscribe("s")
        assert await other.receive_message(BOUND) is not None
        await client.close(timeout=0)

    run(scene())


def test_a_client_whose_thread_hangs_closes(caplog: pytest.LogCaptureFixture, hanging: threading.Event) -> None:
    """C2, C3: it closes in time and names the thread, which closes everything when it goes on."""

    async def scene() -> None:
        client = awkward()
        receiver = await client.subscribe("s")
        client.hang(hanging)
        sending = asyncio.create_task(client.send_message(X))
        receiving = asyncio.create_task(receiver.receive_message())
        await asyncio.sleep(0)
        await client.close(timeout=0)
        assert "'events awkward topic'" in warnings(caplog)
        for call in (sending, receiving, client.ping()):
            with pytest.raises(EventRuntimeError) as caught:
                await call
            assert caught.value.code is ErrorCode.CLOSED
        hanging.set()
        await until(lambda: client.broker.closed)
        assert client.broker.sources[0].at_close == [set()]

    run(scene())


def test_a_loop_goes_on_while_a_thread_ends(hanging: threading.Event) -> None:
    """C3: close does not block the caller's loop, which the thread may need for its end."""

    async def scene() -> None:
        client = awkward()
        await client.ping(BOUND)
        assert isinstance(client._home, ThreadHome)
        assert client._home._thread is not None
        loop = client._home._thread.loop
        close_loop = loop.close
        lasted = []

        def close_late() -> None:
            lasted.append(hanging.wait(BOUND))
            close_loop()

        loop.close = close_late  # type: ignore[method-assign]
        closing = asyncio.create_task(client.close(timeout=BOUND))
        await until(lambda: client._closed)
        hanging.set()
        await closing
        assert lasted == [True]

    run(scene())


# Loops that stand still


def in_a_stopped_loop(scene: Callable[[asyncio.AbstractEventLoop], Any]) -> asyncio.AbstractEventLoop:
    """Run a task until it waits, then stop its loop."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(scene(loop))
    return loop


@pytest.mark.parametrize("client_class", [MemoryClient, NetworkClient])
@pytest.mark.parametrize("what", ["client", "receiver"])
def test_a_close_ends_although_the_loop_of_the_first_one_has_stopped(
    client_class: type[EngineClient], what: str
) -> None:
    """C2: the next caller does not wait for a loop that does not run."""
    client = client_class(EventConfig("stopped", options={}, backend="memory"))
    tasks: list[asyncio.Task[None]] = []
    closes: list[Any] = []

    async def begin(loop: asyncio.AbstractEventLoop) -> None:
        receiver = await client.subscribe("s")
        await client.send_message(X)
        assert await receiver.receive_message(BOUND) is not None
        closes.append(client if what == "client" else receiver)
        tasks.append(loop.create_task(closes[0].close(timeout=3600)))
        await asyncio.sleep(0.05)

    loop = in_a_stopped_loop(begin)
    run(closes[0].close(timeout=0))

    async def check() -> None:
        with pytest.raises(EventRuntimeError):
            await (client.subscribe("s") if what == "client" else closes[0].receive_message(0))
        await client.close(timeout=0)

    run(check())
    loop.run_until_complete(asyncio.wait(tasks, timeout=BOUND))
    assert tasks[0].done()
    loop.close()


def test_what_is_posted_to_a_thread_that_ends_is_run_or_refused() -> None:
    """P7: otherwise the caller would wait without end."""
    thread = LoopThread("ending")
    close = thread.loop.close
    ran: list[bool] = []
    posted: list[bool] = []

    def post_and_close() -> None:
        posted.append(thread.post(lambda: ran.append(True)))
        close()

    thread.loop.close = post_and_close  # type: ignore[method-assign]
    thread.stop(BOUND)
    thread._thread.join(BOUND)
    assert posted == [bool(ran)]


def test_a_call_to_a_thread_that_ends_is_told() -> None:
    """C3: a coroutine that was posted just before the end starts, and is cancelled."""
    home = ThreadHome("ending")
    home.start()
    thread = home._thread
    assert thread is not None
    busy = threading.Event()

    async def scene() -> None:
        thread.post(lambda: busy.wait(BOUND))
        thread.stop(BOUND)
        calling = asyncio.create_task(home.run(asyncio.sleep(3600)))
        await asyncio.sleep(0)
        busy.set()
        with pytest.raises(Exception, match="closed"):
            await calling

    run(scene())


def test_what_a_library_tells_a_thread_that_has_ended_is_dropped() -> None:
    """Otherwise gRPC would raise in another loop, and the events of that loop would wait."""
    thread = LoopThread("ended")
    thread.stop(BOUND)
    thread._thread.join(BOUND)
    ran: list[bool] = []
    thread.loop.call_soon_threadsafe(ran.append, True)
    assert not ran


def test_what_a_library_tells_a_thread_while_its_loop_closes_is_dropped() -> None:
    """There is no moment at which it raises."""
    thread = LoopThread("closing")
    close = thread.loop.close
    told: list[asyncio.Handle] = []

    def close_and_tell() -> None:
        close()
        told.append(thread.loop.call_soon_threadsafe(lambda: None))

    thread.loop.close = close_and_tell  # type: ignore[method-assign]
    thread.stop(BOUND)
    thread._thread.join(BOUND)
    assert len(told) == 1


@pytest.mark.parametrize("returned", [False, True])
def test_a_receiver_whose_loop_closes_before_subscribe_returned_is_closed(returned: bool) -> None:
    """Otherwise it would buffer messages and renew leases, and no code could close it."""
    client = awkward()
    tasks: list[asyncio.Task[EventReceiver]] = []

    async def gated(gate: asyncio.Event | None) -> None:
        client.broker.subscribe_gate = gate

    async def begin(loop: asyncio.AbstractEventLoop) -> None:
        await client.ping(BOUND)
        await client._home.run(gated(asyncio.Event()))
        tasks.append(loop.create_task(client.subscribe("s")))
        while not client.broker.asked.is_set():
            await asyncio.sleep(0.005)

    loop = in_a_stopped_loop(begin)
    if not returned:
        loop.close()

    async def end() -> None:
        assert client.broker.subscribe_gate is not None
        client._home.wake(client.broker.subscribe_gate.set)
        await until(lambda: bool(client.broker.sources))
        if returned:
            await until(lambda: bool(client._receivers))
            loop.close()
        await until(lambda: client.broker.sources[0].at_close == [set()])
        await until(lambda: not client._receivers)  # the client forgets the receiver after its source has closed
        await client.close()

    run(end())
    with contextlib.suppress(RuntimeError):
        tasks[0].get_coro().close()  # type: ignore[union-attr]
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # that it is pending is the point


def test_a_receiver_outlives_the_loop_in_which_it_was_returned() -> None:
    """T1: a program may call asyncio.run more than once."""
    client = awkward()
    receiver = asyncio.run(client.subscribe("s"))

    async def later() -> None:
        await asyncio.sleep(1)  # longer than it takes to notice an orphan
        await client.send_message(X)
        message = await receiver.receive_message(BOUND)
        assert message is not None
        await receiver.acknowledge(message)
        await client.close()

    run(later())


# The time that a close has


@pytest.mark.parametrize(
    ("timeout", "patience", "whole"), [(15, 13, 15), (60, 58, 60), (4, 3, 4), (2, 1.5, 2), (1, 0.75, 2), (0, 0, 2)]
)
def test_a_close_reserves_time_for_giving_back(
    monkeypatch: pytest.MonkeyPatch, timeout: float, patience: float, whole: float
) -> None:
    """C1, C2: the reserve is a quarter of the timeout and 2 s at most, and a close has at least 2 s."""
    now = 1000.0
    monkeypatch.setattr(closing_module.time, "monotonic", lambda: now)
    time = CloseTime()
    time.hasten(timeout)
    assert time.patience() == patience
    now += patience
    assert time.flush() == (whole - patience) / 2
    assert time.step() == (whole - patience) * 7 / 16


@pytest.mark.parametrize("source", [2, 60])
@pytest.mark.parametrize("timeout", [0, 8, 15, 60])
def test_home_ends_before_its_callers_give_up(monkeypatch: pytest.MonkeyPatch, timeout: float, source: float) -> None:
    """C2: otherwise they would warn that its thread may hang, although each step only took all of its time."""
    now = 1000.0
    monkeypatch.setattr(closing_module.time, "monotonic", lambda: now)
    time = CloseTime()
    time.hasten(timeout)
    now += time.patience()
    now += time.flush()
    for longest in (2, 2, source, 2, 2, 2):  # the settler, leases, the source, tasks, the driver, the thread
        now += time.step(longest)
    assert now < 1000.0 + max(timeout, 2)


def test_a_close_whose_thread_was_hanging_takes_the_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """C2: its callers have gone, but what is open must still be given back."""
    now = 1000.0
    monkeypatch.setattr(closing_module.time, "monotonic", lambda: now)
    time = CloseTime()
    time.hasten(60)
    time.begin()
    assert time.patience() == 58
    now += 61
    time.begin()
    assert (time.patience(), time.step()) == (0, 0.875)


def test_the_least_patient_caller_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """C2: of several timeouts the shortest counts."""
    monkeypatch.setattr(closing_module.time, "monotonic", lambda: 0.0)
    time = CloseTime()
    for timeout in (60, 8, 15):
        time.hasten(timeout)
    assert time.patience() == 6


@pytest.mark.parametrize("kind", [MemoryClient, NetworkClient])
def test_a_close_with_less_than_no_time_ends(kind: type[EngineClient]) -> None:
    """C1, C2: a timeout of minus infinity is the shortest time."""

    async def test() -> None:
        client = kind(EventConfig("less-than-no-time"))
        receiver = await client.subscribe("s")
        await client.send_message(X)
        assert await receiver.receive_message(BOUND) is not None
        await asyncio.wait_for(receiver.close(timeout=-math.inf), BOUND)
        await asyncio.wait_for(client.close(timeout=-math.inf), BOUND)
        assert client._close_time.patience() <= 0

    asyncio.run(test())


@pytest.mark.parametrize(("error", "timeout"), [(None, 15), (RuntimeError, 2), (asyncio.CancelledError, 2)])
def test_leaving_with_an_error_closes_soon(error: type[BaseException] | None, timeout: float) -> None:
    """C2: after an error the application will hardly settle what it holds."""
    timeouts: list[float] = []

    class Client(MemoryClient):
        async def close(self, timeout: float = 15.0) -> None:
            timeouts.append(timeout)

    async def scene() -> None:
        async with Client(EventConfig("topic", backend="memory")):
            if error is not None:
                raise error

    with contextlib.suppress(error or ()):
        asyncio.run(scene())
    assert timeouts == [timeout]
