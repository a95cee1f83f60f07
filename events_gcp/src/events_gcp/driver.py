"""What the engine asks of Pub/Sub: one topic, its subscriptions, publishing."""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from events_core import Capabilities, ConfigurationError, ErrorCode, EventMessage
from events_core.engine import BrokerError, Driver
from events_gcp.limits import FULL_CAPABILITIES, MAX_ACK_IDS, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, name_objection
from events_gcp.options import GcpOptions
from events_gcp.source import GcpSource

if TYPE_CHECKING:
    from google.pubsub_v1.types import Subscription

    from events_gcp.connection import Connection

__all__ = ["GcpDriver"]


class GcpDriver(Driver[GcpOptions]):
    """One topic of a project, at the service or at an emulator."""

    max_batch_messages = MAX_BATCH_MESSAGES
    max_batch_bytes = MAX_BATCH_BYTES
    max_settle_batch = MAX_ACK_IDS

    def __init__(self, topic_name: str, project_id: str, options: GcpOptions) -> None:
        super().__init__(topic_name, project_id, options)
        problems = [*_problems(topic_name, project_id, options)]
        if problems:
            raise ConfigurationError("; ".join(problems))
        self._emulator = options.emulator_host or os.environ.get("PUBSUB_EMULATOR_HOST")
        self._create = options.create or ("all" if self._emulator else "never")
        self.topic = self._path("topics", topic_name)
        self.capabilities = _capabilities(options, emulator=bool(self._emulator))
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The open connection."""
        assert self._connection is not None, "the driver is not open"
        return self._connection

    async def open(self) -> None:
        from events_gcp.connection import Connection  # Google's packages, which importing this package must not load

        self._connection = await Connection.open(
            self._emulator or _service(self.options),
            emulator=bool(self._emulator),
            credentials_file=self.options.credentials_file,
        )
        try:
            await self._create_topics()
            if self.options.subscription and self._create != "never":
                await self.join(self.options.subscription)
        except BaseException:
            await self.close()
            raise

    def objection(self, message: EventMessage) -> str:
        if not message.data and not message.attributes:
            return "it has neither data nor attributes; Pub/Sub asks for one of them"
        for key in message.attributes:
            if not key or key.startswith("goog"):
                return f"attribute key {key!r} is empty or begins with 'goog', which Pub/Sub reserves"
        return ""

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        try:
            return await self.connection.publish(self.topic, messages)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND or self._create != "all":
                raise
        # An emulator that was started anew has forgotten everything.
        await self._create_topics()
        if self.options.subscription:
            await self.join(self.options.subscription)
        return await self.connection.publish(self.topic, messages)

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> GcpSource:
        if self.options.start == "earliest":
            raise BrokerError("start=earliest is not offered by this backend; use latest", ErrorCode.UNSUPPORTED)
        name = subscription or _ephemeral_name(self.topic_name)
        objection = name_objection("subscription", name)
        if objection:
            raise BrokerError(objection, ErrorCode.INVALID)
        confirmed = await self.join(name, ephemeral=subscription is None)
        return GcpSource(self, name, confirmed, ephemeral=subscription is None)

    async def join(self, name: str, *, ephemeral: bool = False) -> Capabilities:
        """See to it that the subscription exists and is what the options ask for; what it promises."""
        path = self.subscription_path(name)
        try:
            found = await self.connection.get_subscription(path)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND or (self._create == "never" and not ephemeral):
                raise
            await self._create_topics()
            await self.connection.create_subscription(
                path,
                self.topic,
                ordered=self.capabilities.ordering != "none",
                ack_deadline=self.options.ack_deadline,
                ephemeral=ephemeral,
                dead_letter=self._dead_letter,
            )
            found = await self.connection.get_subscription(path)
        return self._confirmed(found)

    def _confirmed(self, found: Subscription) -> Capabilities:
        """What *found* promises, unless it contradicts the options."""
        contradiction = ""
        if found.topic != self.topic:
            contradiction = f"belongs to {found.topic!r}, not {self.topic!r}"
        elif self.options.ordering and not found.enable_message_ordering:
            contradiction = "was created without message ordering, and ordering=true is asked for"
        elif self._dead_letter and not found.dead_letter_policy.dead_letter_topic:
            contradiction = "has no dead-letter policy, and dead_letter_topic is asked for"
        if contradiction:
            raise BrokerError(
                f"subscription {found.name!r} {contradiction}; delete it, name another, or change the option",
                ErrorCode.INVALID,
            )
        if found.enable_exactly_once_delivery:
            raise BrokerError(
                f"subscription {found.name!r} has exactly-once delivery, which this backend does not speak yet; "
                "use one without",
                ErrorCode.UNSUPPORTED,
            )
        counted = bool(found.dead_letter_policy.dead_letter_topic)
        return attrs.evolve(
            self.capabilities,
            ordering=self.capabilities.ordering if found.enable_message_ordering else "none",
            dead_letter=counted and not found.enable_message_ordering,
            delivery_attempts=counted,
            handback_counts=counted,
        )

    async def delete_subscription(self, subscription: str) -> None:
        await self.connection.delete_subscription(self.subscription_path(subscription))

    async def ping(self) -> None:
        await self.connection.get_topic(self.topic)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _create_topics(self) -> None:
        """Create the topics where options allow."""
        if self._create == "all":
            await self.connection.create_topic(self.topic)
            if self._dead_letter:
                await self.connection.create_topic(self._dead_letter[0])

    @property
    def _dead_letter(self) -> tuple[str, int] | None:
        topic, attempts = self.options.dead_letter_topic, self.options.max_delivery_attempts
        return (self._path("topics", topic), attempts) if topic and attempts else None

    def subscription_path(self, name: str) -> str:
        """The full name of a subscription."""
        return self._path("subscriptions", name)

    def _path(self, kind: str, name: str) -> str:
        return f"projects/{self.project_id}/{kind}/{name}"


def _problems(topic_name: str, project_id: str, options: GcpOptions) -> Iterator[str]:
    if not project_id or "/" in project_id:
        yield f"project_id {project_id!r} is no project; give the id of the Google Cloud project, any on an emulator"
    names = {"topic": topic_name, "subscription": options.subscription, "dead_letter_topic": options.dead_letter_topic}
    for what, name in names.items():
        objection = name_objection(what, name) if name else ""
        if objection:
            yield objection


def _capabilities(options: GcpOptions, *, emulator: bool) -> Capabilities:
    counted = options.dead_letter_topic is not None
    return attrs.evolve(
        FULL_CAPABILITIES,
        durable="process_crash" if emulator else "power_loss",
        ordering="none" if counted or options.ordering is False else "receiver",
        dead_letter=not options.ordering,
        delivery_attempts=counted,
        handback_counts=counted,
    )


def _service(options: GcpOptions) -> str:
    region = f"{options.region}-pubsub.googleapis.com" if options.region else "pubsub.googleapis.com"
    host = options.endpoint or region
    return host if ":" in host else f"{host}:443"


def _ephemeral_name(topic_name: str) -> str:
    host = re.sub(r"[^A-Za-z0-9\-]", "-", socket.gethostname())[:32]
    return f"{topic_name[:180]}-{host}-{os.getpid()}-{uuid.uuid4().hex[:16]}"
