"""Exceptions that a handler raises to decide what becomes of its message (rule H3: decisions of a handler)."""

from __future__ import annotations

from events_core.arguments import checked_delay, checked_text

__all__ = ["Reject", "RetryAfter"]


class Reject(Exception):
    """Raised by a handler: the message can never succeed, so dead-letter it at once.

    The message goes to ``dead_letter_topic``, however few attempts it has had.  If there is no such topic, or if the
    backend cannot reject (``capabilities.reject``), the message is nacked and an ERROR is logged.

    :param reason: for the log, and for the letter's attribute ``dead_letter_reason``.
    :raises TypeError: if *reason* is not a ``str``.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason: str = checked_text("reason", reason)


class RetryAfter(Exception):
    """Raised by a handler: something that the message needs is not ready, so nack it with a delay.

    This counts an attempt, as every nack does.

    :param seconds: time until the message may come again.  A delay beyond ``capabilities.limits.max_nack_delay`` is
        shortened to it, and that is logged.
    :raises TypeError: if *seconds* is not a number.
    :raises ValueError: if *seconds* is negative or not finite.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds: float = checked_delay("seconds", seconds)

    def delay_within(self, longest: float | None) -> float:
        """Return the delay, at most *longest* seconds; ``None`` is no limit."""
        return self.seconds if longest is None else min(self.seconds, longest)
