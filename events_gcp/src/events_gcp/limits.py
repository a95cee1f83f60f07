"""The limits and the promises of Pub/Sub.

Sources, read November 2026: "Pub/Sub quotas and limits", cloud.google.com/pubsub/quotas#resource_limits;
google-cloud-pubsub 2.44.0, ``google/pubsub_v1/types/pubsub.py``; Apache Beam, ``PreparePubsubWriteDoFn``, for the
limits of attributes.  The emulator enforces few of them, so the library checks all of them itself.
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
    "TRACE_PREFIX",
    "attribute_objection",
    "name_objection",
]

MAX_BATCH_MESSAGES = 1000
"""Messages in one publish request (quotas)."""

MAX_BATCH_BYTES = 9_000_000
"""Bytes in one publish request.  Of its 10 MB (quotas), 1 MB is left for the encoding of 1000 messages with 100
attributes each."""

PUBLISH_MAX_KEYS = 128
"""Publish requests with an ordering key that may be under way at once.  A request carries one key
(``PublishRequest.messages`` in ``types/pubsub.py``), so at a round trip of 30 ms this allows 4,000 keys a second."""

MAX_ATTRIBUTES = 100
"""Attributes of one message (quotas)."""

TRACE_PREFIX = "googclient_"
"""The prefix of attributes that belong to Google's client libraries, which keep the context of traces in them
(``open_telemetry/context_propagation.py``).  They count like all others.  Every other ``goog…`` key is reserved."""

MAX_ACK_IDS = 1000
"""Ack ids in one request to settle.  It may have 512 KiB (quotas), and an id has over 210 bytes
(googleapis/google-cloud-go#20391).  Google's clients for Python and Java use the same number."""

FULL_CAPABILITIES = Capabilities(
    durable="power_loss",
    ordering="receiver",
    dead_letter=True,
    reject=True,
    delivery_attempts=True,
    ack_confirmed=True,
    exactly_once=True,
    handback_counts=True,
    redelivery="lease",
    limits=Limits(
        max_message_bytes=9_998_000,  # the 10 MB of a request, less the topic's name and the encoding
        max_attributes=MAX_ATTRIBUTES,
        max_attribute_key_bytes=256,
        max_attribute_value_bytes=1024,
        max_ordering_key_bytes=1024,
        max_nack_delay=600.0,  # the longest ack deadline (ModifyAckDeadlineRequest.ack_deadline_seconds)
    ),
)

# Topic.name and Subscription.name in types/pubsub.py.
_NAME = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")


def name_objection(what: str, name: str) -> str:
    """Return the reason why *name* cannot name a topic or subscription, or ``""`` if it can."""
    if _NAME.fullmatch(name):
        return ""
    return (
        f"{what} {name!r} is not a valid Pub/Sub name: 3 to 255 letters, digits and -_.~+%, beginning with a letter "
        "and not with 'goog'; give the name alone, without projects/…"
    )


def attribute_objection(key: str) -> str:
    """Return the reason why no attribute can have *key*, or ``""`` if one can."""
    if not key or (key.startswith("goog") and not key.startswith(TRACE_PREFIX)):
        return f"attribute key {key!r} is empty or begins with 'goog', which Pub/Sub reserves"
    return ""
