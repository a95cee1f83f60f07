"""Messages to protobuf and back; protobuf itself, since Google's wrappers around it double the cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC

from google.pubsub_v1.types import PublishRequest, PubsubMessage, StreamingPullResponse

from events_core import EventMessage
from events_core.engine import Delivery

__all__ = ["decode", "encode"]

_Request = PublishRequest.pb()
_Message = PubsubMessage.pb()


def encode(topic: str, messages: Sequence[EventMessage]) -> PublishRequest:
    """A request to publish *messages*."""
    encoded = [
        _Message(data=message.data, attributes=dict(message.attributes), ordering_key=message.ordering_key or "")
        for message in messages
    ]
    request: PublishRequest = PublishRequest.wrap(_Request(topic=topic, messages=encoded))
    return request


def decode(response: StreamingPullResponse) -> list[Delivery]:
    """The deliveries of one response; their token is the ack id."""
    return [
        Delivery(
            received.message.message_id,
            received.message.data,
            dict(received.message.attributes),
            received.message.ordering_key or None,
            received.message.publish_time.ToDatetime(tzinfo=UTC),
            received.delivery_attempt or None,
            received.ack_id,
        )
        for received in StreamingPullResponse.pb(response).received_messages
    ]
