"""Contract §1: the values that travel."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events_core import EventMessage, ReceivedMessage

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
MESSAGES = st.builds(
    EventMessage,
    data=st.binary(max_size=50),
    attributes=st.dictionaries(TEXT, TEXT, max_size=3),
    ordering_key=st.none() | TEXT,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


def received(**changes: object) -> ReceivedMessage:
    """A message as a receiver would return it."""
    fields = {
        "data": b"paid",
        "attributes": {"region": "eu"},
        "ordering_key": "customer-7",
        "message_id": "41",
        "publish_time": datetime(2026, 1, 2, tzinfo=UTC),
        "delivery_attempt": 1,
    }
    return ReceivedMessage(**{**fields, **changes})


def test_a_message_needs_only_data() -> None:
    """Everything but the data has a default."""
    message = EventMessage(b"paid")
    assert message.attributes == {}
    assert (message.data, message.message_id, message.ordering_key) == (b"paid", None, None)


@pytest.mark.parametrize("kind", [bytearray, memoryview, type("Blob", (bytes,), {})])
def test_other_bytes_are_copied_to_bytes(kind: type) -> None:
    """Data is plain bytes afterwards, whichever buffer it came from."""
    assert type(EventMessage(kind(b"paid")).data) is bytes


def test_a_buffer_changed_later_does_not_change_the_message() -> None:
    """The copy is taken when the message is made."""
    buffer = bytearray(b"paid")
    message = EventMessage(buffer)
    buffer[:] = b"lost"
    assert message.data == b"paid"


def test_text_as_data_is_refused_and_names_the_way() -> None:
    """A str is a TypeError that says which constructor encodes it."""
    with pytest.raises(TypeError, match="from_string"):
        EventMessage("paid")  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [("41",), (None,), ("41", "customer-7", None)])
def test_an_ordering_key_must_be_named(more: tuple[str | None, ...]) -> None:
    """A message to send has no id, so an argument in the place of the id would be taken for the key."""
    with pytest.raises(TypeError, match="ordering_key=…"):
        EventMessage(b"paid", {}, *more)  # type: ignore[call-arg]


def test_a_message_to_send_takes_no_id() -> None:
    """The broker chooses it; the attribute is there, and says None."""
    with pytest.raises(TypeError, match="message_id"):
        EventMessage(b"paid", message_id="41")  # type: ignore[call-arg]
    assert EventMessage(b"paid").message_id is None


@pytest.mark.parametrize("value", [None, 5, [1, 2]])
def test_data_that_is_no_buffer_is_refused(value: object) -> None:
    """bytes(5) would be five zeroes; a number, a list and None are refused."""
    with pytest.raises(TypeError, match=type(value).__name__):
        EventMessage(value)  # type: ignore[arg-type]


def test_attributes_are_a_read_only_copy() -> None:
    """Neither the caller's mapping nor the message's can change what is sent."""
    given_attributes = {"region": "eu"}
    message = EventMessage(b"", given_attributes)
    given_attributes["region"] = "us"
    assert message.attributes == {"region": "eu"}
    with pytest.raises(TypeError):
        message.attributes["region"] = "us"  # type: ignore[index]


@pytest.mark.parametrize("attributes", [{"retries": 3}, {3: "retries"}, {"region": None}])
def test_attributes_that_are_not_text_are_refused(attributes: dict) -> None:
    """Attributes map str to str; the pair that does not is named."""
    (key, value) = next(iter(attributes.items()))
    with pytest.raises(TypeError, match=f"{key!r} to {value!r}"):
        EventMessage(b"", attributes)


def test_the_empty_ordering_key_means_none() -> None:
    """A message with the key "" is unordered."""
    assert EventMessage(b"", ordering_key="").ordering_key is None


def test_an_ordering_key_that_is_not_text_is_refused() -> None:
    """A key of another type would be compared, and lost, in silence."""
    with pytest.raises(TypeError, match="ordering_key"):
        EventMessage(b"", ordering_key=7)  # type: ignore[arg-type]


def test_messages_are_frozen() -> None:
    """No field can be set."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        EventMessage(b"").data = b"x"  # type: ignore[misc]


@given(MESSAGES, TEXT, TEXT)
def test_with_attribute_adds_or_replaces_one(message: EventMessage, key: str, value: str) -> None:
    """The other fields stay, and the original does not change."""
    before = dict(message.attributes)
    changed = message.with_attribute(key, value)
    assert changed.attributes == {**before, key: value}
    assert (changed.data, changed.ordering_key) == (message.data, message.ordering_key)
    assert message.attributes == before


def test_with_attributes_adds_to_what_is_there() -> None:
    """Attributes not named are kept."""
    message = EventMessage(b"", {"region": "eu", "kind": "order"})
    changed = message.with_attributes({"region": "us", "priority": "1"})
    assert changed.attributes == {"region": "us", "kind": "order", "priority": "1"}


def test_with_ordering_key_changes_the_key_alone() -> None:
    """Data and attributes stay; None takes the key away."""
    message = EventMessage(b"paid", {"region": "eu"}, ordering_key="a")
    assert message.with_ordering_key("b") == EventMessage(b"paid", {"region": "eu"}, ordering_key="b")
    assert message.with_ordering_key(None).ordering_key is None


@given(TEXT)
def test_text_survives_the_round_trip(text: str) -> None:
    """data_as_string undoes from_string."""
    assert EventMessage.from_string(text).data_as_string() == text


def test_text_travels_in_any_encoding() -> None:
    """The encoding is UTF-8 unless it is named."""
    assert EventMessage.from_string("é").data == "é".encode()
    assert EventMessage.from_string("é", encoding="latin-1").data_as_string("latin-1") == "é"


@given(JSON)
def test_json_survives_the_round_trip(value: object) -> None:
    """data_as_json undoes from_json."""
    assert EventMessage.from_json(value).data_as_json() == value


def test_json_is_compact_utf8() -> None:
    """No blanks and no escapes, since brokers charge by the byte."""
    assert EventMessage.from_json({"a": [1, "é"]}).data == '{"a":[1,"é"]}'.encode()


def test_constructors_take_attributes_and_key() -> None:
    """from_string and from_json make complete messages."""
    expected = EventMessage(b"1", {"region": "eu"}, ordering_key="k")
    assert EventMessage.from_string("1", attributes={"region": "eu"}, ordering_key="k") == expected
    assert EventMessage.from_json(1, attributes={"region": "eu"}, ordering_key="k") == expected


def test_what_json_does_not_have_is_refused() -> None:
    """NaN is a ValueError and an object of no JSON type a TypeError, when the message is made."""
    with pytest.raises(ValueError, match="JSON"):
        EventMessage.from_json(float("nan"))
    with pytest.raises(TypeError):
        EventMessage.from_json({1, 2})


def test_data_that_is_not_json_or_text_is_a_value_error() -> None:
    """The errors of the standard library surface as they are."""
    with pytest.raises(json.JSONDecodeError):
        EventMessage(b"{").data_as_json()
    with pytest.raises(UnicodeDecodeError):
        EventMessage(b"\xff").data_as_string()


@given(MESSAGES, MESSAGES)
def test_equality_compares_what_was_sent(one: EventMessage, other: EventMessage) -> None:
    """Messages are equal, with equal hashes, if data, attributes and key are equal, and only then."""
    same = (one.data, one.attributes, one.ordering_key) == (other.data, other.attributes, other.ordering_key)
    assert (one == other) is same
    known = ReceivedMessage(
        data=one.data, attributes=one.attributes, ordering_key=one.ordering_key, message_id="other id"
    )
    assert hash(one) == hash(known)


def test_a_received_message_equals_the_one_sent() -> None:
    """The id, time and attempt that the broker added do not count."""
    assert received() == EventMessage(b"paid", {"region": "eu"}, ordering_key="customer-7")
    assert received() != "paid"


def test_a_received_message_carries_what_the_broker_knows() -> None:
    """Id, time of publishing and attempt are its own fields."""
    message = received()
    assert message.message_id == "41"
    assert message.publish_time == datetime(2026, 1, 2, tzinfo=UTC)
    assert message.delivery_attempt == 1


def test_changing_a_received_message_makes_one_to_send() -> None:
    """The copy is a plain, unsent message that knows no delivery."""
    changed = received().with_attribute("seen", "yes")
    assert type(changed) is EventMessage
    assert changed.message_id is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda message: pickle.loads(pickle.dumps(message))])
def test_messages_can_be_pickled_and_copied(duplicate: object) -> None:
    """A received message arrives elsewhere as a message like any other: its delivery stays behind."""
    message = received(delivery=object())
    assert type(duplicate(message)) is EventMessage  # type: ignore[operator]
    assert duplicate(message) == message  # type: ignore[operator]
    assert duplicate(message).message_id == "41"  # type: ignore[operator]


OLD_PICKLES = [
    b"\x80\x02cevents_core.message\nEventMessage\nq\x00(c_codecs\nencode\nq\x01X\x04\x00\x00\x00paidq\x02X\x06"
    b"\x00\x00\x00latin1q\x03\x86q\x04Rq\x05}q\x06X\x06\x00\x00\x00regionq\x07X\x02\x00\x00\x00euq\x08sX\x02\x00\x00"
    b"\x0041q\tX\n\x00\x00\x00customer-7q\ntq\x0bRq\x0c.",
    b"\x80\x04\x95W\x00\x00\x00\x00\x00\x00\x00\x8c\x13events_core.message\x94\x8c\x0cEventMessage\x94\x93\x94(C\x04"
    b"paid\x94}\x94\x8c\x06region\x94\x8c\x02eu\x94s\x8c\x0241\x94\x8c\ncustomer-7\x94t\x94R\x94.",
]
"""A received message, pickled with protocols 2 and 4 when ``message_id`` was still an argument."""


@pytest.mark.parametrize("old", OLD_PICKLES)
def test_a_pickle_from_before_loads(old: bytes) -> None:
    """Work queues may keep pickles for long: data, attributes, key and id are as they were."""
    message = pickle.loads(old)
    assert message == received()
    assert message.message_id == "41"


def test_the_representation_is_short_and_readable() -> None:
    """Long data is cut with its length told; attributes read as a dict; the delivery is left out."""
    text = repr(received(data=b"x" * 1000, delivery=object()))
    assert "(1000 bytes)" in text
    assert "attributes={'region': 'eu'}" in text
    assert "delivery=" not in text
    assert len(text) < 300
