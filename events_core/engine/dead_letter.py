"""Dead letters: who moves a message that failed too often, and when (rule R12: dead letters).

* Usually the broker decides, or the embedded backend.  It counts the attempts, and moves the message when it is told of
  the last failure: ``_take_back`` in ``backends/memory.py``, ``_fail`` in ``backends/sqlite/subscription.py``.
* If a source says ``redelivers_locally``, the receiver hands a failed message with a key out again itself, and the
  broker sees no failure.  Then :class:`LocalAttempts` decides, for the ledger.  After the last attempt the ledger lets
  the NACK go to ``Source.settle``, and the source moves the message.  If the broker has delivered the message again
  before the answer, ``settlements.py`` acknowledges that copy instead of making a second letter of it.
* A handler may reject its message.  Then the source moves it at once, at any number of attempts.
* If the broker cannot move a message, as on RabbitMQ and on Pub/Sub with order, the receiver publishes the letter.
  ``Letters.takes`` in ``letters.py`` decides which settlement makes one.
* ``Source.settle`` stores the letter with :func:`dead_letter_attributes`, and calls :func:`log_dead_letter`.  A source
  that moves letters in a transaction, or under a lock, keeps a :class:`DeadLetterLog` until that is over.
  An inline source is called under a lock of the engine, so it writes that log in ``Source.unlocked``.
* ``dead_letter_topic.py`` provides a subscription that keeps the letters.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping

from events_core.capabilities import PORTABLE_LIMITS
from events_core.engine.driver import Delivery, Outcome, Settlement

__all__ = ["DeadLetterLog", "LocalAttempts", "dead_letter_attributes", "log_dead_letter"]

_log = logging.getLogger("events_core.receiver")

# As globals, because reading a member from its class takes ten times as long (CPython 3.11).
_ACK, _NACK, _, _REJECT = Outcome

_LONGEST_REASON = PORTABLE_LIMITS.max_attribute_value_bytes
"""Bytes of a reason of a letter and of its log record.  A broker would refuse a letter with a longer attribute."""


class LocalAttempts:
    """The attempts of messages that the receiver itself hands out again.

    :param redelivers_locally: whether it does; otherwise the broker counts.
    :param most: the number of attempts of which the last failure goes to the source; ``None`` for no bound.
    """

    def __init__(self, redelivers_locally: bool, most: int | None) -> None:
        self._are_counted_here = redelivers_locally
        self._most = most

    def are_used_up(self, delivery: Delivery) -> bool:
        """Return whether a failure of *delivery* is its message's last one."""
        return self._most is not None and (delivery.delivery_attempt or 1) >= self._most

    def ends_message(self, settlement: Settlement) -> bool:
        """Return whether the message leaves the subscription: it is acknowledged, or the source dead-letters it."""
        outcome = settlement.outcome
        if outcome is _ACK or outcome is _REJECT:
            return True
        return outcome is _NACK and self._are_counted_here and self.are_used_up(settlement.delivery)


def dead_letter_attributes(
    attributes: Mapping[str, str],
    *,
    topic_name: str,
    subscription: str,
    message_id: str,
    attempts: int,
    reason: str | None = None,
) -> dict[str, str]:
    """Return the *attributes* of a message together with those that say where it was dead-lettered.

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
    """Log that a backend has moved a message.

    Call it once the move is certain.  Do not call it while you hold a lock of yours, which a log handler may need.

    :param reason: the reason of a handler that rejected the message; ``None`` if the message failed too often.
    """
    _log.warning(
        "message %s %s in subscription %r and was moved to dead-letter topic %r%s",
        message_id,
        f"failed {attempts} times" if reason is None else f"was rejected at attempt {attempts}",
        subscription,
        dead_letter_topic,
        f": {_shortened(reason)}" if reason else "",
    )


class DeadLetterLog:
    """Dead letters of one subscription that were moved, and are not in the log yet.

    A backend records a letter while it moves it, in a transaction or under a lock, and writes it to the log after that:
    the transaction may still fail, and a log handler may need the lock.  Letters may be recorded and written by several
    threads at once; each is written once.
    """

    def __init__(self, subscription: str, dead_letter_topic: str) -> None:
        self._subscription = subscription
        self._dead_letter_topic = dead_letter_topic
        self._letters: deque[tuple[str, int, str | None]] = deque()

    def record(self, message_id: str, attempts: int, reason: str | None = None) -> None:
        """Remember a letter that was moved after *attempts* attempts, or rejected for *reason*."""
        self._letters.append((message_id, attempts, reason))

    def clear(self) -> None:
        """Forget the letters of a transaction that failed."""
        self._letters.clear()

    def write(self) -> None:
        """Log each letter; never call it under a lock."""
        while self._letters:
            try:
                message_id, attempts, reason = self._letters.popleft()
            except IndexError:  # another thread has just taken the last one
                return
            log_dead_letter(
                message_id,
                attempts=attempts,
                subscription=self._subscription,
                dead_letter_topic=self._dead_letter_topic,
                reason=reason,
            )
