"""Clients whose calls block: what the conformance kit does not ask, because it has an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from events_core import (
    ErrorCode,
    EventMessage,
    EventRuntimeError,
    Operation,
    ReceivedMessage,
    Reject,
    RetryAfter,
    consuming,
    interface,
)
from events_core import create_client as create_asyncio_client
from events_core.engine import client as client_module
from events_core.sync import EventClient, EventReceiver, consume, create_client
from events_core.sync.calls import Calls

PATIENCE = 60.0
ORDER = EventMessage(b"an order")


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a new topic, of a backend in the caller's thread or on a thread of the engine."""
    dead = "max_delivery_attempts=9&dead_letter_topic=dead&subscription=billing"
    if request.param == "memory":
        return f"memory://{tmp_path.name}/orders?{dead}"
    return f"sqlite:{tmp_path}/events.db/orders?{dead}"


@pytest.fixture
def client(url: str) -> Iterator[EventClient]:
    """Return a client of a new topic."""
    with create_client(url) as client:
        yield client


@pytest.fixture
def receiver(client: EventClient) -> Iterator[EventReceiver]:
    """Return a receiver of the client's subscription."""
    with client.subscribe() as receiver:
        yield receiver


def received(receiver: EventReceiver) -> ReceivedMessage:
    """Return the next message, which must come."""
    message = receiver.receive_message(PATIENCE)
    assert message is not None
    return message


def until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def signalled(handler: Callable[[], None], when: Callable[[], bool]) -> Iterator[None]:
    """Send SIGUSR1 to this process as soon as *when* holds in the block; *handler* handles it."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handler())

    def send() -> None:
        until(when)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def descriptors() -> int:
    """Return the number of open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


# Iterating


def test_a_receiver_iterates_until_it_is_closed(client: EventClient, receiver: EventReceiver) -> None:
    """The loop gets each message, and ends when another thread closes the receiver."""
    client.send_messages([EventMessage.from_string(str(number)) for number in range(5)])
    seen = []
    for message in receiver:
        seen.append(message.data_as_string())
        receiver.acknowledge(message)
        if len(seen) == 5:
            threading.Thread(target=receiver.close, args=(0,)).start()
    assert seen == ["0", "1", "2", "3", "4"]
    assert list(receiver) == []


# Processing


class _Interrupt(BaseException):
    """A failure that is no ``Exception`` and does not end the program."""


@pytest.mark.parametrize("kind", [RuntimeError, StopIteration, _Interrupt])
def test_a_body_that_fails_is_nacked(client: EventClient, receiver: EventReceiver, kind: type[BaseException]) -> None:
    """The exception goes on as it is, and the message comes again at its second attempt."""
    client.send_message(ORDER)
    error = kind("failed")
    with pytest.raises(kind) as caught, receiver.processing(received(receiver)):
        raise error
    assert caught.value is error
    assert [entry.name for entry in caught.traceback if entry.path == Path(__file__)] == [
        "test_a_body_that_fails_is_nacked"
    ]
    assert received(receiver).delivery_attempt == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_the_end_of_the_program_is_no_failure(
    client: EventClient, receiver: EventReceiver, error: BaseException
) -> None:
    """A body that is interrupted hands its message back, which counts no attempt."""
    client.send_message(ORDER)
    with pytest.raises(type(error)), receiver.processing(received(receiver)):
        raise error
    assert received(receiver).delivery_attempt == 1


def test_a_generator_that_is_closed_hands_back(client: EventClient, receiver: EventReceiver) -> None:
    """A message that a generator was processing comes again, without an attempt, when the generator is closed."""

    def messages() -> Iterator[ReceivedMessage]:
        for message in receiver:
            with receiver.processing(message):
                yield message

    client.send_message(ORDER)
    generator = messages()
    assert next(generator) == ORDER
    generator.close()
    assert received(receiver).delivery_attempt == 1


def test_a_body_may_send(client: EventClient, receiver: EventReceiver) -> None:
    """The body of ``processing`` makes blocking calls, and its message is acknowledged afterwards."""
    client.send_message(ORDER)
    with receiver.processing(received(receiver)):
        client.send_message(EventMessage(b"an invoice"))
    assert received(receiver).data == b"an invoice"
    assert receiver.stats.held == 1


class Marking:
    """An observer that marks the context of the thread with the processing that it is in, as tracing does."""

    current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="nothing")

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def start(self, operation: Operation) -> None:
        self.seen.append(("start", operation.name))
        if operation.name == "process":
            operation.context = self.current.set("the message")

    def end(self, operation: Operation, error: BaseException | None) -> None:
        self.seen.append((type(error).__name__, operation.name))
        if isinstance(operation.context, contextvars.Token):
            self.current.reset(operation.context)


@pytest.mark.parametrize("error", [None, RuntimeError(), KeyboardInterrupt()])
def test_an_observer_sees_the_whole_body(
    client: EventClient, receiver: EventReceiver, error: BaseException | None
) -> None:
    """The operation is the body, in the context of its thread.  It ends before the message is settled."""
    client.send_message(ORDER)
    message = received(receiver)
    observer = client.observer = Marking()

    def process() -> None:
        with receiver.processing(message):
            assert observer.seen == [("start", "process")]
            assert observer.current.get() == "the message"
            if error is not None:
                raise error

    with pytest.raises(type(error)) if error else nullcontext():
        process()
    ended = type(error).__name__
    assert observer.seen == [("start", "process"), (ended, "process"), ("start", "settle"), ("NoneType", "settle")]
    assert observer.current.get() == "nothing"


def test_a_generator_that_is_closed_leaves_the_context_as_it_was(client: EventClient, receiver: EventReceiver) -> None:
    """What the observer has put into the context of the thread goes, and what the application has put there stays."""
    own: contextvars.ContextVar[str] = contextvars.ContextVar("own")

    def messages() -> Iterator[ReceivedMessage]:
        for message in receiver:
            with receiver.processing(message):
                own.set("of the body")
                yield message

    client.send_message(ORDER)
    observer = client.observer = Marking()
    generator = messages()
    next(generator)
    assert observer.current.get() == "the message"
    generator.close()
    assert observer.current.get() == "nothing"
    assert own.get() == "of the body"


# Consuming


def test_consume_handles_in_threads_until_it_is_stopped(client: EventClient, receiver: EventReceiver) -> None:
    """Two handlers wait for each other, each with the caller's context variables; then the call returns."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("of the caller")
    stop, both, seen = threading.Event(), threading.Barrier(2), []

    def bill(message: ReceivedMessage) -> None:
        both.wait(PATIENCE)
        seen.append(variable.get())
        if len(seen) == 2:
            stop.set()

    client.send_messages([ORDER, EventMessage(b"another")])
    consume(receiver, bill, concurrency=2, stop=stop)
    assert seen == ["of the caller"] * 2
    assert receiver.stats.held == 0
    assert receiver.receive_message(timeout=0.2) is None


def test_a_handler_decides_about_its_message(client: EventClient, receiver: EventReceiver) -> None:
    """A rejected message becomes a letter, and one that asks for it comes again later."""
    stop, attempts = threading.Event(), []

    def bill(message: ReceivedMessage) -> None:
        if message.data == b"bad":
            raise Reject("it is bad")
        attempts.append(message.delivery_attempt)
        if message.delivery_attempt == 1:
            raise RetryAfter(0.05)
        stop.set()

    client.send_messages([EventMessage(b"bad"), ORDER])
    consume(receiver, bill, stop=stop)
    assert attempts == [1, 2]
    assert receiver.receive_message(timeout=0.2) is None


def test_consume_stops_at_a_signal(client: EventClient, receiver: EventReceiver) -> None:
    """A handler of a signal sets ``stop`` while nothing comes, and the call returns."""
    stop = threading.Event()
    handled: list[bytes] = []
    client.send_message(ORDER)
    with signalled(stop.set, lambda: handled == [b"an order"]):
        consume(receiver, lambda message: handled.append(message.data), stop=stop)
    assert receiver.stats.held == 0


def test_consume_waits_for_its_handlers_when_it_is_interrupted(
    client: EventClient, receiver: EventReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the call after the handler that runs, and its message is acknowledged."""
    monkeypatch.setattr(consuming, "THREAD_PATIENCE", PATIENCE)
    began, finished = threading.Event(), threading.Event()

    def interrupt() -> None:
        threading.Timer(0.1, finished.set).start()
        raise KeyboardInterrupt

    def bill(message: ReceivedMessage) -> None:
        began.set()
        assert finished.wait(PATIENCE)

    client.send_message(ORDER)
    with signalled(interrupt, began.is_set), pytest.raises(KeyboardInterrupt):
        consume(receiver, bill)
    assert finished.is_set()
    assert receiver.receive_message(timeout=0.2) is None


def test_consume_is_interrupted_while_it_calls_its_handler(
    client: EventClient, receiver: EventReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the moment in which the thread of a handler starts ends the call as at any other moment."""
    monkeypatch.setattr(consuming, "THREAD_PATIENCE", PATIENCE)
    interrupted, finished = threading.Event(), threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def bill(message: ReceivedMessage) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupted.wait(PATIENCE)
        finished.set()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        client.send_message(ORDER)
        with pytest.raises(KeyboardInterrupt):
            consume(receiver, bill)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert finished.is_set()
    assert receiver.stats.held == 0
    assert receiver.receive_message(timeout=0.2) is None


def test_consume_in_an_event_loop_is_refused(receiver: EventReceiver) -> None:
    """It would block the loop."""

    async def main() -> None:
        with pytest.raises(EventRuntimeError, match="consume would block"):
            consume(receiver, print)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"handler": None}, "handler must be callable"),
        ({"stop": asyncio.Event()}, "stop must be a threading.Event"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_consume_refuses_wrong_arguments(receiver: EventReceiver, arguments: dict[str, object], match: str) -> None:
    """A wrong argument is named before anything is received."""
    with pytest.raises((TypeError, ValueError), match=match):
        consume(**{"receiver": receiver, "handler": print, **arguments})  # type: ignore[arg-type]


def test_consume_refuses_a_client(client: EventClient) -> None:
    """The error says how to get a receiver."""
    with pytest.raises(TypeError, match=r"with client\.subscribe"):
        consume(client, print)  # type: ignore[arg-type]


# Signals


def test_an_interrupted_receive_loses_nothing(client: EventClient, receiver: EventReceiver) -> None:
    """Ctrl-C ends a receive that waits; a message that is sent then goes to the next receive."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    def is_waiting() -> bool:
        return bool(receiver._receiver._waiting._waiters)  # type: ignore[attr-defined]

    with signalled(interrupt, is_waiting), pytest.raises(KeyboardInterrupt):
        receiver.receive_message()
    for _ in range(3):
        client.send_message(ORDER)
        receiver.acknowledge(received(receiver))


# Event loops and threads


def test_in_an_event_loop_a_call_is_refused(client: EventClient) -> None:
    """It would block the loop.  The error says what to do, and in a thread the call works."""

    async def main() -> None:
        with pytest.raises(EventRuntimeError, match=r"send_message would block .*asyncio\.to_thread") as caught:
            client.send_message(ORDER)
        assert caught.value.code is ErrorCode.UNSUPPORTED
        assert await asyncio.to_thread(client.send_message, ORDER)

    asyncio.run(main())


def test_a_client_of_asyncio_can_be_wrapped(url: str) -> None:
    """Blocking calls and coroutines use the same client, and closing one closes both."""
    asynchronous: interface.EventClient = create_asyncio_client(url)
    blocking = EventClient(asynchronous)
    with blocking, blocking.subscribe() as receiver:
        asyncio.run(asynchronous.send_message(ORDER))
        assert received(receiver) == ORDER
    with pytest.raises(EventRuntimeError, match="closed"):
        asyncio.run(asynchronous.send_message(ORDER))


def test_threads_share_a_client(client: EventClient, receiver: EventReceiver) -> None:
    """Four threads send and four receive; each message comes once."""
    got: list[str] = []

    def send(name: int) -> None:
        for number in range(25):
            client.send_message(EventMessage.from_string(f"{name}-{number}"))

    def receive() -> None:
        while len(got) < 100:
            for message in receiver.receive_messages(10, timeout=0.1):
                got.append(message.data_as_string())
                receiver.acknowledge(message)

    threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
    threads += [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(got) == sorted(f"{name}-{number}" for name in range(4) for number in range(25))


def test_an_observer_runs_in_the_context_of_the_caller(client: EventClient) -> None:
    """An observer finds the context variables of the thread that calls, as tracing needs it."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("a span")
    found: list[str] = []

    class Watcher:
        def start(self, operation: Operation) -> None:
            found.append(variable.get())

        def end(self, operation: Operation, error: BaseException | None) -> None: ...

    client.observer = Watcher()
    client.send_message(ORDER)
    assert found == ["a span"]


# Closing


def test_closing_leaves_no_file_open(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the client has closed, its threads have no descriptors left, also those that waited in a call."""
    monkeypatch.setattr(client_module, "SHORTEST_CLOSE", PATIENCE)  # a busy machine may need it to end the threads
    with create_client(url) as first:
        first.ping(PATIENCE)
    before = descriptors()
    client = create_client(url)
    receiver = client.subscribe()
    codes: list[ErrorCode] = []

    def wait() -> None:
        try:
            receiver.receive_message()
        except EventRuntimeError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    client.close(timeout=0)
    for thread in threads:
        thread.join(PATIENCE)
    assert codes == [ErrorCode.CLOSED] * 3
    with pytest.raises(EventRuntimeError, match="closed"):
        client.send_message(ORDER)
    assert descriptors() <= before  # fewer if something else of this process has ended


def test_a_client_that_was_never_closed_warns_once(url: str) -> None:
    """Only the client is named, and not the event loops of its calls."""
    client = create_client(url)
    client.ping(PATIENCE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        asynchronous = client._client
        del client
        gc.collect()
        asyncio.run(asynchronous.close())
        del asynchronous
        gc.collect()
    assert [str(each.message) for each in caught if "event loop" in str(each.message)] == []


# Processes

forks = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
"""A mark for tests that fork although the engine has threads, of which CPython 3.12 warns."""


@forks
def test_a_forked_child_is_refused(client: EventClient, receiver: EventReceiver) -> None:
    """A client that was connected raises in the child, and the parent's calls work as before."""
    client.ping(PATIENCE)
    assert in_child(lambda: client.send_message(ORDER)) == "WRONG_PROCESS"
    client.send_message(ORDER)
    assert received(receiver) == ORDER


@forks
def test_a_client_not_yet_connected_works_in_a_forked_child(url: str) -> None:
    """Before its first use, a client may go to a child, and later work in the parent too."""
    client = create_client(url)
    assert in_child(lambda: (client.ping(PATIENCE), client.close())) == "done"
    with client:
        assert client.ping(PATIENCE) >= 0


@forks
def test_a_forked_child_leaves_the_loops_of_its_parent_alone() -> None:
    """Although the child closes what it has inherited, another thread can wake a call of the parent."""
    calls, woken = Calls(), []

    def work() -> None:
        calls.run(asyncio.sleep(0))
        in_child(calls.close)
        calls.run(wait())

    async def wait() -> None:
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        threading.Timer(0.2, lambda: loop.call_soon_threadsafe(event.set)).start()
        await event.wait()
        woken.append(True)

    thread = threading.Thread(target=work, daemon=True)  # so that a thread that nothing wakes does not keep the run
    thread.start()
    thread.join(PATIENCE)
    calls.close()
    assert woken


def in_child(act: Callable[[], object]) -> str:
    """Call *act* in a forked child; return the code of its error, or ``done``."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answer = "failed"
        try:
            act()
            answer = "done"
        except EventRuntimeError as error:
            answer = error.code.name
        finally:  # whatever it raises: the child must not go on with the tests
            os.write(write, answer.encode())
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as answered:
        return answered.read()
