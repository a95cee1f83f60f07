"""One channel to Pub/Sub and the requests made on it, each once and bounded, since the engine retries.

Imports Google's packages, and is therefore imported when a connection opens.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import grpc.aio  # type: ignore[import-untyped]
from google.api_core.exceptions import AlreadyExists
from google.auth import load_credentials_from_file
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from google.pubsub_v1.types import (
    DeadLetterPolicy,
    ExpirationPolicy,
    PublishResponse,
    StreamingPullRequest,
    Subscription,
)

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError, Delivery
from events_gcp.codec import decode, encode
from events_gcp.errors import translated
from events_gcp.limits import MAX_ACK_IDS

__all__ = ["Connection", "Stream"]

_CONNECT_TIMEOUT = 5.0
_RECONNECT_TIMEOUT = 1.0
_PUBLISH_TIMEOUT = 15.0
_TIMEOUT = 10.0
_DRAIN_TIMEOUT = 2.0
"""Seconds for one request of each kind."""

_EPHEMERAL_TTL = timedelta(days=1)
"""When Pub/Sub deletes an ephemeral subscription that nobody uses; the shortest it allows."""

_OPTIONS = [
    # As google-cloud-pubsub sets them for channels of its own.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 4 * 2**20),
    # The engine backs off by itself; gRPC would notice the end of an outage up to two minutes late.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
]
# The emulator would close a connection that is pinged that often (ENHANCE_YOUR_CALM).
_SERVICE_OPTIONS = [*_OPTIONS, ("grpc.keepalive_time_ms", 30_000)]


class Connection:
    """Requests to Pub/Sub; every failure is a :class:`~events_core.engine.BrokerError`."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self._channel = channel
        # The clients are given a channel, since those they make ignore the emulator.
        self._publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        self._subscriber = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))

    @classmethod
    async def open(cls, target: str, *, emulator: bool, credentials_file: str | None) -> Connection:
        """Connect to *target*, ``host:port``: to an emulator in clear and as nobody."""
        with translated(f"connect to {target!r}"):
            if emulator:
                channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
            else:
                channel = PublisherGrpcAsyncIOTransport.create_channel(
                    target, credentials=_credentials(credentials_file), options=_SERVICE_OPTIONS
                )
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT):
                    await channel.channel_ready()
                return cls(target, channel)
            except BaseException:
                await channel.close()
                raise

    async def close(self) -> None:
        """Drop the channel and whatever is under way on it."""
        await self._channel.close()

    # Topics

    async def get_topic(self, topic: str) -> None:
        """Ask for *topic*; for this and all below, names are full: ``projects/…/topics/…``."""
        with translated(f"look up {topic!r} at {self.target}"):
            await self._publisher.get_topic(topic=topic, retry=None, timeout=_TIMEOUT)

    async def create_topic(self, topic: str) -> None:
        """Create *topic* unless it exists."""
        with translated(f"create {topic!r} at {self.target}"):
            try:
                await self._publisher.create_topic(name=topic, retry=None, timeout=_TIMEOUT)
            except AlreadyExists:
                return

    async def publish(self, topic: str, messages: Sequence[EventMessage]) -> list[str]:
        """Store *messages*; their ids, in order."""
        with translated(f"publish to {topic!r} at {self.target}"):
            await self._reconnected()
            response = await self._publisher.publish(encode(topic, messages), retry=None, timeout=_PUBLISH_TIMEOUT)
            return list(PublishResponse.pb(response).message_ids)

    async def _reconnected(self) -> None:
        """Wait a moment while gRPC connects anew, during which it would fail every request at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_RECONNECT_TIMEOUT):
                await self._channel.channel_ready()

    # Subscriptions

    async def get_subscription(self, subscription: str) -> Subscription:
        """What *subscription* is."""
        with translated(f"look up {subscription!r} at {self.target}"):
            return await self._subscriber.get_subscription(subscription=subscription, retry=None, timeout=_TIMEOUT)

    async def create_subscription(
        self,
        subscription: str,
        topic: str,
        *,
        ordered: bool,
        ack_deadline: int,
        ephemeral: bool,
        dead_letter: tuple[str, int] | None,
    ) -> None:
        """Create *subscription* unless it exists; it never expires unless *ephemeral*.

        :param dead_letter: topic, and attempts after which a message goes there.
        """
        request = Subscription(
            name=subscription,
            topic=topic,
            enable_message_ordering=ordered,
            ack_deadline_seconds=ack_deadline,
            expiration_policy=ExpirationPolicy(ttl=_EPHEMERAL_TTL if ephemeral else None),
            labels={"events-ephemeral": "true"} if ephemeral else {},
        )
        if dead_letter:
            target, attempts = dead_letter
            request.dead_letter_policy = DeadLetterPolicy(dead_letter_topic=target, max_delivery_attempts=attempts)
        with translated(f"create {subscription!r} of {topic!r} at {self.target}"):
            try:
                await self._subscriber.create_subscription(request, retry=None, timeout=_TIMEOUT)
            except AlreadyExists:
                return

    async def delete_subscription(self, subscription: str) -> None:
        """Delete *subscription*."""
        with translated(f"delete {subscription!r} at {self.target}"):
            await self._subscriber.delete_subscription(subscription=subscription, retry=None, timeout=_TIMEOUT)

    def pull(self, subscription: str, *, lease: int, max_messages: int, max_bytes: int) -> Stream:
        """Begin to pull; whether that succeeds shows when the stream is read."""
        request = StreamingPullRequest(
            subscription=subscription,
            stream_ack_deadline_seconds=lease,
            max_outstanding_messages=max_messages,
            max_outstanding_bytes=max_bytes,
        )
        asked = f"receive from {subscription!r} at {self.target}"
        return Stream(self._subscriber.transport.streaming_pull, request, asked)

    async def acknowledge(self, subscription: str, ack_ids: list[str]) -> None:
        """Confirm deliveries."""
        with translated(f"acknowledge to {subscription!r} at {self.target}"):
            for ids in _chunks(ack_ids):
                await self._subscriber.acknowledge(subscription=subscription, ack_ids=ids, retry=None, timeout=_TIMEOUT)

    async def set_deadline(self, subscription: str, ack_ids: list[str], seconds: int) -> None:
        """Let deliveries come again in *seconds* from now; 0 gives them back."""
        with translated(f"set the ack deadline of deliveries of {subscription!r} at {self.target}"):
            for ids in _chunks(ack_ids):
                await self._subscriber.modify_ack_deadline(
                    subscription=subscription, ack_ids=ids, ack_deadline_seconds=seconds, retry=None, timeout=_TIMEOUT
                )


class Stream:
    """One StreamingPull.

    It is ended by closing our half and reading to the end: the emulator keeps a cancelled stream alive, and delivers
    into it until the lease runs out.  For the same reason cancelling a read cancels no request of gRPC's.
    """

    def __init__(self, method: Any, request: StreamingPullRequest, asked: str) -> None:
        self._ending = asyncio.Event()
        self._asked = asked
        self._began = time.monotonic()
        routing = ("x-goog-request-params", f"subscription={quote(request.subscription)}")
        self._call = method(self._requests(request), metadata=(routing,))
        self._reading: asyncio.Task[Any] | None = None

    async def _requests(self, first: StreamingPullRequest) -> AsyncIterator[StreamingPullRequest]:
        yield first
        await self._ending.wait()

    @property
    def age(self) -> float:
        """Seconds since it was opened."""
        return time.monotonic() - self._began

    async def read(self) -> list[Delivery]:
        """Wait for one response.  A cancelled read leaves the response to the next."""
        self._reading = self._reading or asyncio.ensure_future(self._call.read())
        with translated(self._asked):
            response = await asyncio.shield(self._reading)
        self._reading = None
        if response is grpc.aio.EOF:
            raise BrokerError(f"{self._asked}: the stream ended", ErrorCode.UNAVAILABLE, retryable=True)
        return decode(response)

    async def finish(self) -> list[Delivery]:
        """End it; what had arrived and was not read."""
        self._ending.set()
        unread: list[Delivery] = []
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT):
                while True:
                    unread += await self.read()
        except (BrokerError, TimeoutError):
            return unread  # the end; had it not come in time, the rest comes again when its leases run out
        finally:
            self._call.cancel()
            if self._reading is not None:
                await asyncio.wait([self._reading])
            self._call = self._reading = None  # gRPC's thread ends with the last of its objects


def _credentials(path: str | None) -> Any:
    """``None`` for the default ones."""
    if path is None:
        return None
    scopes = PublisherGrpcAsyncIOTransport.AUTH_SCOPES
    with warnings.catch_warnings():
        # It warns of files from strangers; this one is named by whoever configures the client.
        warnings.simplefilter("ignore", DeprecationWarning)
        credentials, _ = load_credentials_from_file(path, default_scopes=scopes)  # type: ignore[no-untyped-call]
    return credentials


def _chunks(ack_ids: list[str]) -> list[list[str]]:
    return [ack_ids[start : start + MAX_ACK_IDS] for start in range(0, len(ack_ids), MAX_ACK_IDS)]
