"""The limits and the promises of SQS and SNS.

Sources, read November 2026: "Amazon SQS message quotas" and "Amazon SQS standard/FIFO queue quotas" (SQS developer
guide), ``SendMessageBatch`` and ``ChangeMessageVisibility`` (SQS API reference), "Publishing large messages" and
"Amazon SNS message attributes" (SNS developer guide), ``PublishBatch`` (SNS API reference).
"""

from __future__ import annotations

import re

from events_core import Capabilities, Limits

__all__ = [
    "CARRIED_ID",
    "DEDUPLICATION",
    "FULL_CAPABILITIES",
    "LONGEST_HOLD",
    "LONGEST_LEASE",
    "MAX_ATTRIBUTES",
    "MAX_BATCH",
    "MAX_REQUESTS",
    "MAX_SETTLE_BATCH",
    "SNS_MESSAGE_BYTES",
    "SQS_MESSAGE_BYTES",
    "queue_objection",
    "topic_objection",
]

MAX_BATCH = 10
"""Entries of one batch request, and messages of one ``ReceiveMessage``."""

MAX_REQUESTS = 32
"""Full requests to send that are out at once.  At a round trip of 30 ms they carry 10,000 messages a second, and that
is more than one process can sign."""

MAX_SETTLE_BATCH = 1000
"""Settlements of one call.  The source makes requests of ten of them, and sends several at once."""

SQS_MESSAGE_BYTES = 1_048_576
"""Bytes of one message, and of all messages of a request, to SQS."""

SNS_MESSAGE_BYTES = 262_144
"""The same for an SNS topic whose ``MaximumMessageSize`` is not set."""

MAX_ATTRIBUTES = 10
"""Message attributes that SQS takes.  SNS discards a message with more if the delivery is raw."""

CARRIED_ID = len("events_core") + len("String") + 32
"""Bytes of the attribute in which a message carries its id."""

DEDUPLICATION = 300
"""Seconds for which FIFO knows a deduplication id."""

LONGEST_LEASE = 43_200
"""Seconds from the receipt of a message until its visibility timeout must have ended."""

LONGEST_HOLD = LONGEST_LEASE - 60.0
"""Seconds from the receipt of a message until it goes back.  A nack then has a minute left for its delay."""

FULL_CAPABILITIES = Capabilities(
    durable="power_loss",
    ordering="subscription",
    dead_letter=True,
    reject=True,
    delivery_attempts=True,
    ack_confirmed=True,
    idempotent_publish=True,
    handback_counts=True,
    redelivery="lease",
    limits=Limits(max_message_bytes=SQS_MESSAGE_BYTES, max_nack_delay=float(LONGEST_LEASE)),
)
"""The most that a configuration can promise."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def topic_objection(what: str, name: str, longest: int) -> str:
    """Return the reason why *name* cannot name a topic, or ``""`` if it can.

    :param longest: characters that it may have; ``.fifo`` is not one of them.
    """
    if name.endswith(".fifo"):
        return f"{what} {name!r:.300}: leave out .fifo and set the option ordering=true, which appends it"
    if not _NAME.fullmatch(name) or len(name) > longest:
        return f"{what} {name!r:.300} is no name of a topic: 1 to {longest} letters (a to z), digits, '-' and '_'"
    return ""


def queue_objection(subscription: str, queue: str) -> str:
    """Return the reason why *queue*, without its ``.fifo``, cannot be the queue of *subscription*, or ``""``."""
    name = queue.removesuffix(".fifo")
    longest = 80 - (len(queue) - len(name))
    if not _NAME.fullmatch(name) or len(name) > longest:
        return (
            f"subscription {subscription!r:.300} cannot be a queue: its name would be {name!r:.300}, and a queue has "
            f"1 to {longest} letters (a to z), digits, '-' and '_'; use another name, or set the option queue_name"
        )
    return ""
