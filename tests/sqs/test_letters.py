"""Dead letters in the form that AWS takes."""

from __future__ import annotations

import re

from events_core import EventMessage
from events_core.engine import message_size
from events_sqs.letters import letter_id, shortened

ORIGIN = {
    "dead_letter_reason": "bad" * 100,
    "dead_letter_source_topic": "orders",
    "dead_letter_source_subscription": "billing",
    "dead_letter_source_message_id": "7",
    "dead_letter_delivery_attempts": "5",
}


def within(limit: int) -> EventMessage:
    """Return a letter of 100 bytes with an attribute and its origin, shortened to *limit*."""
    letter = EventMessage(b"x" * 100, {"shop": "7", **ORIGIN}, ordering_key="k")
    return shortened(letter, lambda each: "too large" if message_size(each) > limit else "")


def test_a_letter_that_fits_has_all_of_its_origin() -> None:
    """R12."""
    assert within(10_000).attributes == {"shop": "7", **ORIGIN}


def test_the_reason_is_left_out_first() -> None:
    """R12: it is long, and the log has it."""
    assert within(400).attributes == {"shop": "7", **{name: ORIGIN[name] for name in [*ORIGIN][1:]}}


def test_a_letter_may_have_no_origin() -> None:
    """R12: the message itself stays as it was."""
    letter = within(110)
    assert (letter.data, letter.attributes, letter.ordering_key) == (b"x" * 100, {"shop": "7"}, "k")


def test_a_letter_has_the_same_id_each_time() -> None:
    """P7, R12: whatever else is different, such as the reason; another message or subscription has another id."""
    first, again = (EventMessage(b"x", {**ORIGIN, "dead_letter_reason": reason}) for reason in "ab")
    assert re.fullmatch("[0-9a-f]{32}", letter_id(first))
    assert letter_id(first) == letter_id(again)
    for name in ("dead_letter_source_subscription", "dead_letter_source_message_id"):
        assert letter_id(EventMessage(b"x", {**ORIGIN, name: "other"})) != letter_id(first)
