"""N1: Google's own channel and messages."""

from __future__ import annotations

import asyncio

import grpc.aio
from google.pubsub_v1 import PublisherAsyncClient, types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

from events_core import EventMessage

from .console import Console
from .waiting import PATIENCE


def test_googles_own_client_works_on_the_native_channel(console: Console) -> None:
    """N1: as the documentation shows it."""

    async def look_up(channel: grpc.aio.Channel) -> types.Topic:
        google = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        return await google.get_topic(topic=console.topic)

    async def test() -> None:
        async with console.client() as client:
            await client.send_message(EventMessage(b"x"))
            assert (await client.run_native(look_up)).name == console.topic

    asyncio.run(test())


def test_a_native_message_is_googles(console: Console) -> None:
    """N1: with everything that was sent, and the ack id."""
    sent = EventMessage(b"x", {"a": "1"}, ordering_key="k")

    async def test() -> None:
        async with console.client() as client, client.subscribe(f"{console.topic_name}-s") as receiver:
            await client.send_message(sent)
            message = await receiver.receive_message(PATIENCE)
            assert message is not None
            native = client.native_message(message)
            assert isinstance(native, types.ReceivedMessage)
            assert native.ack_id
            assert (native.message.data, dict(native.message.attributes)) == (sent.data, dict(sent.attributes))
            assert native.message.ordering_key == sent.ordering_key
            assert native.message.message_id == message.message_id
            assert native.message.publish_time == message.publish_time

    asyncio.run(test())
