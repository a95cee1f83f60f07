"""The client's side: one topic of an account.

The engine calls everything here on its I/O loop.  aiobotocore is imported in :meth:`SQSDriver.open`, so that a program
which only configures a client does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from events_core import Capabilities, ConfigurationError, EventMessage
from events_core.engine import BrokerError, Delivery, Driver
from events_sqs import limits
from events_sqs.options import SQSOptions

if TYPE_CHECKING:
    from events_sqs.source import SQSSource

__all__ = ["SQSDriver"]


class SQSDriver(Driver[SQSOptions]):
    """One topic of an account."""

    max_batch_messages = limits.MAX_BATCH

    def __init__(self, topic_name: str, project_id: str, options: SQSOptions) -> None:
        super().__init__(topic_name, project_id, options)
        problems = [*self._problems()]
        if problems:
            raise ConfigurationError("; ".join(problems))
        self.address = options.endpoint_url or options.region or ""
        self.capabilities = _capabilities(options)

    def _problems(self) -> Iterator[str]:
        if self.project_id:
            yield f"project_id is {self.project_id!r}; give the account in the option account_id"
        options = self.options
        longest = (256 if options.topology == "sns" else 80) - (5 if options.is_fifo else 0)
        names = [("topic", self.topic_name)]
        dead = options.dead_letter_topic
        if dead:
            names.append(("option 'dead_letter_topic':", dead))
        yield from filter(None, (limits.topic_objection(what, name, longest) for what, name in names))
        if dead == self.topic_name:
            yield f"option 'dead_letter_topic' is the topic itself, {dead!r}; name another"

    async def open(self) -> None:
        raise NotImplementedError

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        raise NotImplementedError

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> SQSSource:
        raise NotImplementedError

    async def delete_subscription(self, subscription: str) -> None:
        raise NotImplementedError

    async def ping(self) -> None:
        raise NotImplementedError

    def native_message(self, delivery: Delivery) -> dict[str, Any]:
        native: dict[str, Any] = delivery.token.message
        return native

    async def close(self) -> None:
        pass


def _capabilities(options: SQSOptions) -> Capabilities:
    full = limits.FULL_CAPABILITIES
    # A delay and the time for which the message was held may have 12 hours together.
    longest_delay = max(limits.LONGEST_LEASE - options.max_lease_duration, 3600.0)
    return attrs.evolve(
        full,
        ordering="subscription" if options.is_fifo else "none",
        idempotent_publish=options.is_fifo,
        limits=attrs.evolve(full.limits, max_message_bytes=options.message_bytes, max_nack_delay=longest_delay),
    )
