"""Blocking clients behind the asyncio interface, so that the conformance kit can test them.

Each asynchronous method runs the blocking method of the same name in a new thread.  A thread cannot be interrupted: if
the caller is cancelled, the call goes on.

A test may begin a call and expect that it waits, or that it is the first of several.  A coroutine runs to its first
wait at once.  So :func:`in_thread` lets the test go on when the blocking call has come that far, too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, ParamSpec, TypeVar

from network_memory import NetworkClient

from events_core import Capabilities, EventConfig, EventMessage, Observer, ReceivedMessage, ReceiverStats, sync
from events_core.backends.memory import MemoryClient, MemoryOptions
from events_core.interface import EventClient, EventReceiver, joins
from events_core.sync.calls import Calls

T = TypeVar("T")
P = ParamSpec("P")

_begun: ContextVar[threading.Event] = ContextVar("begun")
"""The event of this thread that is set when its call waits for the first time."""


class _Announcing(Coroutine[Any, Any, T]):
    """A coroutine that says when it waits for the first time."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._begun = _begun.get()

    def send(self, value: Any) -> Any:
        waits_for = self._coroutine.send(value)
        self._begun.set()
        return waits_for

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()


class _AnnouncingCalls(Calls):
    """Blocking calls that say when they wait for the first time."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return super().run(_Announcing(coroutine))


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run *call* in a thread that ends with it, so that the kit finds no thread left."""
    loop, begun = asyncio.get_running_loop(), threading.Event()
    done: asyncio.Future[T] = loop.create_future()

    def resolve(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        _begun.set(begun)
        try:
            outcome = (call(*args, **kwargs), None)
        except BaseException as error:
            outcome = (None, error)  # type: ignore[assignment]
        begun.set()
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, *outcome)

    thread = threading.Thread(target=run, name="a blocking call")
    thread.start()
    begun.wait(60)
    try:
        return await done
    finally:
        if done.done() and not done.cancelled():
            thread.join()  # it has nothing more to do


class BlockingReceiver(EventReceiver):
    """A receiver whose calls block their threads."""

    def __init__(self, receiver: sync.EventReceiver) -> None:
        self.blocking = receiver

    @property
    def subscription(self) -> str:
        return self.blocking.subscription

    @property
    def capabilities(self) -> Capabilities:
        return self.blocking.capabilities

    @property
    def stats(self) -> ReceiverStats:
        return self.blocking.stats

    async def receive_message(self, timeout: float | None = None) -> ReceivedMessage | None:
        return await in_thread(self.blocking.receive_message, timeout)

    async def receive_messages(self, limit: int, timeout: float | None = None) -> list[ReceivedMessage]:
        return await in_thread(self.blocking.receive_messages, limit, timeout)

    async def __aiter__(self) -> AsyncIterator[ReceivedMessage]:
        messages = iter(self.blocking)
        while (message := await in_thread(next, messages, None)) is not None:
            yield message

    async def acknowledge(self, message: ReceivedMessage | str) -> None:
        await in_thread(self.blocking.acknowledge, message)

    async def acknowledge_messages(self, messages: Iterable[ReceivedMessage | str]) -> None:
        await in_thread(self.blocking.acknowledge_messages, messages)

    async def nack(self, message: ReceivedMessage | str, *, delay: float | None = None) -> None:
        await in_thread(self.blocking.nack, message, delay=delay)

    async def nack_messages(self, messages: Iterable[ReceivedMessage | str], *, delay: float | None = None) -> None:
        await in_thread(self.blocking.nack_messages, messages, delay=delay)

    async def reject(self, message: ReceivedMessage | str, reason: str = "") -> None:
        await in_thread(self.blocking.reject, message, reason)

    async def hand_back(self, message: ReceivedMessage) -> None:
        await in_thread(self.blocking.hand_back, message)

    @asynccontextmanager
    async def processing(self, message: ReceivedMessage) -> AsyncIterator[ReceivedMessage]:
        context = self.blocking.processing(message)
        await in_thread(context.__enter__)
        try:
            yield message
        except BaseException as error:
            await in_thread(context.__exit__, type(error), error, error.__traceback__)
            raise
        await in_thread(context.__exit__, None, None, None)

    async def close(self, timeout: float = 15.0) -> None:
        await in_thread(self.blocking.close, timeout)


class BlockingClient(EventClient):
    """A client whose calls block their threads."""

    api_version = 1
    options_class = MemoryOptions
    full_capabilities = MemoryClient.full_capabilities
    wrapped: ClassVar[type[EventClient]] = MemoryClient

    def __init__(self, config: EventConfig) -> None:
        self.blocking = sync.EventClient(self.wrapped(config))
        self.blocking._calls = _AnnouncingCalls()

    @property
    def observer(self) -> Observer | None:  # type: ignore[override]
        return self.blocking.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self.blocking.observer = observer

    @property
    def is_connected(self) -> bool:
        return self.blocking.is_connected

    @property
    def topic_name(self) -> str:
        return self.blocking.topic_name

    @property
    def project_id(self) -> str:
        return self.blocking.project_id

    @property
    def capabilities(self) -> Capabilities:
        return self.blocking.capabilities

    async def send_message(self, message: EventMessage) -> str:
        return await in_thread(self.blocking.send_message, message)

    async def send_messages(self, messages: Iterable[EventMessage]) -> list[str]:
        return await in_thread(self.blocking.send_messages, messages)

    @joins
    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        return BlockingReceiver(await in_thread(self.blocking.subscribe, subscription))

    async def delete_subscription(self, subscription: str) -> None:
        await in_thread(self.blocking.delete_subscription, subscription)

    async def ping(self, timeout: float = 5.0) -> float:
        return await in_thread(self.blocking.ping, timeout)

    async def run_native(self, work: Callable[[Any], Awaitable[T]], timeout: float = 30.0) -> T:
        return await in_thread(self.blocking.run_native, work, timeout)

    def native_message(self, message: ReceivedMessage) -> Any:
        return self.blocking.native_message(message)

    async def close(self, timeout: float = 15.0) -> None:
        await in_thread(self.blocking.close, timeout)


class BlockingNetworkClient(BlockingClient):
    """The same over the engine's thread."""

    wrapped = NetworkClient
