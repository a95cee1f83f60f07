"""A broker for the tests of an application: it records what was sent, and fails or stalls on command.

:class:`MemoryBroker` is what a test uses.  Its topics are those of the memory backend, behind the engine's own thread,
as if there were a network.  So a client prefetches, retries and times out as it does with a real broker.

The test's threads change the fault of the broker, and the engine's thread looks at it before each request.  Both are
single reads and writes of one attribute, so there is no lock.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlencode

import attrs
import pytest

from events_core import ConfigurationError, ErrorCode, EventClient, EventConfig, EventMessage, create_client, registry
from events_core.backends import memory
from events_core.backends.memory import MemoryClient, MemoryDriver, MemoryOptions
from events_core.config import clients_of, variable_of
from events_core.engine import BrokerError, Delivery, Settlement, Source
from events_core.options import CommonOptions, OptionValue, did_you_mean

__all__ = ["MemoryBroker"]

BACKEND = "testing"
"""The name of the backend in the URLs of this broker."""

_PAUSE = 0.005
"""Seconds between two looks for a message, or for the end of a fault."""

_RETRYABLE = (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.EXHAUSTED)
"""Codes of failures that a real broker recovers from, so that clients try again."""

_TAKEN = frozenset(field.name for field in attrs.fields(CommonOptions)) - {"create"}
"""The options that are taken from the application's file, because they mean the same to every backend.

Not ``create``: nothing exists on a new broker, so everything must be created."""

_brokers: dict[str, MemoryBroker] = {}
"""The brokers of the tests that run now, by the project of their topics."""


class MemoryBroker:
    """A broker of one test, in this process.  The fixture ``memory_broker`` makes it, and ends it with the test.

    Its topics are new.  You may use it from any thread, for example next to a ``TestClient``.

    It promises all that a configuration can require, also ``durable:power_loss``, so that an application with such a
    requirement can be tested.  Nothing is kept beyond the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._project = f"test-{uuid.uuid4().hex[:8]}"
        self._topics: dict[str, str] = {}
        self._clients: list[EventClient] = []
        self._sent: list[tuple[str, memory._Stored]] = []
        self._fault: _Fault | None = None

    def __enter__(self) -> Self:
        _brokers[self._project] = self
        # No entry point, because no application should find this backend.
        self._monkeypatch.setitem(registry._registered, BACKEND, _Client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fault = None
        # In a thread of its own, because the test's thread may run an event loop.
        closing = threading.Thread(target=lambda: asyncio.run(self._close()))
        closing.start()
        closing.join()
        del _brokers[self._project]
        memory.forget(self._project)

    async def _close(self) -> None:
        await asyncio.gather(*(client.close(timeout=0) for client in self._clients))

    def client(
        self,
        name: str,
        *,
        file: str | os.PathLike[str] | None = None,
        topic_name: str = "",
        options: Mapping[str, OptionValue] = {},
    ) -> EventClient:
        """Put the application's client *name* on this broker, and return a client of the same topic.

        From now on, ``create_client(name)`` and ``create_client(name, file=…)`` connect to this broker, until the test
        ends.  Call this method before the application makes its client.  The returned client is closed at the end of
        the test.

        :param file: the configuration of the application.  The topic and the options that all backends have, such as
            ``subscription`` and ``max_delivery_attempts``, are taken from there.  Other options, and secrets, are not
            read.
        :param topic_name: the topic of a client that *file* does not have.  Without both, it is *name*.
        :param options: more options that all backends have, in place of those of *file*.  Shorten ``send_timeout``
            if the test makes the broker fail.
        :raises ConfigurationError: if *file* cannot be read or has no such client, or if an option is unknown.
        """
        table = _table(name, os.fspath(file)) if file is not None and not topic_name else {}
        taken = {key: value for key, value in table.get("options", {}).items() if key in _TAKEN}
        given = EventConfig.from_mapping(
            {"topic_name": topic_name or table.get("topic_name", name), "options": {**taken, **options}}
        )
        query = f"?{urlencode(dict(given.options))}" if given.options else ""
        url = f"{BACKEND}://{self._project}/{quote(given.topic_name, safe='')}{query}"
        self._monkeypatch.setenv(variable_of(name), url)
        self._topics[name] = given.topic_name
        client = create_client(url)
        self._clients.append(client)
        return client

    # What was sent

    def sent(self, name: str) -> list[EventMessage]:
        """Return all messages that the broker has stored for one topic, in order.

        They are there whether anyone has received them or not.

        :param name: the name that :meth:`client` was given, or the name of a topic.  The messages of a dead-letter
            topic are the letters, with their attributes.
        """
        topic_name = self._topics.get(name, name)
        return [
            EventMessage(stored.data, stored.attributes, ordering_key=stored.ordering_key)
            for topic, stored in list(self._sent)
            if topic == topic_name
        ]

    def _record(self, topic_name: str, messages: Sequence[memory._Stored]) -> None:
        # In the engine's thread, while a test may copy the list: both are single steps of the interpreter.
        self._sent += [(topic_name, stored) for stored in messages]

    # Waiting

    def wait_until_handled(self, *names: str, timeout: float = 60.0) -> None:
        """Wait until every message that was sent has been acknowledged or dead-lettered, in every subscription.

        Call it after the last send.  A message that was nacked counts until a later attempt has settled it.  In a test
        with an event loop, await :meth:`until_handled`.

        :param names: names that :meth:`client` was given, or names of topics; by default all that it was given.
        :raises TimeoutError: after *timeout* seconds; it says how many messages are left, and where.
        """
        ends = time.monotonic() + timeout
        while left := self._left(names):
            _refuse_if_over(ends, timeout, left)
            time.sleep(_PAUSE)

    async def until_handled(self, *names: str, timeout: float = 60.0) -> None:
        """Do what :meth:`wait_until_handled` does, and let other tasks run."""
        ends = time.monotonic() + timeout
        while left := self._left(names):
            _refuse_if_over(ends, timeout, left)
            await asyncio.sleep(_PAUSE)

    def _left(self, names: Sequence[str]) -> dict[str, int]:
        """Return the number of messages that are not handled, by topic and subscription."""
        topics = {self._topics.get(name, name) for name in names or self._topics}
        return {
            f"{topic}/{subscription}": count
            for topic in sorted(topics)
            for subscription, count in memory.unsettled(self._project, topic).items()
            if count
        }

    # Faults

    @contextmanager
    def failing(self, code: ErrorCode = ErrorCode.UNAVAILABLE) -> Iterator[None]:
        """Let the broker refuse every request while the block runs.

        With ``UNAVAILABLE``, ``TIMEOUT`` or ``EXHAUSTED`` it is an outage: a send retries until its ``send_timeout``
        and then raises ``TIMEOUT``, and a receive goes on waiting.  With any other code, for example
        ``PERMISSION_DENIED``, sends and receives raise an error with that code at once.
        """
        with self._while(_Fault(BrokerError("the test lets the broker fail", code, retryable=code in _RETRYABLE))):
            yield

    @contextmanager
    def stalling(self) -> Iterator[None]:
        """Let the broker answer no request while the block runs.

        A send waits until its ``send_timeout``, and a settlement until ``ack_timeout``.  If the block ends before, the
        broker does what it was asked.
        """
        with self._while(_Fault(None)):
            yield

    @contextmanager
    def _while(self, fault: _Fault) -> Iterator[None]:
        before, self._fault = self._fault, fault
        try:
            yield
        finally:
            self._fault = before

    async def _answer(self) -> None:
        """Return when the broker can answer a request; at home.

        :raises BrokerError: if the broker fails.
        """
        while (fault := self._fault) is not None:
            if fault.error is not None:
                raise BrokerError(str(fault.error), fault.error.code, retryable=fault.error.retryable)
            await asyncio.sleep(_PAUSE)


@attrs.frozen
class _Fault:
    """A state in which a broker does not work."""

    error: BrokerError | None
    """The answer to each request; ``None`` for no answer."""


def _table(name: str, file: str) -> Mapping[str, Any]:
    clients = clients_of(file)
    if name not in clients:
        raise ConfigurationError(
            f"client {name!r} was asked for, and '{file}' has no table [clients.{name}]"
            f"{did_you_mean(name, clients) or '; give its topic_name, or add the table'}"
        )
    return clients[name]


def _refuse_if_over(ends: float, timeout: float, left: Mapping[str, int]) -> None:
    if time.monotonic() >= ends:
        places = ", ".join(f"{place}: {count}" for place, count in left.items())
        raise TimeoutError(f"after {timeout:g} s these messages are not handled: {places}")


class _Source(Source):
    """A receiver of a subscription, behind the faults of its broker."""

    def __init__(self, source: Source, broker: MemoryBroker) -> None:
        self.subscription = source.subscription
        self.capabilities = source.capabilities
        self._source = source
        self._broker = broker

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while True:
            await self._broker._answer()
            deliveries = await self._source.fetch(limit)
            self._source.unlocked()
            if deliveries:
                return deliveries
            await asyncio.sleep(_PAUSE)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        await self._broker._answer()
        results = await self._source.settle(settlements)
        self._source.unlocked()
        return results

    async def close(self) -> None:
        await self._source.close()


class _Driver(MemoryDriver):
    """The memory backend on the engine's thread, behind the faults of its broker."""

    inline: ClassVar[bool] = False
    longest_pause = 0.05  # so that a test need not wait after the end of a fault

    def __init__(self, topic_name: str, project_id: str, options: MemoryOptions) -> None:
        # The receiver keeps the time of what it holds.  The broker waits longer than that.
        patient = attrs.evolve(options, max_lease_duration=options.max_lease_duration + 10)
        super().__init__(topic_name, project_id, patient)
        self.capabilities = attrs.evolve(self.capabilities, durable="power_loss")
        self._broker = _brokers[project_id]

    async def open(self) -> None:
        await self._broker._answer()
        await super().open()

    def store(self, topic: Any, messages: Sequence[memory._Stored]) -> list[memory.MemorySource]:
        self._broker._record(topic.name, messages)
        return super().store(topic, messages)

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        await self._broker._answer()
        return await super().publish(messages)

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> Source:  # type: ignore[override]
        await self._broker._answer()
        return _Source(await super().subscribe(subscription, wake), self._broker)

    async def delete_subscription(self, subscription: str) -> None:
        await self._broker._answer()
        await super().delete_subscription(subscription)

    async def ping(self) -> None:
        await self._broker._answer()
        await super().ping()

    async def run_native(self, work: Callable[[memory.MemoryTopic], Awaitable[Any]]) -> Any:
        await self._broker._answer()
        return await super().run_native(work)


class _Client(MemoryClient):
    """A client of a test's broker: ``testing://project/topic``."""

    api_version = 1
    full_capabilities = attrs.evolve(MemoryClient.full_capabilities, durable="power_loss")
    driver_class = _Driver
