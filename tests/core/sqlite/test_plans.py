"""No statement of the hot paths scans a table, so the cost of a message does not grow with the backlog."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from events_core import EventMessage
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.subscription import Subscription
from events_core.engine import Outcome, Settlement


@pytest.mark.usefixtures("impatient")
def test_sending_receiving_and_settling_use_indexes(store: Callable[..., Store]) -> None:
    """SQLite plans each statement that they execute without a scan and without sorting."""
    opened = store(max_delivery_attempts="2", dead_letter_topic="failed")
    subscription, dead = Subscription(opened, "s"), Subscription(opened, "s")
    statements: set[str] = set()
    opened.connection.set_trace_callback(statements.add)
    for outcome in Outcome:
        opened.publish([EventMessage(b"x", ordering_key=key) for key in ("a", "a", "b", None)])
        dead.take(1)
        opened.connection.execute("UPDATE sessions SET expires_at = 0 WHERE id = ?", (dead._session,))
        subscription.next_due()
        taken = subscription.take(10)
        subscription.settle([Settlement(each, outcome, 0.0) for each in taken])
        opened.sweep()
    opened.connection.set_trace_callback(None)
    planned = [each for each in statements if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", each)]
    assert len(planned) > 10
    for statement in planned:
        plan = [row[3] for row in opened.connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
        scans = [step for step in plan if step.startswith("SCAN")]
        assert all(re.match(r"SCAN (m|d|messages|deliveries|held)\b", step) is None for step in scans), (
            statement,
            plan,
        )
        assert not any("TEMP B-TREE" in step for step in plan), (statement, plan)
