"""Capabilities: the promises of a backend in one configuration.

The class has a default for every capability, and it is the weakest promise.  So a capability can be added without
changing any backend that exists.
"""

from __future__ import annotations

from typing import Literal

import attrs

__all__ = ["PORTABLE_LIMITS", "Capabilities", "Limits"]


@attrs.frozen(kw_only=True)
class Limits:
    """Sizes that the backend accepts; ``None`` if there is no limit.  They are checked before a message is sent."""

    max_message_bytes: int | None = None
    """Largest message: data, attributes and ordering key together, in bytes of UTF-8."""
    max_attributes: int | None = None
    """Largest number of attributes of one message."""
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
"""Nearly the limits of Google Pub/Sub (cloud.google.com/pubsub/quotas, read November 2026).

The embedded backends have the same limits.  So a message that passes in your tests is seldom refused by a broker."""


@attrs.frozen(kw_only=True)
class Capabilities:
    """The promises of a backend.  The conformance kit proves each promise that a backend declares.

    If you ask for a feature that the backend does not declare, the call raises
    :attr:`~events_core.ErrorCode.UNSUPPORTED`.
    """

    durable: Literal["none", "process_crash", "power_loss"] = "none"
    """The strongest failure that a confirmed message survives (rule F3: durability).

    ``process_crash`` is the crash of a process, the application's or the broker's; ``power_loss`` is stronger."""
    ordering: Literal["none", "receiver", "subscription"] = "none"
    """The receivers over which the order of a key holds (rule R8: order per key).

    ``receiver`` means the messages that one receiver gets, ``subscription`` those of all its receivers."""
    replay: bool = False
    """True if a new subscription may begin with the oldest message kept (rule Q3: replay)."""
    dead_letter: bool = False
    """True if a message that failed too often goes to another topic (rule R12: dead letters)."""
    reject: bool = False
    """True if a handler can send a message to the dead-letter topic at once (rule S6: rejecting).

    It needs the option ``dead_letter_topic``."""
    delivery_attempts: bool = False
    """True if ``delivery_attempt`` of a received message is counted."""
    ack_confirmed: bool = False
    """True if ``acknowledge`` returns only when the broker has confirmed it (rule S1: acknowledging)."""
    exactly_once: bool = False
    """True if a message never comes again after its acknowledgement was confirmed (rule S1: acknowledging)."""
    idempotent_publish: bool = False
    """True if a send that was retried stores the message once (rule P7: retries)."""
    handback_counts: bool = False
    """True if a message that goes back without having been handed out counts an attempt (rule C1: closing)."""
    redelivery: Literal["lease", "disconnect"] = "lease"
    """The event after which the broker delivers an unsettled message again: the end of its lease, or of the connection;
    on Kafka, of the membership in the group (rule R9: redelivery)."""
    limits: Limits = attrs.field(factory=Limits)
    """The sizes that the backend accepts."""
