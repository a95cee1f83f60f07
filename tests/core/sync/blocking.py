"""Blocking clients behind the asyncio interface, so that the conformance kit can test them.

Each asynchronous method runs the blocking method of the same name in a new thread.  A thread cannot be interrupted: if
the caller is cancelled, the call goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, ParamSpec, TypeVar

from network_memory import NetworkClient

from events_core import Capabilities, EventConfig, EventMessage, Observer, ReceivedMessage, ReceiverStats, sync
from events_core.backends.memory import MemoryClient, MemoryOptions
from events_core.interface import EventClient, EventReceiver, joins

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run *call* in a thread that ends with it, so that the kit finds no thread left."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def resolve(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome = (call(*args, **kwargs), None)
        except BaseException as error:
            outcome = (None, error)  # type: ignore[assignment]
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, *outcome)

    thread = threading.Thread(target=run, name="a blocking call")
    thread.start()
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
