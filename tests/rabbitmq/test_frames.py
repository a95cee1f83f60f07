"""Deliveries come whole out of their frames, of which pika does not see those that belong to a consumer."""

from __future__ import annotations

import asyncio

import pytest

from events_core import EventMessage
from events_rabbitmq.codec import NativeMessage

from ..receiving import gather, take
from .console import Console

FRAME_MAX = 131_072
SIZES = [0, 1, 4096, FRAME_MAX - 9, FRAME_MAX - 8, FRAME_MAX - 7, 2 * (FRAME_MAX - 8), 1_000_000]
"""Bytes of bodies: without a frame, in one, and in several, with the last one full or not."""


def body(size: int) -> bytes:
    """Return *size* bytes, none of which is in its place by chance."""
    return bytes(number % 251 for number in range(size))


def test_bodies_of_any_size_arrive_whole(console: Console) -> None:
    """What one client sends in any number of frames arrives unchanged and in order."""

    async def program() -> list[bytes]:
        async with console.client() as client, await client.subscribe(console.subscription) as receiver:
            await client.send_messages([EventMessage(body(size)) for size in SIZES])
            messages = await gather(receiver, len(SIZES))
            await receiver.acknowledge_messages(messages)
            return [message.data for message in messages]

    received = asyncio.run(program())
    assert [len(data) for data in received] == SIZES
    assert received == [body(size) for size in SIZES]


@pytest.mark.parametrize("size", SIZES)
def test_a_body_of_another_program_arrives_whole(console: Console, size: int) -> None:
    """What another program sends in any number of frames arrives unchanged."""

    async def program() -> bytes:
        async with console.client() as client, await client.subscribe(console.subscription) as receiver:
            await asyncio.to_thread(console.publish, body(size))
            message = await take(receiver)
            await receiver.acknowledge(message)
            return message.data

    assert asyncio.run(program()) == body(size)


def test_a_native_message_is_made_of_the_frames(console: Console) -> None:
    """The native message has pika's method, properties and body, for a message of any program."""

    async def program() -> list[NativeMessage]:
        async with console.client() as client, await client.subscribe(console.subscription) as receiver:
            await client.send_message(EventMessage(b"own", {"kind": "a"}))
            await asyncio.to_thread(
                console.publish, b"other", {"number": 7}, message_id="m", content_type="text/plain", priority=3
            )
            messages = await gather(receiver, 2)
            await receiver.acknowledge_messages(messages)
            return [client.native_message(message) for message in messages]

    own, other = asyncio.run(program())
    assert (own.body, other.body) == (b"own", b"other")
    assert (own.method.delivery_tag, other.method.delivery_tag) == (1, 2)
    assert {own.method.exchange, other.method.exchange} == {console.topic}
    assert own.properties.headers == {"kind": "a"}
    assert (own.properties.app_id, own.properties.delivery_mode) == ("events-core", 2)
    assert other.properties.headers == {"number": 7}
    assert (other.properties.message_id, other.properties.content_type, other.properties.priority) == (
        "m",
        "text/plain",
        3,
    )
