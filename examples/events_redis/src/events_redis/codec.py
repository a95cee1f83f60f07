"""Messages and names, as Redis stores them.

A message is an entry of a stream.  Its fields are ``data``, ``attributes``
(JSON) and ``key``, which is empty if the message has no ordering key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from events_core import EventMessage
from events_core.engine import Delivery

__all__ = ["decode", "encode", "quoted"]


def encode(message: EventMessage) -> tuple[bytes, str, str]:
    """Return the data, the attributes and the key of *message*."""
    attributes = json.dumps(dict(message.attributes))
    return message.data, attributes, message.ordering_key or ""


def decode(
    entry_id: str, attempt: int, fields: Sequence[bytes], token: str
) -> Delivery:
    """Return the delivery of an entry, whose *fields* are names and values.

    :raises ValueError, TypeError, KeyError: if it is no message.
    """
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    # The constructor checks the types of what the entry has.
    message = EventMessage(
        values[b"data"],
        json.loads(values[b"attributes"]),
        ordering_key=values[b"key"].decode(),
    )
    milliseconds = int(entry_id.partition("-")[0])
    return Delivery(
        entry_id,
        message.data,
        message.attributes,
        message.ordering_key,
        datetime.fromtimestamp(milliseconds / 1000, UTC),
        attempt,
        token,
    )


def quoted(name: str) -> str:
    """Return *name* without the characters that separate parts of a key."""
    return quote(name, safe="")
