"""The limits and the promises of RabbitMQ.

Sources, read November 2026: the AMQP 0-9-1 specification, section 4.2.5.3; RabbitMQ 3.10.8,
``deps/rabbit/priv/schema/rabbit.schema``; the release notes of 4.0 for ``max_message_size``.  What is marked as
measured was measured on RabbitMQ 3.10.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from events_core import Capabilities, Limits

__all__ = [
    "FULL_CAPABILITIES",
    "KEY_HEADER",
    "MAX_BATCH_BYTES",
    "MAX_BATCH_MESSAGES",
    "MAX_HEADER_BYTES",
    "MAX_PREFETCH",
    "MAX_SETTLE_BATCH",
    "RESERVED_ATTRIBUTES",
    "Behaviour",
    "behaviour",
    "name_objection",
]

MAX_BATCH_MESSAGES = 1000
"""Messages that are written together.  RabbitMQ has no bound; more would only delay the first confirm."""

MAX_BATCH_BYTES = 4 * 2**20
"""Bytes that are written together.  RabbitMQ has no bound, but pika buffers what the socket does not take."""

MAX_SETTLE_BATCH = 5000
"""Settlements that are written together.  One frame acknowledges a whole range, so large batches are cheap."""

MAX_PREFETCH = 65_535
"""Deliveries that a consumer may hold: ``prefetch-count`` is a ``short`` (AMQP 0-9-1, ``basic.qos``).  0 means no
bound, so it is never used."""

MAX_HEADER_BYTES = 130_000
"""Bytes of the attributes, the ordering key and their lengths.  All headers travel in one frame, and a frame has
131,072 bytes at most (``frame_max``).  The rest is for the properties of the message."""

KEY_HEADER = "x-ordering-key"
"""The header that carries the ordering key."""

RESERVED_ATTRIBUTES = frozenset({"CC", "BCC", "x-delivery-count", "x-acquired-count", KEY_HEADER})
"""Headers with a meaning of their own.  ``CC`` and ``BCC`` route the message to further queues, the next two are
written by quorum queues, and the last one carries the ordering key."""

FULL_CAPABILITIES = Capabilities(
    durable="power_loss",
    ordering="subscription",
    dead_letter=True,
    reject=True,
    delivery_attempts=True,
    ack_confirmed=True,
    handback_counts=True,
    redelivery="disconnect",
    limits=Limits(
        max_message_bytes=512 * 2**20,  # the largest max_message_size that a server can be given
        max_attribute_key_bytes=255,  # a short string
        max_ordering_key_bytes=1024,
    ),
)


class Behaviour(NamedTuple):
    """The part of a server's behaviour that depends on its version."""

    queue_arguments: Mapping[str, Any]
    """Arguments of each new queue.  From 4.0 on a queue drops a message after 20 deliveries, unless told otherwise.
    3.10 has no such limit.  It takes -1, and then drops the message at the first reject (measured)."""
    handback_counts: bool
    """True if the server does not tell a failure from a message that was given back."""


_BEHAVIOURS = {  # by the first version that has it, the newest first
    (4, 3): Behaviour({"x-delivery-limit": -1}, handback_counts=False),
    (4, 0): Behaviour({"x-delivery-limit": -1}, handback_counts=True),
    (): Behaviour({}, handback_counts=True),
}


def behaviour(version: tuple[int, ...]) -> Behaviour:
    """Return the behaviour of a server of this *version*, for example ``(3, 10)``."""
    return next(found for since, found in _BEHAVIOURS.items() if version >= since)


def name_objection(what: str, name: str) -> str:
    """Return the reason why *name* cannot name an exchange or a queue, or ``""`` if it can."""
    size = len(name.encode())
    if size > 255:  # a short string
        return f"{what} {name!r:.100} has {size} bytes; RabbitMQ takes 255 at most"
    return ""
