"""A gate in front of a topic, which is closed while a driver creates the topic again.

Some brokers delete the subscriptions of a topic with the topic.  If a message comes to the new topic before its
subscriptions are back, the broker confirms it, and no receiver gets it.  So the driver waits until nothing is on its
way to the topic, and sends nothing before it is whole::

    async def publish(self, messages):
        if self._gate.is_open:
            try:
                with self._gate.passing():
                    return await self._request(messages)
            except BrokerError as error:
                if error.code is not ErrorCode.NOT_FOUND or self.options.create != "all":
                    raise
        await self._gate.close()
        await self._create_again()
        self._gate.open()
        with self._gate.passing():
            return await self._request(messages)

If creating fails or is cancelled, the gate stays closed, and the next send creates the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """A gate in front of a topic.  All of it runs at home, so no lock is needed."""

    def __init__(self) -> None:
        self.is_open = True
        """True if a request may be sent to the topic.  A new gate is open."""
        self._passing: set[asyncio.Future[None]] = set()

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Enter at once, without a look at the gate: a :meth:`close` that begins now waits for the end of the block.

        The block makes one or more requests to send.
        """
        over = asyncio.get_running_loop().create_future()
        self._passing.add(over)
        try:
            yield
        finally:
            self._passing.remove(over)
            over.set_result(None)

    async def close(self) -> None:
        """Close the gate, and wait for the requests that have passed.  Several callers may do so at the same time.

        If this is cancelled, the gate is closed nevertheless.
        """
        self.is_open = False
        if self._passing:  # not those that pass later: another caller may have opened the gate, and many pass then
            await asyncio.wait(self._passing)

    def open(self) -> None:
        """Open the gate, because the topic is there with its subscriptions."""
        self.is_open = True
