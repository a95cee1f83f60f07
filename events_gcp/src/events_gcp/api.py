"""The requests to Pub/Sub.

Each request is sent once and has a deadline; the engine repeats those that may succeed later.  The only exception is a
request whose token was refused: it is sent again with a new token.

This module imports Google's packages, so it is imported when a connection opens.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc  # type: ignore[import-untyped]
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types

from events_core import EventMessage
from events_core.engine import Delivery
from events_gcp.channels import Channel, Pool
from events_gcp.codec import decode, encode
from events_gcp.endpoint import Endpoint
from events_gcp.errors import readable, translated
from events_gcp.scratch import created
from events_gcp.stream import Stream

__all__ = ["Api", "Pulled"]

_TIMEOUT = 10.0
"""Seconds for one request."""
_PUBLISH_TIMEOUT = 15.0
"""Seconds for one request to publish, plus the time that its bytes take on the slowest line."""
_SLOWEST_LINE = 250_000
"""Bytes per second."""
_RECONNECT_TIMEOUT = 1.0
"""Seconds that a request to publish waits for gRPC to reconnect."""

_AGENT = ("x-goog-api-client", f"gl-python/{platform.python_version()} grpc/{grpc.__version__}")
"""A header by which every client of Google says what it is."""


class _Method(NamedTuple):
    """One of the service's methods (google/pubsub/v1/pubsub.proto)."""

    path: str
    request: Any
    response: Any = Empty
    field: str = "subscription"
    """The field by which the service routes requests."""


_GET_TOPIC = _Method("Publisher/GetTopic", types.GetTopicRequest.pb(), types.Topic.pb(), "topic")
_CREATE_TOPIC = _Method("Publisher/CreateTopic", types.Topic.pb(), types.Topic.pb(), "name")
_LIST = _Method(
    "Publisher/ListTopicSubscriptions",
    types.ListTopicSubscriptionsRequest.pb(),
    types.ListTopicSubscriptionsResponse.pb(),
    "topic",
)
_DELETE_TOPIC = _Method("Publisher/DeleteTopic", types.DeleteTopicRequest.pb(), field="topic")
_PUBLISH = _Method("Publisher/Publish", types.PublishRequest.pb(), types.PublishResponse.pb(), "topic")
_GET = _Method("Subscriber/GetSubscription", types.GetSubscriptionRequest.pb(), types.Subscription.pb())
_CREATE = _Method("Subscriber/CreateSubscription", types.Subscription.pb(), types.Subscription.pb(), "name")
_DELETE = _Method("Subscriber/DeleteSubscription", types.DeleteSubscriptionRequest.pb())
_PULL = _Method("Subscriber/Pull", types.PullRequest.pb(), types.PullResponse.pb())
_STREAM = _Method("Subscriber/StreamingPull", types.StreamingPullRequest.pb(), types.StreamingPullResponse.pb())
_ACKNOWLEDGE = _Method("Subscriber/Acknowledge", types.AcknowledgeRequest.pb())
_MODIFY = _Method("Subscriber/ModifyAckDeadline", types.ModifyAckDeadlineRequest.pb())


class Pulled(NamedTuple):
    """The result of a pull."""

    deliveries: list[Delivery]
    seconds: float
    """The duration of the transfer."""
    was_cut_off: bool = False
    """Whether the deadline passed during the transfer.  These messages come again when their leases run out."""


class Api:
    """The requests of one client.  Topics and subscriptions are named in full, ``projects/…``.

    Every failure is a :class:`~events_core.engine.BrokerError`.  All methods may be called concurrently, on the I/O
    loop.  A cancelled request may still take effect.
    """

    def __init__(self, pool: Pool, restored: Callable[[], None], *, compress: bool) -> None:
        self._pool = pool
        self._restored = restored
        self._channel = pool.main
        self._compression = grpc.Compression.Gzip if compress else None

    @classmethod
    async def open(cls, endpoint: Endpoint, restored: Callable[[], None], *, compress: bool) -> Api:
        """Connect, on a channel that other clients of *endpoint* share.

        :param restored: called when the connection was lost and is there again.
        """
        return cls(await Pool.join(endpoint, restored), restored, compress=compress)

    @property
    def is_connected(self) -> bool:
        """True if the channel is connected, as far as gRPC knows."""
        return bool(self._channel.grpc.get_state() is grpc.ChannelConnectivity.READY)

    @property
    def channel(self) -> Any:
        """The ``grpc.aio.Channel`` that requests use.  Other clients share it, so do not close it."""
        return self._channel.grpc

    async def close(self) -> None:
        """Leave the channel.  The last client closes it."""
        await self._pool.leave(self._restored)

    def renew_credentials(self) -> bool:
        """Let the next request get a new token; return whether there are tokens."""
        return self._pool.renew_credentials()

    def look_out(self) -> None:
        """Reconnect after a failure, and call ``restored`` of every client on the channel when that has worked."""
        self._pool.look_out()

    async def _ask(
        self,
        method: _Method,
        request: Any,
        timeout: float = _TIMEOUT,
        compression: Any = None,
        channel: Channel | None = None,
    ) -> Any:
        call = _call(channel or self._channel, method, "unary_unary")
        settings = {"timeout": timeout, "metadata": _metadata(method, request), "compression": compression}
        try:
            return readable(await call(request, **settings))
        except grpc.aio.AioRpcError as error:
            # Any failure may come from a lost connection.  All waiting receivers and requests should then hear at once
            # when it is back.
            self.look_out()
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED or not self.renew_credentials():
                raise
        return readable(await call(request, **settings))

    # Topics

    async def get_topic(self, topic: str) -> None:
        """Look up *topic*, and return if it exists."""
        with translated(f"look up {topic!r} at {self._target}"):
            await self._ask(_GET_TOPIC, _GET_TOPIC.request(topic=topic))

    async def create_topic(self, topic: str) -> None:
        """Create *topic* unless it exists."""
        made = await self._create(_CREATE_TOPIC, _CREATE_TOPIC.request(name=topic), f"create {topic!r}")
        if made is not None:
            created(topic)

    async def has_subscription(self, topic: str) -> bool:
        """Return whether *topic* has a subscription; the account needs ``pubsub.topics.listSubscriptions``."""
        with translated(f"list the subscriptions of {topic!r} at {self._target}"):
            # One is enough.  A page may be empty although another one follows.
            response = await self._ask(_LIST, _LIST.request(topic=topic, page_size=1))
            return bool(response.subscriptions or response.next_page_token)

    async def subscriptions(self, topic: str) -> Sequence[str]:
        """Return the names of subscriptions of *topic*, at most 1,000; needs the permission of `has_subscription`."""
        with translated(f"list the subscriptions of {topic!r} at {self._target}"):
            response = await self._ask(_LIST, _LIST.request(topic=topic, page_size=1000))
            return list(response.subscriptions)

    async def delete_topic(self, topic: str) -> None:
        """Delete *topic*."""
        with translated(f"delete {topic!r} at {self._target}"):
            await self._ask(_DELETE_TOPIC, _DELETE_TOPIC.request(topic=topic))

    async def publish(self, topic: str, messages: Sequence[EventMessage]) -> list[str]:
        """Store *messages*, and return their ids in order."""
        with translated(f"publish to {topic!r} at {self._target}"):
            if not self.is_connected:
                await self._reconnected()
            # On a slow line the engine makes smaller requests, but it cannot divide a large message.
            timeout = _PUBLISH_TIMEOUT + sum(len(message.data) for message in messages) / _SLOWEST_LINE
            # Many publish requests may be under way, each for as long as its bytes take.
            with self._pool.long_request() as channel:
                response = await self._ask(_PUBLISH, encode(topic, messages), timeout, self._compression, channel)
            return list(response.message_ids)

    async def _reconnected(self) -> None:
        """Wait a moment while gRPC reconnects.  Until then, it would fail every request at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_RECONNECT_TIMEOUT):
                await self._channel.grpc.channel_ready()

    # Subscriptions

    async def get_subscription(self, subscription: str) -> Any:
        """Return the settings of *subscription*, a protobuf ``Subscription``."""
        with translated(f"look up {subscription!r} at {self._target}"):
            return await self._ask(_GET, _GET.request(subscription=subscription))

    async def create_subscription(self, subscription: Any) -> Any:
        """Create *subscription*, and return it as created; return ``None`` if its name exists already."""
        asked = f"create {subscription.name!r} of {subscription.topic!r}"
        return await self._create(_CREATE, subscription, asked)

    async def _create(self, method: _Method, request: Any, asked: str) -> Any:
        """Return the created resource, or ``None`` if it existed already."""
        with translated(f"{asked} at {self._target}"):
            try:
                return await self._ask(method, request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                return None

    async def delete_subscription(self, subscription: str) -> None:
        """Delete *subscription*."""
        with translated(f"delete {subscription!r} at {self._target}"):
            await self._ask(_DELETE, _DELETE.request(subscription=subscription))

    # Deliveries

    def stream(self, subscription: str, **settings: object) -> Stream:
        """Begin a StreamingPull.  A failure is raised when the stream is read.

        :param settings: fields of StreamingPullRequest.
        """
        request = _STREAM.request(subscription=subscription, **settings)
        channel = self._pool.for_stream()
        call = _bound(channel.grpc.stream_stream, _STREAM)(metadata=_metadata(_STREAM, request))
        return Stream(channel, call, request, f"receive from {subscription!r} at {self._target}")

    async def pull(self, subscription: str, limit: int, timeout: float) -> Pulled:
        """Wait for up to *limit* messages.  Do not cancel it, because the service would still answer.

        :param timeout: seconds for the wait and the transfer of the answer.
        """
        with translated(f"receive from {subscription!r} at {self._target}"), self._pool.long_request() as channel:
            request = _PULL.request(subscription=subscription, max_messages=limit)
            now = asyncio.get_running_loop().time
            ends = now() + timeout
            # As a stream of one response: gRPC then tells when the transfer begins.
            call = _call(channel, _PULL, "unary_stream")(request, timeout=timeout, metadata=_metadata(_PULL, request))
            await call.initial_metadata()
            began = now()
            try:
                response = await call.read()
                while await call.read() is not grpc.aio.EOF:
                    pass  # the call ends by itself only when it has been read to the end
            except grpc.aio.AioRpcError as error:
                self.look_out()
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or now() < ends:
                    raise
                # A transfer had begun before the deadline if the headers had come by then.
                return Pulled([], 0.0, was_cut_off=began < ends)
            if response is grpc.aio.EOF:
                return Pulled([], 0.0)
            return Pulled(decode(response.received_messages), now() - began)

    async def acknowledge(self, subscription: str, ack_ids: Sequence[str]) -> None:
        """Acknowledge deliveries, at most :data:`~events_gcp.limits.MAX_ACK_IDS`."""
        with translated(f"acknowledge to {subscription!r} at {self._target}"):
            await self._ask(_ACKNOWLEDGE, _ACKNOWLEDGE.request(subscription=subscription, ack_ids=ack_ids))

    async def set_deadline(self, subscription: str, ack_ids: Sequence[str], seconds: int) -> None:
        """Let the leases of deliveries end in *seconds* from now; 0 gives them back.

        It takes at most :data:`~events_gcp.limits.MAX_ACK_IDS` deliveries.
        """
        with translated(f"set the ack deadline of deliveries of {subscription!r} at {self._target}"):
            request = _MODIFY.request(subscription=subscription, ack_ids=ack_ids, ack_deadline_seconds=seconds)
            await self._ask(_MODIFY, request)

    @property
    def _target(self) -> str:
        return self._pool.endpoint.target


def _call(channel: Channel, method: _Method, kind: str) -> Any:
    # Each channel keeps its callables: a request should not have to make one.
    call = channel.methods.get(method.path)
    if call is None:
        call = channel.methods[method.path] = _bound(getattr(channel.grpc, kind), method)
    return call


def _bound(kind: Any, method: _Method) -> Any:
    return kind(
        f"/google.pubsub.v1.{method.path}",
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def _metadata(method: _Method, request: Any) -> tuple[tuple[str, str], ...]:
    route = f"{method.field}={quote(getattr(request, method.field))}"
    return (("x-goog-request-params", route), _AGENT)
