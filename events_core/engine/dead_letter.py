"""Where a dead letter came from, as attributes (R12); pure."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["dead_letter_attributes"]


def dead_letter_attributes(
    attributes: Mapping[str, str], *, topic_name: str, subscription: str, message_id: str, attempts: int
) -> dict[str, str]:
    """*attributes* of a message with those that say whence it was dead-lettered."""
    return {
        **attributes,
        "dead_letter_source_topic": topic_name,
        "dead_letter_source_subscription": subscription,
        "dead_letter_source_message_id": message_id,
        "dead_letter_delivery_attempts": str(attempts),
    }
