"""Dead letters: attributes that say where a message came from, and a line in the log (R12)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

__all__ = ["dead_letter_attributes", "log_dead_letter"]

_log = logging.getLogger("events_core.receiver")


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


def log_dead_letter(message_id: str, *, attempts: int | None, subscription: str, dead_letter_topic: str) -> None:
    """Log that a backend has moved a message, once that is certain; never call it under a lock."""
    _log.warning(
        "message %s failed %s times in subscription %r and was moved to dead-letter topic %r",
        message_id,
        attempts,
        subscription,
        dead_letter_topic,
    )
