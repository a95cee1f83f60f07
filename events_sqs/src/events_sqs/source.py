"""The receiver's side: one receiver of a queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import attrs

from events_core import Capabilities, EventMessage
from events_core.engine import BrokerError, Delivery, Settlement, Source
from events_sqs.options import SQSOptions
from events_sqs.topology import Queue

__all__ = ["Context", "SQSSource"]


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
    """Publishes a letter to the dead-letter topic, and returns when AWS has stored it.  It raises a retryable
    :class:`BrokerError` otherwise."""
    release: Callable[[], Awaitable[None]]
    """Called at the end of :meth:`Source.close`: deletes an ephemeral queue with its subscription; for any other queue
    it does nothing."""


class SQSSource(Source):
    """One receiver of a queue."""

    def __init__(self, subscription: str, queue: Queue, context: Context) -> None:
        self.subscription = subscription
        self.capabilities = context.capabilities
        self.lease = float(context.options.visibility_timeout)
        self.redelivers_locally = queue.is_fifo
        self._queue = queue
        self._context = context

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        raise NotImplementedError

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        raise NotImplementedError

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        raise NotImplementedError

    async def close(self) -> None:
        await self._context.release()
