"""Acknowledgements that came too late to count; pure, and told the time as ``now``.

Without exactly-once delivery, Pub/Sub confirms every acknowledgement.  If the lease of the delivery has run out, the
confirmed acknowledgement changes nothing, and the message comes again.  A receiver that had no connection for longer
than a lease knows which of its acknowledgements were late.  When one of these messages comes again, the receiver
acknowledges it again and does not hand it out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from events_core.engine import Delivery

__all__ = ["LateAcknowledgements"]

_MAX_REMEMBERED = 10_000
"""Messages.  The bound keeps memory small after a long outage."""


class LateAcknowledgements:
    """The late acknowledgements of one receiver.

    :param patience: seconds for which the receiver expects such a message to come again.
    :param margin: seconds by which a lease may end earlier than the engine knows.
    """

    def __init__(self, patience: float, margin: float) -> None:
        self._patience = patience
        self._margin = margin
        # All entries have the same patience, so the first one always ends first.
        self._until: OrderedDict[str, float] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until)

    def note(self, deliveries: Iterable[Delivery], answered: float) -> None:
        """Record that a request acknowledged *deliveries*; its answer came at the time *answered*.

        Pub/Sub may have received the request just before.  If an acknowledgement was in time after all, nothing comes
        again, and the note does no harm.
        """
        late = [delivery.message_id for delivery in deliveries if delivery.lease_until - self._margin < answered]
        for message_id in late:
            self._until[message_id] = answered + self._patience
            self._until.move_to_end(message_id)
        while len(self._until) > _MAX_REMEMBERED:
            self._until.popitem(last=False)

    def came_again(self, deliveries: Sequence[Delivery], now: float) -> list[Delivery]:
        """Return those of *deliveries* whose messages were acknowledged too late."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        return [delivery for delivery in deliveries if delivery.message_id in self._until]
