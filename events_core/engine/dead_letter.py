"""Dead letters: attributes that say where a message came from, and a line in the log (R12)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from events_core.capabilities import PORTABLE_LIMITS

__all__ = ["dead_letter_attributes", "log_dead_letter"]

_log = logging.getLogger("events_core.receiver")


_LONGEST_REASON = PORTABLE_LIMITS.max_attribute_value_bytes
"""Bytes of a reason that a letter carries: a broker would refuse the letter for a longer attribute."""


def dead_letter_attributes(
    attributes: Mapping[str, str],
    *,
    topic_name: str,
    subscription: str,
    message_id: str,
    attempts: int,
    reason: str | None = None,
) -> dict[str, str]:
    """Return the *attributes* of a message with those that say where it was dead-lettered.

    :param reason: the reason of a handler that rejected the message; ``None`` if the message failed too often.
    """
    told = {"dead_letter_reason": _shortened(reason)} if reason else {}
    return {
        **attributes,
        **told,
        "dead_letter_source_topic": topic_name,
        "dead_letter_source_subscription": subscription,
        "dead_letter_source_message_id": message_id,
        "dead_letter_delivery_attempts": str(attempts),
    }


def _shortened(reason: str) -> str:
    # Half of a surrogate pair cannot be encoded; it becomes a question mark.
    return reason.encode(errors="replace")[:_LONGEST_REASON].decode(errors="ignore")


def log_dead_letter(
    message_id: str,
    *,
    attempts: int | None,
    subscription: str,
    dead_letter_topic: str,
    reason: str | None = None,
) -> None:
    """Log that a backend has moved a message, once that is certain; never call it under a lock.

    :param reason: the reason of a handler that rejected the message; ``None`` if the message failed too often.
    """
    _log.warning(
        "message %s %s in subscription %r and was moved to dead-letter topic %r%s",
        message_id,
        f"failed {attempts} times" if reason is None else f"was rejected at attempt {attempts}",
        subscription,
        dead_letter_topic,
        f": {reason}" if reason else "",
    )
