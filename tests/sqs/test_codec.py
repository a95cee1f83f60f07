"""What is sent arrives as it was, and an entry has only what AWS takes."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events_core import EventMessage
from events_core.engine import Delivery, message_size
from events_sqs.codec import PACKED, decode, encode, fifo_id, group_of, size_objection

ID = "0123456789abcdef" * 2
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""The characters that the API reference of ``SendMessage`` leaves out."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
names = st.one_of(texts, st.sampled_from(["shop", "a.b", ".a", "a.", "a..b", "AWS.x", "amazon.x", PACKED, "x" * 257]))
bodies = st.one_of(st.binary(max_size=50), texts.map(str.encode), st.sampled_from([b"", b"-", b"\0", b"\xef\xbf\xbf"]))
messages = st.builds(
    EventMessage, bodies, st.dictionaries(names, texts, max_size=15), ordering_key=st.one_of(st.none(), texts)
)


def received(message: EventMessage, carried: str | None, *, fifo: bool) -> Mapping[str, Any]:
    """Return *message* as SQS would deliver it."""
    wire = encode(message, carried)
    system = {"ApproximateReceiveCount": "1", "SentTimestamp": "1795714513588"}
    if fifo:
        system |= {"MessageGroupId": group_of(message, fifo_id(ID)), "MessageDeduplicationId": fifo_id(ID)}
    found = {"MessageId": "of-sqs", "ReceiptHandle": "handle", "Body": wire.body, "Attributes": system}
    return {**found, "MessageAttributes": wire.attributes} if wire.attributes else found


def assert_same(delivery: Delivery, message: EventMessage) -> None:
    found = (delivery.data, dict(delivery.attributes), delivery.ordering_key)
    assert found == (message.data, dict(message.attributes), message.ordering_key)


@given(messages)
def test_every_message_arrives_as_it_was_on_fifo(message: EventMessage) -> None:
    """R9: with its key, however odd, and the id that was sent."""
    delivery = decode(received(message, None, fifo=True), 0.0, is_fifo=True)
    assert_same(delivery, message)
    assert delivery.message_id == fifo_id(ID)


@given(messages.filter(lambda message: message.ordering_key is None), st.sampled_from([ID, None]))
def test_every_message_arrives_as_it_was_on_standard_queues(message: EventMessage, carried: str | None) -> None:
    """R9: with the id that it carries or, on a bare queue, with that of SQS."""
    delivery = decode(received(message, carried, fifo=False), 0.0, is_fifo=False)
    assert_same(delivery, message)
    assert delivery.message_id == (carried or "of-sqs")


@given(messages, st.sampled_from([ID, None]))
def test_aws_takes_every_entry(message: EventMessage, carried: str | None) -> None:
    """P2: a body and values without forbidden characters, at most ten attributes with good names, a valid group."""
    wire = encode(message, carried)
    assert wire.body
    assert not FORBIDDEN.search(wire.body)
    assert len(wire.attributes) <= 10
    for name, attribute in wire.attributes.items():
        assert NAME.fullmatch(name)
        assert not name.lower().startswith(("aws.", "amazon.", "."))
        assert not name.endswith(".")
        assert ".." not in name
        assert attribute["DataType"] == "String"
        assert attribute["StringValue"]
        assert not FORBIDDEN.search(attribute["StringValue"])
    assert re.fullmatch(r"[!-~]{1,128}", group_of(message, fifo_id(ID)))


@given(messages, st.sampled_from([ID, None]))
def test_the_size_is_that_of_aws(message: EventMessage, carried: str | None) -> None:
    """P2: body, and name, type and value of each attribute, in bytes."""
    wire = encode(message, carried)
    texts = [text for name, value in wire.attributes.items() for text in (name, *value.values())]
    assert wire.size == len(wire.body.encode()) + sum(len(text.encode()) for text in texts)


@given(messages, st.sampled_from([ID, None]), st.integers(0, 600))
def test_a_message_is_too_large_exactly_if_its_entry_is(message: EventMessage, carried: str | None, limit: int) -> None:
    """P2: the quick check refuses nothing that fits, and lets nothing pass that does not."""
    assert bool(size_objection(message, carried, limit)) is (encode(message, carried).size > limit)


@pytest.mark.parametrize("character", ["\t", "\n", "\r", " ", "ä", "\ud7ff", "\ue000", "\ufffd", "😀", "\x7f", "\x85"])
def test_text_travels_as_it_is(character: str) -> None:
    """Any program of AWS reads it, also with unusual characters that SQS allows."""
    wire = encode(EventMessage.from_string(f"a{character}b", attributes={"n": character}), None)
    assert wire.body == f"a{character}b"
    assert wire.attributes == {"n": {"DataType": "String", "StringValue": character}}


@pytest.mark.parametrize("data", [b"\xff", b"a\0b", b"a\x0bb", "\ufffe".encode(), "\uffff".encode(), b"\xed\xa0\x80"])
def test_other_bytes_travel_in_base64(data: bytes) -> None:
    """The marking attribute says so."""
    wire = encode(EventMessage(data), None)
    assert b64decode(wire.body, validate=True) == data
    assert json.loads(wire.attributes[PACKED]["StringValue"]) == {"body": "base64"}


def test_an_id_travels_alone() -> None:
    """It is the whole value of the attribute, as long as there is nothing else to say."""
    assert encode(EventMessage(b"x"), ID).attributes == {PACKED: {"DataType": "String", "StringValue": ID}}


def test_the_eleventh_attribute_is_packed() -> None:
    """SQS takes ten: ten of the application travel as they are, and of eleven the last two are packed."""
    ten = {f"n{number}": str(number) for number in range(10)}
    assert PACKED not in encode(EventMessage(b"x", ten), None).attributes
    wire = encode(EventMessage(b"x", {**ten, "n10": "10"}), None)
    assert [*wire.attributes] == [*[f"n{number}" for number in range(9)], PACKED]
    assert json.loads(wire.attributes[PACKED]["StringValue"]) == {"attributes": {"n9": "9", "n10": "10"}}


def test_a_key_is_the_group_if_it_can_be() -> None:
    """So another program sees it; any other key is packed, and its group is a hash of it."""
    plain, odd = (EventMessage(b"x", ordering_key=key) for key in ("customer-7/ä"[:10], "customer 7"))
    assert group_of(plain, ID) == "customer-7"
    assert PACKED not in encode(plain, None).attributes
    assert group_of(odd, ID).startswith("sha256-")
    assert group_of(odd, ID) == group_of(EventMessage(b"y", ordering_key="customer 7"), "another")
    assert group_of(odd, ID) != group_of(EventMessage(b"y", ordering_key="customer 8"), ID)


@example(EventMessage(b"x" * 1000))
@given(messages)
def test_an_attribute_costs_what_the_documentation_says(message: EventMessage) -> None:
    """P2: text with up to ten plain attributes costs its own bytes, and six for each type."""
    wire = encode(message, None)
    if PACKED not in wire.attributes:
        key = len((message.ordering_key or "").encode())
        assert wire.size == message_size(message) - key + 6 * len(message.attributes)
