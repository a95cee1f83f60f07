"""Settling one delivery, as a receiver would."""

from __future__ import annotations

from events_core import ReceivedMessage
from events_core.engine import BrokerError, Delivery, Outcome, Settlement
from events_core.engine.ledger import Ledger


def begin(
    ledger: Ledger, what: Delivery | str, outcome: Outcome, delay: float | None = None, now: float = 0.0
) -> list[Settlement] | BrokerError:
    """Begin to settle *what*; return what the broker must be told, or why that cannot be."""
    target = what if isinstance(what, str) else view(what)
    begun = ledger.begin([target], outcome, delay, now)
    refusals = list(begun.refused.values())
    return refusals[0] if refusals else begun.to_send


def view(delivery: Delivery) -> ReceivedMessage:
    """Return the application's view of *delivery*."""
    return ReceivedMessage(b"", message_id=delivery.message_id, delivery=delivery)
