"""The client's side: one topic of a project, its subscriptions, and publishing.

The engine calls everything here on its I/O loop.  Modules that import Google's packages are imported in
:meth:`GcpDriver.open`, so that a program which only configures a client does not wait for them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import attrs

from events_core import Capabilities, ConfigurationError, ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery, Driver, off_loop
from events_gcp.endpoint import Endpoint
from events_gcp.ephemeral import ephemeral_name
from events_gcp.limits import (
    FULL_CAPABILITIES,
    MAX_ACK_IDS,
    MAX_BATCH_BYTES,
    MAX_BATCH_MESSAGES,
    PUBLISH_MAX_KEYS,
    attribute_objection,
    name_objection,
)
from events_gcp.options import GcpOptions, shown
from events_gcp.source import GcpSource

if TYPE_CHECKING:
    import grpc.aio  # type: ignore[import-untyped]
    from google.pubsub_v1.types import ReceivedMessage

    from events_gcp.admin import Admin
    from events_gcp.api import Api

__all__ = ["GcpDriver"]

T = TypeVar("T")

_CLEAN_UP_TIMEOUT = 2.0
"""Seconds to delete an ephemeral subscription after its creation failed or was cancelled."""


class GcpDriver(Driver[GcpOptions]):
    """One topic of a project, on the service or on an emulator."""

    max_batch_messages = MAX_BATCH_MESSAGES
    max_batch_bytes = MAX_BATCH_BYTES
    max_settle_batch = MAX_ACK_IDS
    publish_max_keys = PUBLISH_MAX_KEYS

    def __init__(self, topic_name: str, project_id: str, options: GcpOptions) -> None:
        super().__init__(topic_name, project_id, options)
        problems = [*_problems(topic_name, project_id, options)]
        if problems:
            raise ConfigurationError("; ".join(problems))
        self._endpoint = Endpoint.of(options)
        self.address = self._endpoint.target
        # On the service, other tools usually create resources, and the account often may not.
        self._create = options.create or ("all" if self._endpoint.is_emulator else "never")
        self._topic = self._path("topics", topic_name)
        self.capabilities = _capabilities(options, is_emulator=self._endpoint.is_emulator)
        self._api: Api | None = None

    async def open(self) -> None:
        await off_loop(_import_google)
        from events_gcp.admin import Admin
        from events_gcp.api import Api

        # Cancelled here, `Api.open` itself leaves the pool of channels.
        self._api = api = await Api.open(
            self._endpoint, self.connection_restored, compress=self.options.compression == "gzip"
        )
        self._admin = Admin(api, self._topic, self._dead_letter, self.options, self._create, self.capabilities)
        try:
            await self._admin.create_topics()
            if self.options.subscription and self._create != "never":
                await self._admin.join(self.subscription_path(self.options.subscription))
        except BaseException:
            await self.close()
            raise

    def objection(self, message: EventMessage) -> str:
        if not message.data and not message.attributes:
            return "it has neither data nor attributes; Pub/Sub needs one of them"
        for key in message.attributes:
            if objection := attribute_objection(key):
                return objection
        return ""

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        create_again = self.admin.create_again if self._create == "all" else None
        return await self.admin.gate.send(lambda: self.api.publish(self._topic, messages), create_again)

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> GcpSource:
        if self.options.start == "earliest":
            raise BrokerError("this backend does not offer start=earliest; use latest", ErrorCode.UNSUPPORTED)
        name = subscription or ephemeral_name(self.topic_name)
        objection = name_objection("subscription", name)
        if objection:
            raise BrokerError(objection, ErrorCode.INVALID)
        # Its name is new, so a failed or cancelled creation may delete whatever has this name.
        ephemeral = subscription is None
        try:
            joined = await self.admin.join(self.subscription_path(name), ephemeral=ephemeral)
        except BaseException:  # also when cancelled: the request may have created it
            if ephemeral:
                with suppress(BrokerError, TimeoutError):
                    async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
                        await self.delete_subscription(name)
            raise
        return GcpSource(self, joined)

    async def has_subscription(self) -> bool:
        return await self.api.has_subscription(self._topic)

    async def keep_dead_letters(self, subscription: str) -> bool:
        return await self.admin.keep_dead_letters(self.subscription_path(subscription))

    async def delete_subscription(self, subscription: str) -> None:
        path = self.subscription_path(subscription)
        self.admin.forget(path)
        await self.api.delete_subscription(path)

    async def ping(self) -> None:
        await self.api.get_topic(self._topic)

    async def run_native(self, work: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
        return await work(self.api.channel)

    def native_message(self, delivery: Delivery) -> ReceivedMessage:
        from events_gcp.codec import native  # imports Google's packages, as every message that was received has done

        return native(delivery)

    async def close(self) -> None:
        api, self._api = self._api, None
        if api is not None:
            await api.close()

    @property
    def api(self) -> Api:
        """The requests to Pub/Sub; only while the driver is open."""
        assert self._api is not None, "the driver is not open"
        return self._api

    @property
    def admin(self) -> Admin:
        """The topics and subscriptions; only after the driver was opened."""
        return self._admin

    @property
    def _dead_letter(self) -> tuple[str, int] | None:
        topic, attempts = self.options.dead_letter_topic, self.options.max_delivery_attempts
        return (self._path("topics", topic), attempts) if topic and attempts else None

    def subscription_path(self, name: str) -> str:
        """Return the full name of a subscription."""
        return self._path("subscriptions", name)

    def _path(self, kind: str, name: str) -> str:
        return f"projects/{self.project_id}/{kind}/{name}"


def _import_google() -> None:
    """Import Google's packages.  That takes a while, so a thread does it."""
    import events_gcp.admin
    import events_gcp.api  # noqa: F401


# A project id, for example acme-prod or example.com:acme-prod, or a project number.  Emulators accept more, but no
# character that would break the full name of a topic.
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:~+%\-]{0,99}")


def _problems(topic_name: str, project_id: str, options: GcpOptions) -> Iterator[str]:
    if not _PROJECT.fullmatch(project_id):
        yield (
            f"project_id {shown(project_id)!r} is not a project; give the id of the Google Cloud project, or any id "
            "on an emulator"
        )
    names = {
        "topic": topic_name,
        "subscription": options.subscription,
        "dead_letter_topic": options.dead_letter_topic,
        "dead_letter_subscription": options.dead_letter_subscription,
    }
    for what, name in names.items():
        objection = name_objection(what, name) if name else ""
        if objection:
            yield objection


def _capabilities(options: GcpOptions, *, is_emulator: bool) -> Capabilities:
    # With dead letters, order must be asked for: the receiver then counts attempts, and forgets them when it ends.
    dead_letters = options.dead_letter_topic is not None
    ordering = not dead_letters if options.ordering is None else options.ordering
    return attrs.evolve(
        FULL_CAPABILITIES,
        durable="process_crash" if is_emulator else "power_loss",
        ordering="receiver" if ordering else "none",
        reject=dead_letters,
        delivery_attempts=dead_letters,
        handback_counts=dead_letters and not ordering,
        exactly_once=bool(options.exactly_once),
    )
