"""A gate in front of a topic, which is closed while a driver creates the topic again.

Some brokers delete the subscriptions of a topic with the topic.  If a message comes to the new topic before its
subscriptions are back, the broker confirms it, and no receiver gets it.  So the driver waits until nothing is on its
way to the topic, and sends nothing before it is whole::

    async def publish(self, messages):
        create = self._create_all if self.options.create == "all" else None
        return await self._gate.send(lambda: self._request(messages), create)

If creating fails or is cancelled, the gate stays closed, and the next send creates the rest.  A driver that finds the
deleted topic in another way calls :meth:`Gate.restore`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from events_core.engine.driver import BrokerError
from events_core.errors import ErrorCode

__all__ = ["Gate"]

T = TypeVar("T")


class Gate:
    """A gate in front of a topic.  All of it runs at home, so no lock is needed."""

    def __init__(self) -> None:
        self.is_open = True
        """False from the time when the topic was found missing until it is there again.  A new gate is open."""
        self._passing: set[asyncio.Future[None]] = set()

    async def send(
        self, request: Callable[[], Awaitable[T]], create_again: Callable[[], Awaitable[object]] | None
    ) -> T:
        """Make *request*, and return its result.  If it says ``NOT_FOUND``, create the topic and make it again.

        :param create_again: creates the topic with its subscriptions, also if parts of them are there; ``None`` if the
            options do not allow it.
        :raises BrokerError: if the request or the creation failed.  If the creation says ``INVALID``, this says
            ``NOT_FOUND``: what is wrong is not the message.
        """
        if self.is_open or create_again is None:
            try:
                with self.passing():
                    return await request()
            except BrokerError as error:
                if error.code is not ErrorCode.NOT_FOUND or create_again is None:
                    raise
        try:
            await self.restore(create_again)
        except BrokerError as error:
            if error.code is not ErrorCode.INVALID:
                raise
            # The engine would take the messages for bad ones, and send each half of them alone.
            raise BrokerError(str(error), ErrorCode.NOT_FOUND) from error.__cause__
        with self.passing():
            return await request()

    async def restore(self, create_again: Callable[[], Awaitable[object]]) -> None:
        """Create the topic with its subscriptions while the gate is closed.

        :raises BrokerError: if the creation failed.
        """
        await self.close()
        await create_again()
        self.open()

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Enter at once, without a look at the gate: a :meth:`close` that begins now waits for the end of the block."""
        over = asyncio.get_running_loop().create_future()
        self._passing.add(over)
        try:
            yield
        finally:
            self._passing.remove(over)
            over.set_result(None)

    async def close(self) -> None:
        """Close the gate, and wait for the requests that have passed.

        Several callers may do so at the same time.  Then one of them may open the gate while another one still waits.
        If this is cancelled, the gate is closed nevertheless.
        """
        self.is_open = False
        if self._passing:  # once: when another caller has opened the gate, there may always be something
            await asyncio.wait(self._passing)

    def open(self) -> None:
        """Open the gate, because the topic is there with its subscriptions."""
        self.is_open = True
