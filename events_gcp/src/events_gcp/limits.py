"""What Pub/Sub accepts and promises.

Sources, read November 2026: "Pub/Sub quotas and limits", cloud.google.com/pubsub/quotas#resource_limits;
google-cloud-pubsub 2.44.0, ``google/pubsub_v1/types/pubsub.py``; Apache Beam, ``PreparePubsubWriteDoFn``, for the
limits of attributes.  The emulator enforces few of them, so all are checked here.
"""

from __future__ import annotations

import re

from events_core import Capabilities, Limits

__all__ = [
    "FULL_CAPABILITIES",
    "MAX_ACK_IDS",
    "MAX_ATTRIBUTES",
    "MAX_BATCH_BYTES",
    "MAX_BATCH_MESSAGES",
    "PUBLISH_MAX_KEYS",
    "name_objection",
]

MAX_BATCH_MESSAGES = 1000
"""Messages of one publish request (quotas)."""

MAX_BATCH_BYTES = 9_000_000
"""Of the 10 MB of a publish request (quotas), leaving 1 MB for what encodes 1000 messages of 100 attributes each."""

PUBLISH_MAX_KEYS = 128
"""Requests with an ordering key that are out at once.  A request carries one key (``PublishRequest.messages`` in
``types/pubsub.py``), so at a round trip of 30 ms this allows 4,000 keys a second."""

MAX_ATTRIBUTES = 100
"""Of one message (quotas)."""

MAX_ACK_IDS = 1000
"""Ids of one request to settle: 512 KiB (quotas), at over 210 bytes each (googleapis/google-cloud-go#20391), rounded as
Google's clients for Python and Java do."""

FULL_CAPABILITIES = Capabilities(
    durable="power_loss",
    ordering="receiver",
    dead_letter=True,
    delivery_attempts=True,
    ack_confirmed=True,
    exactly_once=True,
    handback_counts=True,
    redelivery="lease",
    limits=Limits(
        max_message_bytes=9_998_000,  # the request's 10 MB, less the topic's name and what encodes the message
        max_attributes=MAX_ATTRIBUTES,
        max_attribute_key_bytes=256,
        max_attribute_value_bytes=1024,
        max_ordering_key_bytes=1024,
        max_nack_delay=600.0,  # longest ack deadline: ModifyAckDeadlineRequest.ack_deadline_seconds
    ),
)

# Topic.name and Subscription.name in types/pubsub.py.
_NAME = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")


def name_objection(what: str, name: str) -> str:
    """What is wrong with the *name* of a topic or subscription, ``""`` when nothing."""
    if _NAME.fullmatch(name):
        return ""
    return (
        f"{what} {name!r} is no valid Pub/Sub name: 3 to 255 letters, digits and -_.~+%, beginning with a letter and "
        "not with 'goog'; give the name alone, without projects/…"
    )
