"""The source of one receiver: what the engine fetches from and settles with.

:mod:`~events_sqs.polling` sends the requests to receive, and :mod:`~events_sqs.settling` those that settle.

**Order.**  While a message of a group is in flight, a FIFO queue gives out none of the later ones.  So the order of a
key holds over all receivers.  A nack must not reach the queue while later messages of the group are held here:
returning those would count an attempt for each.  So the engine keeps the run and hands it out again
(``redelivers_locally``).  When the receiver closes, all of it goes back.

All of it runs on the engine's I/O loop, so no lock is needed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NoReturn

import attrs

from events_core import Capabilities, ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery, Letters, Settlement, Source, uptime
from events_sqs.calls import Calls
from events_sqs.limits import LONGEST_HOLD
from events_sqs.options import SQSOptions
from events_sqs.polling import Polls
from events_sqs.settling import Settling
from events_sqs.topology import Queue

__all__ = ["Context", "SQSSource"]

_CUT_AFTER = 0.1
"""Seconds for which closing waits for a request that is out.  The engine has waited before, for a second at least."""

_PREFETCH = 100
"""Messages that are fetched ahead.  SQS is paid by the request, and each message that waits here is extended."""


@attrs.frozen
class Context:
    """What a source gets from its driver."""

    options: SQSOptions
    topic_name: str
    """The name of the topic, as the configuration has it: for the attributes of dead letters."""
    sqs: Any
    """The client of SQS, of aiobotocore.  It never retries.  Its read timeout is longer than any long poll."""
    capabilities: Capabilities
    store_letter: Callable[[EventMessage], Awaitable[None]]
    """Publishes a letter to the dead-letter topic, and returns when AWS has stored it.  It raises a
    :class:`BrokerError` otherwise, which is retryable unless the letter is too large."""
    release: Callable[[], Awaitable[None]]
    """Called at the end of :meth:`Source.close`: deletes an ephemeral queue with its subscription; for any other queue
    it does nothing."""
    restore: Callable[[], Awaitable[None]] | None = None
    """Creates the queue again, which was deleted; ``None`` if the options do not allow that."""


class SQSSource(Source):
    """One receiver of a queue."""

    redelivers_locally = True
    """Without meaning on standard queues, where the engine settles each message alone."""
    prefetch = _PREFETCH
    longest_hold = LONGEST_HOLD

    def __init__(self, subscription: str, queue: Queue, context: Context) -> None:
        options = context.options
        self.subscription = subscription
        self.capabilities = context.capabilities
        self.lease: float = options.visibility_timeout
        self.local_attempts = None if queue.redrives else options.max_delivery_attempts
        self._context = context
        self._is_ephemeral = queue.is_ephemeral
        self._must_restore = False
        """True from ``NOT_FOUND`` until the queue is restored.  A restore that failed may have created the queue and
        not subscribed it, and then no request says ``NOT_FOUND`` again."""
        self._letters = Letters(
            context.store_letter,
            topic_name=context.topic_name,
            subscription=subscription,
            dead_letter_topic=options.dead_letter_topic,
            last_attempt=self.local_attempts,
        )
        calls = Calls(context.sqs, queue, subscription, options.visibility_timeout)
        self._settling = Settling(calls, self._letters, options.visibility_timeout, is_fifo=queue.is_fifo)
        self._polls = Polls(calls.receive, self._settling.give_back, options.wait_time, is_fifo=queue.is_fifo)

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        restore = self._context.restore
        if self._must_restore and restore is not None:
            await self._restore(restore)
        try:
            received = await self._polls.receive(limit)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND or restore is None:
                raise
            await self._restore(restore)
        try:
            return await self._fresh(received)
        except BaseException:
            self._polls.keep(received)
            raise

    async def _restore(self, restore: Callable[[], Awaitable[None]]) -> NoReturn:
        """Create the queue again, which was deleted (F1).

        :raises BrokerError: always.  A retryable one makes the engine fetch again.
        """
        self._must_restore = True
        try:
            await restore()
        except BrokerError as error:
            if error.code is not ErrorCode.PERMISSION_DENIED:
                raise
            raise BrokerError(
                f"the queue of subscription {self.subscription!r} was deleted and may not be restored: {error}",
                ErrorCode.NOT_FOUND,
            ) from error
        self._must_restore = False
        raise BrokerError(
            f"the queue of subscription {self.subscription!r} was deleted and has been created again; the messages in "
            "it are lost",
            ErrorCode.UNAVAILABLE,
            retryable=True,
        )

    async def _fresh(self, received: Sequence[Delivery]) -> Sequence[Delivery]:
        """Extend the leases of what had to wait here, and leave out what SQS has taken back.

        The engine counts a lease from the end of :meth:`fetch`.
        """
        oldest = uptime() - self.lease / 4
        old = [each for each in received if each.token.received < oldest]
        if not old:
            return received
        lost = set(await self._settling.extend(old))
        return [each for each in received if each not in lost]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        return await self._settling.settle(settlements)

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        return await self._settling.extend(deliveries)

    async def finish_fetching(self) -> None:
        if not self._is_ephemeral:  # an ephemeral queue is deleted with its messages
            await self._polls.finish()

    async def close(self) -> None:
        await self._letters.close()
        if self._is_ephemeral:
            await self._polls.cut()
        else:
            await self._polls.close(_CUT_AFTER)
        await self._context.release()
