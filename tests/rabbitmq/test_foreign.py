"""Messages of other programs: any header type, no id, no headers, and properties that this library does not use."""

from __future__ import annotations

import asyncio
import datetime
from decimal import Decimal
from typing import Any

import pytest
from pika import BasicProperties

from ..receiving import take
from .console import Console

HEADERS: dict[str, Any] = {
    "text": "text",
    "empty": "",
    "bytes": b"bytes",
    "binary": b"\xff\x00\xfe",
    "true": True,
    "false": False,
    "small": 7,
    "negative": -7,
    "large": 2**40,
    "largest": 2**63 - 1,
    "decimal": Decimal("12.34"),
    "time": datetime.datetime(2026, 11, 26, 12, 0, 0, tzinfo=datetime.UTC),
    "nothing": None,
    "list": ["a", 1, None, [b"\xff"]],
    "table": {"a": 1, "b": {"c": [True]}},
    "x-death": [{"count": 1, "reason": "expired", "queue": "other"}],
    "CC": ["elsewhere"],
}


ERLANG = {
    "byte": ("byte, -7", "-7"),
    "unsigned byte": ("unsignedbyte, 200", "200"),
    "short": ("short, -300", "-300"),
    "unsigned short": ("unsignedshort, 60000", "60000"),
    "int": ("signedint, -70000", "-70000"),
    "unsigned int": ("unsignedint, 4000000000", "4000000000"),
    "long": ("long, -5000000000", "-5000000000"),
    "float": ("float, 1.5", "1.5"),
    "double": ("double, 0.1", "0.1"),
    "late time": ("timestamp, 1700000000000", "1700000000000"),  # milliseconds, beyond the year 9999
    "binary": ("binary, <<255, 0>>", "\\xff\x00"),
    "void": ("void, undefined", ""),
    "decimal": ("decimal, {2, 1234}", "12.34"),
}
"""Fields that pika cannot write: the type and the value in Erlang, and the text that must arrive."""


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_any_type_arrives_as_text(console: Console, name: str) -> None:
    """Each header of another program is one text attribute, or is left out by the documented rule."""
    attributes = exchange_one(console, {name: HEADERS[name]})
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in attributes.items())


def test_a_header_of_each_amqp_type_arrives_as_text(own: Console) -> None:
    """All types of AMQP 0-9-1 arrive, also those that only programs in other languages write."""
    fields = ", ".join(f'{{<<"{name}">>, {field}}}' for name, (field, _) in ERLANG.items())
    where = f'rabbit_misc:r(<<"/">>, exchange, <<"{own.topic}">>)'

    async def scenario() -> dict[str, str]:
        async with own.client() as both, both.subscribe() as receiver:
            own.server.evaluate(f'rabbit_basic:publish({where}, <<>>, [{{headers, [{fields}]}}], <<"1">>)')
            message = await take(receiver)
            await receiver.acknowledge(message)
            return dict(message.attributes)

    assert asyncio.run(scenario()) == {name: text for name, (_, text) in ERLANG.items()}


def test_text_numbers_and_truth_are_readable(console: Console) -> None:
    """Texts arrive unchanged, numbers as their digits, truth in lower case."""
    attributes = exchange_one(console, {name: HEADERS[name] for name in ("text", "small", "negative", "true")})
    assert attributes == {"text": "text", "small": "7", "negative": "-7", "true": "true"}


def test_all_header_types_arrive_together(console: Console) -> None:
    """One message with all of them breaks nothing."""
    attributes = exchange_one(console, {name: value for name, value in HEADERS.items() if name != "CC"})
    assert attributes["text"] == "text"


def exchange_one(console: Console, headers: dict[str, Any] | None, **properties: Any) -> dict[str, str]:
    """Publish one foreign message, receive and acknowledge it, and return its attributes."""

    async def scenario() -> dict[str, str]:
        async with console.client() as both, both.subscribe() as receiver:
            console.publish(b"\xff\x00 foreign", headers, **properties)
            message = await take(receiver)
            assert message.data == b"\xff\x00 foreign"
            assert message.message_id
            await receiver.acknowledge(message)
            return dict(message.attributes)

    return asyncio.run(scenario())


def test_a_message_without_headers_arrives(console: Console) -> None:
    """No headers, no id, no property at all."""
    assert exchange_one(console, None) == {}


def test_properties_of_other_programs_do_no_harm(console: Console) -> None:
    """Every property is set, to values that other programs use."""
    exchange_one(
        console,
        {},
        content_type="application/json",
        content_encoding="gzip",
        delivery_mode=1,
        priority=9,
        correlation_id="c",
        reply_to="amq.rabbitmq.reply-to.x",
        expiration="60000",
        message_id="m" * 255,
        timestamp=1_700_000_000,
        type="t",
        app_id="other",
    )


def test_two_messages_with_one_id_are_two_messages(console: Console) -> None:
    """R7: another program gives two messages the same id; both are handed out, and each is settled alone."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            for body in (b"1", b"2"):
                console.publish(body, message_id="same")
            first, second = await take(receiver), await take(receiver)
            assert {first.data, second.data} == {b"1", b"2"}
            assert first.message_id != second.message_id
            await receiver.acknowledge(first)
            await receiver.nack(second)
            assert (await take(receiver)).data == second.data

    asyncio.run(scenario())


def test_equal_messages_without_an_id_are_all_handed_out(console: Console) -> None:
    """R7, R9: each comes while the acknowledgement of the one before is under way."""

    async def scenario() -> None:
        async with console.client(max_outstanding_messages="1") as both, both.subscribe() as receiver:
            with console.channel() as channel:
                for _ in range(20):
                    channel.basic_publish(console.topic, "", b"tick")
            for _ in range(20):
                await receiver.acknowledge(await take(receiver))
            assert receiver.stats.duplicates == 0

    asyncio.run(scenario())


def test_different_messages_with_one_id_are_all_handed_out(console: Console) -> None:
    """R7: another program gives all its messages one id; each comes while the one before is being acknowledged."""

    async def scenario() -> list[bytes]:
        async with console.client(max_outstanding_messages="1") as both, both.subscribe() as receiver:
            with console.channel() as channel:
                for number in range(20):
                    channel.basic_publish(console.topic, "", b"%d" % number, BasicProperties(message_id="order"))
            came = []
            for _ in range(20):
                message = await take(receiver)
                came.append(message.data)
                await receiver.acknowledge(message)
            return came

    assert asyncio.run(scenario()) == [b"%d" % number for number in range(20)]


def test_an_id_that_looks_like_a_changed_one_is_no_copy(console: Console) -> None:
    """R7: the id of one message is the changed id of another one."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            for body, name in ((b"1", "a#3"), (b"2", "a"), (b"3", "a")):
                console.publish(body, message_id=name, app_id="events-core")
            came = [await take(receiver) for _ in range(3)]
            assert [message.data for message in came] == [b"1", b"2", b"3"]
            assert len({message.message_id for message in came}) == 3
            await receiver.acknowledge_messages(came)

    asyncio.run(scenario())


def test_a_nacked_foreign_message_keeps_its_id(console: Console) -> None:
    """R9: a message without an id gets one, which is the same when it comes again to the same receiver."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            console.publish(b"1")
            first = await take(receiver)
            await receiver.nack(first)
            again = await take(receiver)
            assert again.data == first.data
            await receiver.acknowledge(again)

    asyncio.run(scenario())


def test_a_foreign_message_can_be_sent_on(console: Console) -> None:
    """Whatever arrives can be sent again."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            console.publish(b"1", {name: value for name, value in HEADERS.items() if name not in ("CC", "x-death")})
            first = await take(receiver)
            await receiver.acknowledge(first)
            await both.send_message(first)
            second = await take(receiver)
            assert second.attributes == first.attributes

    asyncio.run(scenario())
