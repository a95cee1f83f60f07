"""What a backend, in a given configuration, promises to do."""

from __future__ import annotations

from typing import Literal

import attrs

__all__ = ["PORTABLE_LIMITS", "Capabilities", "Limits"]


@attrs.frozen(kw_only=True)
class Limits:
    """Sizes that the backend accepts, checked before anything is sent; ``None`` where there is no limit."""

    max_message_bytes: int | None = None
    """Data, attributes and ordering key of one message together, in bytes of UTF-8."""
    max_attributes: int | None = None
    """Number of attributes of one message."""
    max_attribute_key_bytes: int | None = None
    """Longest attribute key, in bytes of UTF-8."""
    max_attribute_value_bytes: int | None = None
    """Longest attribute value, in bytes of UTF-8."""
    max_ordering_key_bytes: int | None = None
    """Longest ordering key, in bytes of UTF-8."""
    max_nack_delay: float | None = None
    """Longest delay of a nack, in seconds."""


PORTABLE_LIMITS = Limits(
    max_message_bytes=10_000_000,
    max_attributes=100,
    max_attribute_key_bytes=256,
    max_attribute_value_bytes=1024,
    max_ordering_key_bytes=1024,
)
"""Those of Google Pub/Sub (cloud.google.com/pubsub/quotas, read November 2026).

The embedded backends keep them, so that few sizes pass there which a real broker refuses."""


@attrs.frozen(kw_only=True)
class Capabilities:
    """What may be relied on; the conformance kit proves what is declared.

    What is not declared raises :attr:`~events_core.ErrorCode.UNSUPPORTED` when it is asked for.
    """

    durable: Literal["none", "process_crash", "power_loss"] = "none"
    """What a confirmed message survives (F3): the crash of a process, the application's and the broker's, or a power
    loss."""
    ordering: Literal["none", "receiver", "subscription"] = "none"
    """Over what the order of a key holds (R8): not at all, one receiver, or all receivers of a subscription."""
    replay: bool = False
    """Whether a new subscription may start with the oldest message kept (Q3)."""
    dead_letter: bool = False
    """Whether a message that failed too often goes to another topic (R12)."""
    reject: bool = False
    """Whether a handler can send a message to the dead-letter topic at once (S6).  It needs ``dead_letter_topic``."""
    delivery_attempts: bool = False
    """Whether ``delivery_attempt`` is counted."""
    ack_confirmed: bool = False
    """Whether ``acknowledge`` returns only when the broker has confirmed it (S1)."""
    exactly_once: bool = False
    """Whether a message whose acknowledgement was confirmed never comes again (S1)."""
    idempotent_publish: bool = False
    """Whether a retried send stores the message once (P7)."""
    handback_counts: bool = False
    """Whether handing back what was never handed out counts a delivery attempt (C1)."""
    redelivery: Literal["lease", "disconnect"] = "lease"
    """What makes the broker deliver again what was never settled."""
    limits: Limits = attrs.field(factory=Limits)
    """Sizes accepted."""
