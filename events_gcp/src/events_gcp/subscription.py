"""A subscription as one receiver joined it."""

from __future__ import annotations

import attrs

from events_core import Capabilities
from events_core.engine import Delivery

__all__ = ["JoinedSubscription"]


@attrs.define(kw_only=True, eq=False)
class JoinedSubscription:
    """What a subscription is, what it promises, and what that requires of its receiver.

    Only :attr:`capabilities` changes after joining: a stream can tell what the account was not allowed to look up.
    """

    name: str
    path: str
    """The full name, ``projects/…/subscriptions/…``."""
    is_ephemeral: bool
    capabilities: Capabilities
    ack_deadline: int
    """Seconds of the lease of a pulled message.  A stream asks for its own lease."""
    has_backoff: bool
    """Whether a retry policy makes Pub/Sub delay nacked messages."""
    dead_letter_topic: str | None
    """The full name of the topic for dead letters, whether Pub/Sub or the receiver moves them."""
    local_attempts: int | None
    """The attempt after which the receiver itself moves a message.

    ``None`` where Pub/Sub counts.  A dead-letter policy of Pub/Sub would lose the order of keys.
    """

    def keeps_order_of(self, delivery: Delivery) -> bool:
        """Return whether Pub/Sub delivers the later messages of this key behind *delivery*."""
        # Publishers may set keys although the subscription has no order.  Such a key means nothing.
        return bool(delivery.ordering_key) and self.capabilities.ordering != "none"
