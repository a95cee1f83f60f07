"""Messages of other programs pass as data, whatever is in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events_core.engine import Delivery
from events_sqs.codec import PACKED, decode, fifo_id

S3_EVENT = json.dumps({"Records": [{"eventSource": "aws:s3", "s3": {"object": {"key": "happy%20face.jpg"}}}]})
ENVELOPE = json.dumps({"Type": "Notification", "MessageId": "dc1e94d9", "Message": "hello", "Subject": "a subject"})


def arrived(body: str, attributes: dict[str, dict[str, Any]] | None = None, **system: str) -> Delivery:
    """Return the delivery of a message that another program has sent."""
    message: dict[str, Any] = {"MessageId": "of-sqs", "ReceiptHandle": "handle", "Body": body}
    if system:
        message["Attributes"] = system
    if attributes is not None:
        message["MessageAttributes"] = attributes
    return decode(message, 5.0, is_fifo=True)


def string(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


@pytest.mark.parametrize("body", ["hello", S3_EVENT, ENVELOPE, "ä\n😀", " "])
def test_the_body_is_the_data(body: str) -> None:
    """Events of S3 and envelopes of SNS are data as any other."""
    delivery = arrived(body)
    assert (delivery.data, delivery.attributes, delivery.ordering_key) == (body.encode(), {}, None)
    assert (delivery.message_id, delivery.token.handle, delivery.token.received) == ("of-sqs", "handle", 5.0)


def test_attributes_become_text() -> None:
    """A number is its digits, also with a label of its type, and bytes are in base64."""
    delivery = arrived(
        "x",
        {
            "text": string("ä"),
            "number": {"DataType": "Number.int", "StringValue": "7.50"},
            "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
        },
    )
    assert delivery.attributes == {"text": "ä", "number": "7.50", "bytes": "AP8="}


def test_the_attributes_of_sqs_are_read() -> None:
    """The time and the attempt are those of SQS."""
    delivery = arrived("x", ApproximateReceiveCount="3", SentTimestamp="1795714513588")
    assert delivery.delivery_attempt == 3
    assert delivery.publish_time == datetime(2026, 11, 26, 17, 35, 13, 588000, UTC)


def test_a_group_is_the_key() -> None:
    """R8: on FIFO; the id is that of SQS, since other programs may give one deduplication id to several messages."""
    delivery = arrived("x", MessageGroupId="customer-7", MessageDeduplicationId="of-the-content")
    assert (delivery.ordering_key, delivery.message_id) == ("customer-7", "of-sqs")


def test_a_group_of_its_own_is_no_key() -> None:
    """R8: a message of ours without a key has its id as its group; of another program, the group counts."""
    ours = fifo_id("0" * 32)
    assert arrived("x", MessageGroupId=ours, MessageDeduplicationId=ours).ordering_key is None
    assert arrived("x", MessageGroupId="same", MessageDeduplicationId="same").ordering_key == "same"


@pytest.mark.parametrize(
    "value",
    [
        "hello",
        "0123",
        "{}{}",
        "[]",
        "null",
        "7",
        '{"body":"gzip"}',
        '{"body":"base64"}',
        '{"body":7}',
        '{"id":7}',
        '{"key":null}',
        '{"attributes":["a"]}',
        '{"attributes":{"a":1}}',
        "[" * 100_000,
    ],
)
def test_an_attribute_with_our_name_that_is_not_ours_is_an_attribute(value: str) -> None:
    """It stays as it is, and so does the body."""
    delivery = arrived("no base64!", {PACKED: string(value), "n": string("1")})
    assert delivery.attributes == {PACKED: value, "n": "1"}
    assert (delivery.data, delivery.message_id) == (b"no base64!", "of-sqs")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["id", "body", "key", "attributes", "x"]), inner, max_size=4),
    ),
    max_leaves=6,
)


@given(st.text(), st.one_of(st.text(), json_values.map(json.dumps)), st.text(), st.text())
def test_nothing_makes_a_message_fail(body: str, packed: str, group: str, unique: str) -> None:
    """A receiver never stops because of what a program has sent."""
    delivery = arrived(body, {PACKED: string(packed)}, MessageGroupId=group, MessageDeduplicationId=unique)
    assert isinstance(delivery.data, bytes)
    assert all(isinstance(text, str) for pair in delivery.attributes.items() for text in pair)
    assert isinstance(delivery.message_id, str)
    assert delivery.message_id
