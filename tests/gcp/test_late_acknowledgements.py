"""Acknowledgements that came too late, in simulated time."""

from __future__ import annotations

from events_core.engine import Delivery
from events_gcp.late_acknowledgements import LateAcknowledgements


def delivery(message_id: str, lease_until: float = 0.0) -> Delivery:
    made = Delivery(message_id, b"", {})
    made.lease_until = lease_until
    return made


def test_only_what_lapsed_is_expected_again() -> None:
    """An acknowledgement within the lease counts, so its message is not expected again."""
    late = LateAcknowledgements(patience=10, margin=1)
    leases = {"in time": 5, "perhaps late": 4.5, "late": 3}
    late.note([delivery(*lease) for lease in leases.items()], answered=4)
    came = [delivery(each) for each in (*leases, "new")]
    assert [each.message_id for each in late.came_again(came, now=5)] == ["perhaps late", "late"]


def test_a_message_is_not_expected_for_ever() -> None:
    """After the patience the message is handed out again, and nothing is remembered."""
    late = LateAcknowledgements(patience=10, margin=1)
    late.note([delivery("late")], answered=1)
    assert late.came_again([delivery("late")], now=10.9)
    assert not late.came_again([delivery("late")], now=11)
    assert not late
