"""Headers that are too large for a frame, that are nested, or that only the server may write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, cast

import pytest

from events_core import ErrorCode, EventMessage, PublishError
from events_rabbitmq.codec import decode

from ..receiving import gather, take
from .console import Console, client
from .sending import send_all_but_the_second

SIZE = 130_000
"""Bytes of attributes and ordering key that RabbitMQ takes in a frame of the usual size."""

FOREIGN: dict[str, dict[Any, Any]] = {
    "as large as a frame": {"kind": "a", "large": "b" * 131_000},
    "grows when it is escaped": {"kind": "a", "large": b"\xff" * 40_000},
    "a name that grows": {"kind": "a", b"\xff" * 100: "v"},
    "further queues": {"kind": "a", "CC": ["nowhere"]},
    "many": {"kind": "a", **{f"{number:05x}": number for number in range(10_000, 20_000)}},
    "a large key": {"kind": "a", "x-ordering-key": "k" * 130_000},
}
"""Headers of other programs that cannot be sent on as they are."""


@pytest.fixture
def small_frames(own: Console) -> Iterator[int]:
    """Let the server agree to small frames only."""
    before = own.server.evaluate("{ok, Size} = application:get_env(rabbit, frame_max), Size.")
    own.server.evaluate("application:set_env(rabbit, frame_max, 8192).")
    yield 8192
    own.server.evaluate(f"application:set_env(rabbit, frame_max, {before}).")


def test_the_ordering_key_counts_for_the_size_of_the_header(console: Console) -> None:
    """P2: attributes and key that fit alone but not together are refused before anything is written."""
    attributes = {"a": "v" * (SIZE - 7 - 21)}

    async def scenario() -> None:
        async with console.client(ordering="true") as sender:
            await sender.send_message(EventMessage(b"fits", attributes, ordering_key="k"))
            with pytest.raises(PublishError, match="ordering key") as caught:
                await sender.send_message(EventMessage(b"does not", attributes, ordering_key="k" * 1024))
            assert caught.value.code is ErrorCode.INVALID

    asyncio.run(scenario())


def test_a_header_beyond_the_frame_fails_alone(own: Console, small_frames: int) -> None:
    """P3: on a server with small frames, a message with a large header is INVALID, and its neighbours are stored."""
    batch = [EventMessage(b"0"), EventMessage(b"1", {"a": "b" * small_frames}), EventMessage(b"2")]

    async def scenario() -> None:
        async with own.client() as sender:
            await send_all_but_the_second(sender, batch, refusal="frame_max")

    asyncio.run(scenario())
    assert own.drain() == [b"0", b"2"]


@pytest.mark.parametrize("name", FOREIGN)
def test_any_foreign_message_becomes_a_letter(console: Console, name: str) -> None:
    """R12: a message whose headers cannot be sent on is a letter with shorter ones; sends of the client go on."""
    dead = f"{console.topic}-dead"

    async def scenario() -> dict[str, str]:
        async with (
            client(f"{dead}", url=console.url, subscription="all") as letters,
            letters.subscribe() as reader,
            console.client(dead_letter_topic=dead, max_delivery_attempts="5", ordering="true") as both,
            both.subscribe() as receiver,
        ):
            await asyncio.to_thread(console.publish, b"body", FOREIGN[name])
            await receiver.reject(await take(receiver), "bad")
            letter = await take(reader)
            assert letter.data == b"body"
            await reader.acknowledge(letter)
            await both.send_message(EventMessage(b"next"))
            return dict(letter.attributes)

    attributes = asyncio.run(scenario())
    assert attributes["kind"] == "a"


def test_names_of_routing_headers_can_be_sent_on(console: Console) -> None:
    """A header ``CC`` of another program arrives as ``cc``, which routes nothing."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await asyncio.to_thread(console.publish, b"1", {"CC": ["nowhere"]})
            first = await take(receiver)
            await receiver.acknowledge(first)
            assert first.attributes == {"cc": '["nowhere"]'}
            await both.send_message(first)
            await receiver.acknowledge(await take(receiver))

    asyncio.run(scenario())


def test_a_deeply_nested_header_does_no_harm(own: Console) -> None:
    """A header with a thousand tables in each other arrives as text, and the next message arrives too."""
    nested = 'lists:foldl(fun(_, T) -> [{<<"a">>, table, T}] end, [], lists:seq(1, 1000))'
    where = f'rabbit_misc:r(<<"/">>, exchange, <<"{own.topic}">>)'

    async def scenario() -> None:
        async with own.client() as both, both.subscribe() as receiver:
            own.server.evaluate(f'rabbit_basic:publish({where}, <<>>, [{{headers, {nested}}}], <<"1">>)')
            own.publish(b"2", {"a": 1})
            first, second = await gather(receiver, 2)
            assert {first.data, second.data} == {b"1", b"2"}
            await receiver.acknowledge_messages([first, second])
            assert receiver.stats.reconnects == 0
            (deep,) = [message for message in (first, second) if message.data == b"1"]
            assert isinstance(json.loads(deep.attributes["a"])["a"], dict)

    asyncio.run(scenario())


def test_a_header_that_cannot_be_read_costs_only_the_attributes() -> None:
    """A delivery whose header frame ends too early has its body, its tag and no attributes."""
    method = b"\0\x3c\0\x3c\x03tag" + (7).to_bytes(8, "big") + b"\0\0\0"
    header = b"\0\x3c\0\0" + (4).to_bytes(8, "big") + b"\x20\0" + b"\0\0\0\x10\x04kindS"
    delivery = decode(cast(Any, None), method, header, b"body")
    assert (delivery.data, delivery.attributes, delivery.token.tag) == (b"body", {}, 7)
    assert delivery.message_id


@pytest.mark.parametrize("count", [-7, 10**12, Decimal("1.5"), "many", True])
def test_attempts_are_not_those_of_the_publisher(console: Console, count: object) -> None:
    """R12: a publisher that writes the server's header changes no number of attempts."""

    async def scenario() -> list[int | None]:
        async with console.client() as both, both.subscribe() as receiver:
            await asyncio.to_thread(console.publish, b"1", {"x-delivery-count": count})
            first = await take(receiver)
            await receiver.nack(first)
            second = await take(receiver)
            await receiver.acknowledge(second)
            return [first.delivery_attempt, second.delivery_attempt]

    assert asyncio.run(scenario()) == [1, 2]
