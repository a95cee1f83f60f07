"""The limits and the promises of Kafka.

Sources, read November 2026: Kafka 4.1, ``TopicConfig`` and ``org.apache.kafka.common.internals.Topic``;
librdkafka 2.12, ``CONFIGURATION.md``.
"""

from __future__ import annotations

import re

from events_core import Capabilities, Limits

__all__ = [
    "FULL_CAPABILITIES",
    "MAX_BATCH_BYTES",
    "MAX_BATCH_MESSAGES",
    "MAX_MESSAGE_BYTES",
    "MAX_METADATA_BYTES",
    "MAX_SETTLE_BATCH",
    "topic_objection",
]

MAX_BATCH_MESSAGES = 1000
"""Messages of one request of the engine.  librdkafka makes its own requests of them, for each partition."""

MAX_BATCH_BYTES = 16 * 2**20
"""Bytes of one request of the engine.  librdkafka's queue holds them twice at most."""

MAX_SETTLE_BATCH = 5000
"""Settlements of one call.  Recording them asks nobody."""

MAX_MESSAGE_BYTES = 1_000_000_000
"""The largest ``message.max.bytes`` that librdkafka takes."""

MAX_METADATA_BYTES = 4096
"""Bytes of the metadata of a committed position: the broker's ``offset.metadata.max.bytes``."""

FULL_CAPABILITIES = Capabilities(
    durable="process_crash",
    ordering="subscription",
    replay=True,
    dead_letter=True,
    reject=True,
    delivery_attempts=True,
    idempotent_publish=True,
    redelivery="disconnect",
    limits=Limits(max_message_bytes=MAX_MESSAGE_BYTES),
)

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def topic_objection(what: str, name: str) -> str:
    """Return the reason why *name* cannot name a topic, or ``""`` if it can."""
    if name in (".", "..") or not _NAME.fullmatch(name):
        return f"{what} {name!r:.300} is no name of a topic: 1 to 249 letters (a to z), digits, '.', '_' and '-'"
    return ""
