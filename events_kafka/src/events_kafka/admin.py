"""The administrator of confluent-kafka as coroutines.

Its requests return futures that threads of librdkafka resolve, so nothing here blocks.  Only making and ending it may
take a while, and a thread does that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import KafkaError, KafkaException

from events_core import ErrorCode
from events_core.engine import BrokerError, off_loop
from events_kafka.errors import broker_error, refused_settings, translated
from events_kafka.options import KafkaOptions
from events_kafka.settings import settings

__all__ = ["Administrator"]

T = TypeVar("T")
ResultT = TypeVar("ResultT")

_TURN = 0.05
"""Seconds between two looks at what librdkafka reports while a request is out."""


class Administrator:
    """The connection for requests of an administrator.  All its coroutines run at home, and may overlap."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._native: AdminClient | None = None
        self._refusal: BrokerError | None = None
        """The last report that the brokers refuse this client, until a request has failed with it."""
        self._last: KafkaError | None = None
        """The last report of a broken connection."""

    async def open(self) -> None:
        """Make the administrator.  It connects when it is first asked.

        :raises BrokerError: ``INVALID`` if librdkafka refuses a setting.
        """
        config = {**await off_loop(lambda: settings(self._options, "admin")), "error_cb": self._on_error}
        try:
            self._native = await off_loop(lambda: AdminClient(config))
        except (KafkaException, TypeError, ValueError) as error:
            raise refused_settings(error) from error

    @property
    def native(self) -> AdminClient:
        """The administrator of confluent-kafka; only while the driver is open."""
        assert self._native is not None, "the driver is not open"
        return self._native

    async def close(self) -> None:
        """End its connections and threads."""
        native, self._native = self._native, None
        if native is not None:
            # Its destructor joins threads.  So the last reference goes in a thread that may wait.
            holder = [native]
            del native
            await off_loop(holder.clear)

    async def ask(self, asked: str, request: Callable[[AdminClient], Future[ResultT]]) -> ResultT:
        """Make a request and return its result.

        :param asked: the request, for errors.
        :raises BrokerError: if it failed.
        """
        with translated(asked):
            answer = request(self.native)
        return await self._result(asked, answer)

    async def ask_all(
        self, asked: str, request: Callable[[AdminClient], Iterable[tuple[T, Future[ResultT]]]]
    ) -> list[tuple[T, ResultT]]:
        """Make a request that has several answers, and return them; the first failure counts."""
        with translated(asked):
            answers = [*request(self.native)]
        return [(place, await self._result(asked, answer)) for place, answer in answers]

    async def _result(self, asked: str, answer: Future[ResultT]) -> ResultT:
        future = asyncio.wrap_future(answer)
        await self._until(asked, future)
        try:
            return future.result()
        except KafkaException as error:
            raise self._error(asked, error.args[0]) from error

    async def _until(self, asked: str, future: asyncio.Future[Any]) -> None:
        """Wait for *future*, unless the brokers refuse this client."""
        while not future.done():
            await asyncio.wait([future], timeout=_TURN)
            self.native.poll(0)  # calls _on_error
            if self._refusal is not None and not future.done():
                refusal, self._refusal = self._refusal, None
                future.add_done_callback(_ignore)  # it fails when its time is up, and nobody waits for it
                raise BrokerError(f"{asked}: {refusal}", refusal.code) from refusal.__cause__

    def _on_error(self, error: KafkaError) -> None:
        """Take note of what librdkafka reports; at home, inside ``poll``."""
        found = broker_error("connect", error)
        if found.code is ErrorCode.UNAUTHENTICATED:  # librdkafka goes on trying
            self._refusal = found
        elif error.code() != KafkaError._ALL_BROKERS_DOWN:  # that follows a report which says more
            self._last = error

    def _error(self, asked: str, error: KafkaError) -> BrokerError:
        """Return the error of a request.  If there was no answer, the last broken connection says why."""
        found = broker_error(asked, error)
        last, self._last = self._last, None
        if last is not None and error.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
            return BrokerError(f"{found}; last: {last.str()}", found.code, retryable=found.retryable)
        return found


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
