"""The client's side: one topic of an account.

The engine calls everything here on its I/O loop.  aiobotocore is imported in :meth:`SQSDriver.open`, so that a program
which only configures a client does not wait for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from events_core import Capabilities, ConfigurationError, ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery, Driver, off_loop
from events_sqs import limits
from events_sqs.codec import size_objection
from events_sqs.letters import letter_id, shortened
from events_sqs.options import SQSOptions

if TYPE_CHECKING:
    from events_sqs.ephemeral import EphemeralQueues
    from events_sqs.sending import Sender
    from events_sqs.session import Services
    from events_sqs.source import SQSSource
    from events_sqs.topology import Queue, Topic, Topology

__all__ = ["SQSDriver"]

T = TypeVar("T")


class SQSDriver(Driver[SQSOptions]):
    """One topic of an account."""

    max_batch_messages = limits.MAX_BATCH
    max_settle_batch = limits.MAX_SETTLE_BATCH
    settle_unit = limits.MAX_BATCH
    longest_pause = 10.0  # AWS is back within seconds, and a request that fails costs money
    publish_max_full = limits.MAX_REQUESTS
    one_of_each_key = True  # SQS may store an entry behind a failed one of its message group
    retries_results = True

    def __init__(self, topic_name: str, project_id: str, options: SQSOptions) -> None:
        super().__init__(topic_name, project_id, options)
        problems = [*self._problems()]
        if problems:
            raise ConfigurationError("; ".join(problems))
        self.address = options.endpoint_url or options.region or ""
        self.capabilities = _capabilities(options)
        if options.topology == "sns":
            self.maintenance_interval = options.ephemeral_idle / 4
        self.max_batch_bytes = options.request_bytes
        self.wants_ids = options.carries_ids or options.is_fifo
        self._sample_id = "0" * 32 if options.carries_ids else None
        self._services: Services | None = None
        self._at_close = AsyncExitStack()

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
        if options.subscription is not None:
            yield from filter(None, [self._objection_to(options.subscription)])

    def _objection_to(self, subscription: str) -> str:
        return limits.queue_objection(subscription, self.options.queue_of(self.topic_name, subscription))

    async def open(self) -> None:
        await off_loop(_import_aiobotocore)
        from events_sqs.ephemeral import EphemeralQueues
        from events_sqs.sending import Sender
        from events_sqs.session import Services
        from events_sqs.topology import Topology

        options = self.options
        self._services = services = await Services.open(options)
        self._at_close.push_async_callback(services.close)
        try:
            self.topology: Topology = Topology(services, options)
            self._topic: Topic = await self.topology.find_topic(self.topic_name)
            self._ephemeral: EphemeralQueues = EphemeralQueues(services, self.topology, self._topic, options)
            self._at_close.push_async_callback(self._ephemeral.remove_left)
            self._sender: Sender = Sender(services, self._topic, options.request_bytes)
            self._letters: Sender | None = None
            if options.subscription is not None and options.create != "never" and options.topology == "sns":
                await self.topology.join(self._topic, options.subscription)
        except BaseException:
            await self.close()
            raise

    # Sending

    def objection(self, message: EventMessage) -> str:
        return size_objection(message, self._sample_id, self.options.message_bytes)

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        return await self.publish_with_ids(messages, [""] * len(messages))

    async def publish_with_ids(
        self, messages: Sequence[EventMessage], ids: Sequence[str]
    ) -> Sequence[str | BrokerError]:
        create_again = partial(self.topology.find_topic, self.topic_name) if self.options.create == "all" else None
        gate = self.topology.gate(self.topic_name)
        return await gate.send(lambda: self._sender.send(messages, ids), create_again)

    async def store_letter(self, letter: EventMessage) -> None:
        """Publish *letter* to the dead-letter topic, and return when AWS has stored it.

        :raises BrokerError: if it may not be stored: ``INVALID`` if it is too large even without its origin, otherwise
            a retryable one.
        """
        unique, letter = letter_id(letter), shortened(letter, self.objection)
        if objection := self.objection(letter):
            raise BrokerError(f"no dead letter: {objection}", ErrorCode.INVALID)
        gate = self.topology.gate(self._dead_letter_topic)
        try:
            letters = self._letters
            if letters is None or not gate.is_open:
                letters = await self._find_letters()
            with gate.passing():
                (result,) = await letters.send([letter], [unique])
        except BrokerError as error:
            self._letters = None  # the topic is looked for again
            if error.code is ErrorCode.NOT_FOUND and self.options.create != "never":
                await gate.close()
            result = error
        if isinstance(result, BrokerError):
            raise BrokerError(str(result), result.code, retryable=True) from result.__cause__

    async def _find_letters(self) -> Sender:
        from events_sqs.sending import Sender

        assert self._services is not None
        topic = await self.topology.find_topic(self._dead_letter_topic)
        self._letters = Sender(self._services, topic, self.options.request_bytes)
        return self._letters

    @property
    def _dead_letter_topic(self) -> str:
        assert self.options.dead_letter_topic is not None
        return self.options.dead_letter_topic

    # Receiving

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> SQSSource:
        from events_sqs.source import Context, SQSSource

        self._check_subscription(subscription)
        if self.options.dead_letter_topic is not None:
            await self._find_letters()
        if subscription is None:
            subscription, queue = await self._ephemeral.create()
        else:
            queue = await self.topology.join(self._topic, subscription)
        # A new queue would have no redrive policy, but the receiver leaves letters to that.
        may_restore = queue.is_ephemeral or (self.options.creates_queues and not queue.redrives)
        assert self._services is not None
        context = Context(
            options=self.options,
            topic_name=self.topic_name,
            sqs=self._services.sqs,
            capabilities=self.capabilities,
            store_letter=self.store_letter,
            release=lambda: self._ephemeral.remove(queue),
            restore=partial(self._restore, queue, subscription) if may_restore else None,
        )
        return SQSSource(subscription, queue, context)

    async def _restore(self, queue: Queue, subscription: str) -> None:
        """Create a queue again, which was deleted under its receiver, and its topic if that was deleted too."""
        self.topology.forget(self._topic, queue)
        if self.options.create == "all":
            await self.topology.find_topic(self.topic_name)
        if queue.is_ephemeral:
            await self._ephemeral.restore(queue)
        else:
            await self.topology.join(self._topic, subscription)

    def _check_subscription(self, name: str | None) -> None:
        """Refuse a subscription that this configuration cannot have.

        :raises BrokerError: ``UNSUPPORTED``, ``INVALID`` or ``NOT_FOUND``.
        """
        if self.options.start == "earliest":
            raise BrokerError("this backend does not offer start=earliest; use latest", ErrorCode.UNSUPPORTED)
        if self.options.topology == "queue" and name != self.topic_name:
            found = "an ephemeral one" if name is None else repr(name)
            raise BrokerError(
                f"with topology=queue the only subscription is {self.topic_name!r}, not {found}; use topology=sns",
                ErrorCode.UNSUPPORTED,
            )
        if name is not None and (objection := self._objection_to(name)):
            raise BrokerError(objection, ErrorCode.INVALID)

    async def has_subscription(self) -> bool | None:
        return await self.topology.has_subscription(self._topic)

    async def keep_dead_letters(self, subscription: str) -> bool | None:
        topic = await self.topology.find_topic(self._dead_letter_topic)
        return await self.topology.keep_letters(topic, subscription, self._ephemeral.is_ephemeral)

    async def delete_subscription(self, subscription: str) -> None:
        self._check_subscription(subscription)
        await self.topology.delete_subscription(self._topic, subscription)

    async def maintain(self) -> None:
        await self._ephemeral.renew()
        await self._ephemeral.remove_expired()
        await self._ephemeral.remove_left()

    async def ping(self) -> None:
        await self.topology.look_for_topic(self.topic_name)

    async def run_native(self, work: Callable[[Any], Awaitable[T]]) -> T:
        return await work(self._services)

    def native_message(self, delivery: Delivery) -> dict[str, Any]:
        native: dict[str, Any] = delivery.token.message
        return native

    async def close(self) -> None:
        self._services = None
        await self._at_close.aclose()


def _import_aiobotocore() -> None:
    """Import aiobotocore.  That takes a second, so a thread does it."""
    import events_sqs.ephemeral
    import events_sqs.sending
    import events_sqs.session
    import events_sqs.source
    import events_sqs.topology  # noqa: F401


def _capabilities(options: SQSOptions) -> Capabilities:
    full = limits.FULL_CAPABILITIES
    # A delay and the time for which the message was here may have 12 hours together.  The message may be buffered for
    # one lease and held for another, unless that is longer than the longest hold: then both share one lease.
    lease = options.max_lease_duration
    here = 2 * lease if 2 * lease <= limits.LONGEST_HOLD else min(lease, limits.LONGEST_HOLD)
    longest_delay = limits.LONGEST_LEASE - here
    return attrs.evolve(
        full,
        ordering="subscription" if options.is_fifo else "none",
        idempotent_publish=options.is_fifo and options.send_timeout <= limits.DEDUPLICATION,
        limits=attrs.evolve(full.limits, max_message_bytes=options.data_bytes, max_nack_delay=longest_delay),
    )
