"""The number of times that a message has failed in one receiver; pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from events_core.engine import Delivery

__all__ = ["Attempts"]

_MAX_REMEMBERED = 10_000
"""Messages whose failures are remembered.  The bound keeps memory small when each message fails once and then goes to
another receiver."""


class Attempts:
    """The failures of each message that this receiver has nacked.

    Pub/Sub counts attempts only if the subscription has a dead-letter policy.  Without one, the receiver counts: for
    the delay after a nack, and for dead letters where it moves them itself.
    """

    def __init__(self) -> None:
        # The number of failures, and the ack id of the delivery that failed last.
        self._failures: OrderedDict[str, tuple[int, str]] = OrderedDict()

    def number(self, deliveries: Iterable[Delivery]) -> None:
        """Set ``delivery_attempt`` of *deliveries*: one more than the failures known here."""
        for delivery in deliveries:
            known, _ = self._failures.get(delivery.message_id, (0, ""))
            # Pub/Sub's own count includes failures in other receivers, so it may be higher.
            delivery.delivery_attempt = max(known + 1, delivery.delivery_attempt or 1)

    def fail(self, delivery: Delivery) -> int:
        """Count a failure of *delivery*, and return the attempts of its message so far.

        A repeated call for the same delivery counts nothing, because the engine repeats a request that got no answer.
        """
        known, ack_id = self._failures.pop(delivery.message_id, (0, ""))
        attempts = max(known + int(ack_id != delivery.token), delivery.delivery_attempt or 1)
        self._failures[delivery.message_id] = attempts, delivery.token
        if len(self._failures) > _MAX_REMEMBERED:
            self._failures.popitem(last=False)
        return attempts

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """Forget the failures of messages that are acknowledged."""
        if self._failures:  # usually there are none, and each acknowledged message passes here
            for delivery in deliveries:
                self._failures.pop(delivery.message_id, None)
