"""The administrator of confluent-kafka as coroutines.

Its requests return futures that threads of librdkafka resolve, so nothing here blocks.  Only making and ending it may
take a while, and a thread does that.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import KafkaError, KafkaException

from events_core import ErrorCode
from events_core.engine import BrokerError, off_loop
from events_kafka.errors import broker_error, making, translated
from events_kafka.groups import COORDINATOR_IS_COMING
from events_kafka.options import KafkaOptions
from events_kafka.settings import given, settings

__all__ = ["Administrator"]

T = TypeVar("T")
ResultT = TypeVar("ResultT")

_TURN = 0.05
"""Seconds between two looks at what librdkafka reports while a request is out."""
_RECONNECT_TIMEOUT = 3.0
"""Seconds for a request while all brokers are lost: longer than the pauses between librdkafka's tries."""
_FIRST_TIMEOUT = 0.3
"""The same until a broker has answered for the first time: then it is better to tell why none does."""

_READY_TIMEOUT = 10.0
"""Seconds within which partitions get leaders, and groups coordinators, when brokers have started."""
_READY_PAUSE = 0.1
"""Seconds between two requests until then."""
_NOT_READY = COORDINATOR_IS_COMING | {
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError._NOENT,  # no partition has a leader
}
"""The errors of requests that were not carried out, because a broker starts or partitions move."""


_NO_ANSWER = (ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE)
"""The codes of errors after which the next request uses another administrator."""


class Administrator:
    """The connection for requests of an administrator.  All its coroutines run at home, and may overlap."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._native: AdminClient | None = None
        self._refusal: KafkaError | None = None
        """The last report that the brokers refuse this client."""
        self._last: KafkaError | None = None
        """The last report of a broken connection."""
        self._patience = _FIRST_TIMEOUT
        self._requests = 0
        """The number of requests that are out."""
        self._is_suspect = False
        """True if the last request got no answer."""
        self._down_since = math.inf
        """The ``time.monotonic()`` at which all brokers were reported as lost; infinite if they answer."""

    async def open(self) -> None:
        """Make the administrator, in place of the one before.  It connects when it is first asked.

        :raises BrokerError: ``INVALID`` if librdkafka refuses a setting.
        """
        with making(given(self._options).values()):
            native = await off_loop(self._make)
        before, self._native = [self._native], native
        self._last, self._down_since, self._is_suspect = None, math.inf, False
        # Its destructor joins threads.  So the last reference goes in a thread that may wait.
        await off_loop(before.clear)

    def _make(self) -> AdminClient:
        config = settings(self._options, "admin")
        config["error_cb"] = self._on_error
        return AdminClient(config)

    @property
    def native(self) -> AdminClient:
        """The administrator of confluent-kafka; only while the driver is open."""
        assert self._native is not None, "the driver is not open"
        return self._native

    async def close(self) -> None:
        """End its connections and threads."""
        before, self._native = [self._native], None
        await off_loop(before.clear)

    async def ask(self, asked: str, request: Callable[[AdminClient], Future[ResultT]]) -> ResultT:
        """Make a request and return its result.

        :param asked: the request, for errors.
        :raises BrokerError: if it failed.
        """

        async def once() -> ResultT:
            async with self._asking(asked):
                return await self._result(asked, request(self.native))

        return await _when_ready(once)

    async def ask_all(
        self, asked: str, request: Callable[[AdminClient], Iterable[tuple[T, Future[ResultT]]]]
    ) -> list[tuple[T, ResultT]]:
        """Make a request that has several answers, and return them; the first failure counts."""

        async def once() -> list[tuple[T, ResultT]]:
            async with self._asking(asked):
                answers = [*request(self.native)]
                return [(place, await self._result(asked, answer)) for place, answer in answers]

        return await _when_ready(once)

    @asynccontextmanager
    async def _asking(self, asked: str) -> AsyncIterator[None]:
        """Enter to make a request.  If the last one got no answer, another administrator makes it.

        librdkafka may have lost all brokers for good: see :meth:`events_kafka.consumer.Consumer._replace`.
        """
        if self._is_suspect and not self._requests:
            await self.open()
        self._requests += 1
        try:
            with translated(asked):
                yield
        except BaseException as error:
            self._is_suspect = not isinstance(error, BrokerError) or error.code in _NO_ANSWER
            raise
        finally:
            self._requests -= 1

    async def _result(self, asked: str, answer: Future[ResultT]) -> ResultT:
        future = asyncio.wrap_future(answer)
        await self._until(asked, future)
        with translated(asked):
            result = future.result()
        self._down_since = math.inf
        self._patience = _RECONNECT_TIMEOUT
        return result

    async def _until(self, asked: str, future: asyncio.Future[Any]) -> None:
        """Wait for *future*, unless the brokers refuse this client or cannot be reached."""
        began = time.monotonic()
        self._refusal = None  # it may have been reported long ago
        try:
            while not future.done():
                await asyncio.wait([future], timeout=_TURN)
                self.native.poll(0)  # calls _on_error
                error = self._refusal
                if error is None and time.monotonic() - max(began, self._down_since) > self._patience:
                    error = self._last
                if error is not None and not future.done():
                    raise broker_error(asked, error)
        finally:
            future.add_done_callback(_ignore)  # nobody may wait for it any more when its time is up

    def _on_error(self, error: KafkaError) -> None:
        """Take note of what librdkafka reports; at home, inside ``poll``."""
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._refusal = error  # librdkafka goes on trying
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down_since = min(self._down_since, time.monotonic())
            self._last = self._last or error
        else:
            self._last = error


async def _when_ready(request: Callable[[], Awaitable[T]]) -> T:
    """Make a request again while a broker is not ready for it.  librdkafka and the engine do not."""
    ends = time.monotonic() + _READY_TIMEOUT
    while True:
        try:
            return await request()
        except BrokerError as error:
            cause = error.__cause__
            is_coming = isinstance(cause, KafkaException) and cause.args[0].code() in _NOT_READY
            if not is_coming or time.monotonic() > ends:
                raise
        await asyncio.sleep(_READY_PAUSE)


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
