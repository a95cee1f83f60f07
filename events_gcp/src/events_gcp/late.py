"""Acknowledgements that came too late to count; pure, fed with ``now``.

Without exactly-once delivery Pub/Sub confirms every acknowledgement, also that of a delivery whose lease has run out,
which changes nothing: the message comes again.  A receiver that had no connection for longer than a lease knows of
which of its acknowledgements that may be true.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from events_core.engine import Delivery

__all__ = ["LateAcknowledgements"]

_REMEMBERED = 10_000


class LateAcknowledgements:
    """The late acknowledgements of one receiver.

    :param patience: seconds for which a message is expected to come again.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._until: OrderedDict[str, float] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until)

    def note(self, deliveries: Iterable[Delivery], asked: float) -> None:
        """Learn that *deliveries* were acknowledged by a request that began at *asked*."""
        late = [delivery.message_id for delivery in deliveries if delivery.lease_until < asked]
        for message_id in late:
            self._until[message_id] = asked + self._patience
            self._until.move_to_end(message_id)
        while len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)

    def came_again(self, deliveries: Sequence[Delivery], now: float) -> list[Delivery]:
        """Return those of *deliveries* whose messages have been acknowledged, too late."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        return [delivery for delivery in deliveries if delivery.message_id in self._until]
