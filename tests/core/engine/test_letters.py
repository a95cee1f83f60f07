"""The dead letters that a receiver publishes itself."""

from __future__ import annotations

import pytest

from events_core import EventMessage
from events_core.engine import Delivery, Letters, Outcome, Settlement


async def never_called(letter: EventMessage) -> None:
    raise AssertionError(letter)


@pytest.mark.parametrize(
    ("outcome", "attempt", "last_attempt", "is_taken"),
    [
        (Outcome.REJECT, 1, None, True),
        (Outcome.REJECT, 1, 5, True),
        (Outcome.NACK, 4, 5, False),
        (Outcome.NACK, 5, 5, True),
        (Outcome.NACK, 6, 5, True),
        (Outcome.NACK, None, 1, True),
        (Outcome.NACK, 99, None, False),
        (Outcome.ACK, 5, 5, False),
        (Outcome.RETURN, 5, 5, False),
    ],
)
def test_a_message_becomes_a_letter_when_it_is_rejected_or_has_failed_too_often(
    outcome: Outcome, attempt: int | None, last_attempt: int | None, is_taken: bool
) -> None:
    """R12, S6: a rejection at any attempt, and a failure at the last one; nothing else."""
    letters = Letters(never_called, topic_name="t", subscription="s", dead_letter_topic="d", last_attempt=last_attempt)
    delivery = Delivery("1", b"", {}, delivery_attempt=attempt)
    assert letters.takes(Settlement(delivery, outcome)) is is_taken
