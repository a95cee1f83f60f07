"""A Pub/Sub server with behaviour that the emulator never shows: it answers pings, falls silent, or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

TOPIC = "projects/events-test/topics/orders"

ServerT = TypeVar("ServerT")


class FaultyServer:
    """One subscription, with one stream after the other.  A test sets the attributes that make something fail."""

    def __init__(self) -> None:
        self.address = ""
        self.streams: list[list[Any]] = []
        """The requests on each stream."""
        self.acknowledged: list[str] = []
        self.metadata: dict[str, str] = {}
        self.subscription = types.Subscription.pb()(topic=TOPIC, enable_message_ordering=True)
        self.refusal: grpc.StatusCode | None = None
        """The status of GetSubscription, if it is to fail."""
        self.transient: dict[str, int] = {}
        """How often each ack id is refused with a transient failure."""
        self.unauthenticated = 0
        """How many acknowledgements get UNAUTHENTICATED."""
        self.ended: set[str] = set()
        """Ack ids of deliveries that have ended."""
        self.returned: list[str] = []
        self.on_ping: Callable[[asyncio.Queue[Any]], Awaitable[None]] = _answer
        self.key = ""
        """The ordering key of all messages."""
        self.responses: list[Sequence[bytes]] = [[b"0"]]
        """The messages of each stream.  Later streams bring nothing."""
        self.ends: dict[int, grpc.StatusCode] = {}
        """The status with which a stream ends after its messages, by its number."""

    async def get_subscription(self, request: Any, context: Any) -> Any:
        if self.refusal is not None:
            await context.abort(self.refusal, "as the test wants it")
        self.subscription.name = request.subscription
        return self.subscription

    async def stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        number = len(self.streams)
        seen = [await anext(requests)]
        self.streams.append(seen)
        answers: asyncio.Queue[Any] = asyncio.Queue()

        async def listen() -> None:
            async for request in requests:
                await self.on_ping(answers)
                seen.append(request)
            await answers.put(None)

        listening = asyncio.ensure_future(listen())
        try:
            if number < len(self.responses):
                response = _response(number, self.responses[number], self.key)
                properties = response.subscription_properties
                properties.message_ordering_enabled = self.subscription.enable_message_ordering
                properties.exactly_once_delivery_enabled = self.subscription.enable_exactly_once_delivery
                yield response
            if number in self.ends:
                await context.abort(self.ends[number], "as the test wants it")
            while (answer := await answers.get()) is not None:
                yield answer
        finally:
            listening.cancel()

    async def acknowledge(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        if self.unauthenticated:
            self.unauthenticated -= 1
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "as the test wants it")
        refused = {each: "TRANSIENT_FAILURE_OTHER" for each in request.ack_ids if self.transient.get(each, 0) > 0}
        for each in refused:
            self.transient[each] -= 1
        refused |= {each: "PERMANENT_FAILURE_INVALID_ACK_ID" for each in request.ack_ids if each in self.ended}
        self.acknowledged += [each for each in request.ack_ids if each not in refused]
        return await _answered(refused, context)

    async def modify(self, request: Any, context: Any) -> Any:
        refused = {each: "PERMANENT_FAILURE_INVALID_ACK_ID" for each in request.ack_ids if each in self.ended}
        if request.ack_deadline_seconds == 0:
            self.returned += request.ack_ids
        return await _answered(refused, context)


async def _answered(refused: Mapping[str, str], context: Any) -> Any:
    """Answer a request to settle as exactly-once delivery does: name the refused ids and the reasons."""
    if refused:
        details = AnyMessage()
        details.Pack(ErrorInfo(reason="EXACTLY_ONCE_ACKID_FAILURE", domain="pubsub", metadata=refused))
        status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="some failed", details=[details])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "some failed")
    return Empty()


async def _answer(answers: asyncio.Queue[Any]) -> None:
    await answers.put(types.StreamingPullResponse.pb()())


async def never(answers: asyncio.Queue[Any]) -> None:
    """Do not answer a ping."""


def _response(number: int, contents: Sequence[bytes], key: str) -> Any:
    response = types.StreamingPullResponse.pb()()
    for index, data in enumerate(contents):
        received = response.received_messages.add(ack_id=f"ack-{number}-{index}")
        received.message.message_id = f"{number}-{index}"
        received.message.data = data
        received.message.ordering_key = key
    return response


_METHODS = {
    "Publisher": {
        "CreateTopic": ("create_topic", types.Topic),
        "GetTopic": ("get_topic", types.GetTopicRequest),
        "ListTopicSubscriptions": ("list_topic_subscriptions", types.ListTopicSubscriptionsRequest),
        "DeleteTopic": ("delete_topic", types.DeleteTopicRequest),
        "Publish": ("publish", types.PublishRequest),
    },
    "Subscriber": {
        "CreateSubscription": ("create_subscription", types.Subscription),
        "GetSubscription": ("get_subscription", types.GetSubscriptionRequest),
        "DeleteSubscription": ("delete_subscription", types.DeleteSubscriptionRequest),
        "Pull": ("pull", types.PullRequest),
        "StreamingPull": ("stream", types.StreamingPullRequest),
        "Acknowledge": ("acknowledge", types.AcknowledgeRequest),
        "ModifyAckDeadline": ("modify", types.ModifyAckDeadlineRequest),
    },
}
"""For each method of the service, the name of the function that answers it, and the type of its request."""


@asynccontextmanager
async def serving(
    server: ServerT, credentials: Any = None, options: Sequence[tuple[str, int]] = ()
) -> AsyncIterator[ServerT]:
    """Serve *server* on the running loop, at its ``address`` if it has one.  It answers the methods that it defines.

    :param credentials: for TLS; without them the server does not encrypt.
    :param options: options of gRPC's server.
    """
    running = grpc.aio.server(options=options)
    for service, methods in _METHODS.items():
        handlers = {
            method: _handler(method, getattr(server, name), request)
            for method, (name, request) in methods.items()
            if hasattr(server, name)
        }
        running.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"google.pubsub.v1.{service}", handlers),)
        )
    at = server.address or "127.0.0.1:0"
    port = running.add_secure_port(at, credentials) if credentials else running.add_insecure_port(at)
    server.address = f"localhost:{port}" if credentials else f"127.0.0.1:{port}"
    await running.start()
    try:
        yield server
    finally:
        await running.stop(None)


def _handler(method: str, behaviour: Any, request: Any) -> Any:
    is_stream = method == "StreamingPull"
    kind = grpc.stream_stream_rpc_method_handler if is_stream else grpc.unary_unary_rpc_method_handler
    return kind(behaviour, request_deserializer=request.pb().FromString, response_serializer=_serialized)


def _serialized(answer: Any) -> bytes:
    """Return the bytes of *answer*.  An answer that is bytes already may be damaged on purpose."""
    return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())
