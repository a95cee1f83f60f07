"""Records of other programs arrive by the documented rule, and never break a receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from events_core import EventMessage, ReceivedMessage
from events_kafka.codec import TOMBSTONE

from ..receiving import take
from .console import Console

Headers = Sequence[tuple[str, bytes | None]]

HEADERS: dict[str, tuple[Headers | None, dict[str, str]]] = {
    "none": (None, {}),
    "empty": ([], {}),
    "text": ([("kind", "näw".encode())], {"kind": "näw"}),
    "not UTF-8": ([("kind", b"a\xff\x00")], {"kind": "a\\xff\x00"}),
    "null": ([("kind", None)], {"kind": ""}),
    "no bytes": ([("kind", b"")], {"kind": ""}),
    "no name": ([("", b"a")], {"": "a"}),
    "repeated": ([("kind", b"old"), ("other", b"1"), ("kind", b"new")], {"kind": "new", "other": "1"}),
    "large": ([("kind", b"a" * 100_000)], {"kind": "a" * 100_000}),
    "many": ([(f"h{number}", b"1") for number in range(2000)], {f"h{number}": "1" for number in range(2000)}),
}


def receive(console: Console) -> ReceivedMessage:
    """Return the first message of the topic."""

    async def scenario() -> ReceivedMessage:
        async with console.client(start="earliest") as both, both.subscribe() as receiver:
            message = await take(receiver)
            await receiver.acknowledge(message)
            # The receiver goes on.
            await both.send_message(EventMessage(b"next"))
            assert (await take(receiver)).data == b"next"
            return message

    return asyncio.run(scenario())


@pytest.mark.parametrize("name", HEADERS)
def test_headers_become_attributes(console: Console, name: str) -> None:
    """The values are read as UTF-8, and other bytes are escaped; of equal names the last one counts."""
    headers, attributes = HEADERS[name]
    console.create_topic()
    console.produce(b"body", headers=headers)
    message = receive(console)
    assert message.data == b"body"
    assert dict(message.attributes) == attributes


@pytest.mark.parametrize(
    ("key", "expected"),
    [(None, None), (b"", None), (b"k", "k"), ("käy".encode(), "käy"), (b"\x00\x00\x00\x05\xff", "\0\0\0\x05\\xff")],
)
def test_a_key_becomes_the_ordering_key(console: Console, key: bytes | None, expected: str | None) -> None:
    """Bytes that are not UTF-8 are escaped, and an empty key is none."""
    console.create_topic()
    console.produce(b"body", key)
    assert receive(console).ordering_key == expected


def test_a_tombstone_is_empty_and_marked(console: Console) -> None:
    """A null value, which deletes a key from a compacted topic, is told from an empty one by an attribute."""
    console.create_topic()
    stored = console.produce(None, b"k", [("kind", b"a")])
    message = receive(console)
    assert message.data == b""
    assert message.message_id == f"{console.topic}/0/{stored.offset()}"
    assert dict(message.attributes) == {"kind": "a", TOMBSTONE: "true"}


def test_a_tombstone_is_sent_on_as_one(console: Console) -> None:
    """Empty data with the attribute of a tombstone is sent as a null value; with data it is an attribute like any."""

    async def scenario() -> None:
        async with console.client() as sender:
            await sender.send_message(EventMessage(b"", {TOMBSTONE: "true", "kind": "a"}, ordering_key="k"))
            await sender.send_message(EventMessage(b"1", {TOMBSTONE: "true"}, ordering_key="k"))

    asyncio.run(scenario())
    deleting, other = console.records(2)
    assert (deleting.value(), deleting.headers()) == (None, [("kind", b"a")])
    assert (other.value(), other.headers()) == (b"1", [(TOMBSTONE, b"true")])


def test_the_payload_of_a_schema_registry_passes_as_bytes(console: Console) -> None:
    """The magic byte and the id of the schema are part of the data."""
    console.create_topic()
    console.produce(b"\x00\x00\x00\x00\x07\x02\x06abc")
    assert receive(console).data == b"\x00\x00\x00\x00\x07\x02\x06abc"


@pytest.mark.parametrize(
    ("milliseconds", "year"), [(1, 1970), (4_102_444_800_000, 2100), (9_000_000_000_000_000, None)]
)
def test_the_time_is_that_of_the_record(console: Console, milliseconds: int, year: int | None) -> None:
    """Any program may write any time; one that Python cannot show is None."""
    console.create_topic(message_timestamp_after_max_ms=str(2**63 - 1), retention_ms="-1")
    console.produce(b"body", timestamp=milliseconds)
    time = receive(console).publish_time
    assert (time.year if time else None) == year


def test_any_record_becomes_a_letter(console: Console) -> None:
    """R12: a record with headers and a key that are not UTF-8 is moved to the dead-letter topic."""
    console.create_topic()
    console.produce(b"body", b"\xff", [("kind", b"\xff")])
    dead = f"{console.topic}-dead"

    async def scenario() -> None:
        options = {"dead_letter_topic": dead, "max_delivery_attempts": "5", "start": "earliest"}
        async with console.client(**options) as both, both.subscribe() as receiver:
            await receiver.reject(await take(receiver), "no sense")

    asyncio.run(scenario())
    (letter,) = console.records(1, topic=dead)
    assert (letter.value(), letter.key()) == (b"body", b"\\xff")
    assert ("kind", b"\\xff") in (letter.headers() or [])


def test_a_record_as_large_as_a_letter_may_be_becomes_one(console: Console) -> None:
    """R12: there is no room for all attributes of the letter, so some are cut; the data stays whole."""
    console.create_topic(max_message_bytes="2000000")
    data = bytes(1_048_588 - 97 - 100)
    console.produce(data, b"k", [("kind", b"a" * 200)], **{"message.max.bytes": 2_000_000})
    dead = f"{console.topic}-dead"

    async def scenario() -> None:
        options = {"dead_letter_topic": dead, "max_delivery_attempts": "5", "start": "earliest"}
        async with console.client(**options) as both, both.subscribe() as receiver:
            await receiver.reject(await take(receiver))

    asyncio.run(scenario())
    (letter,) = console.records(1, topic=dead)
    assert (letter.value(), letter.key()) == (data, b"k")
    assert letter.headers()
