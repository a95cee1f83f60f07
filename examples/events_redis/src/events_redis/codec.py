"""Messages and names as Redis stores them.

A message is an entry of a stream, with the fields data, attributes (JSON) and key.
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
    """Return the data, the attributes and the key of *message*, ``""`` for no key."""
    return message.data, json.dumps(dict(message.attributes)), message.ordering_key or ""


def decode(entry_id: str, attempt: int, fields: Sequence[bytes]) -> Delivery:
    """Return the delivery of an entry; *fields* are names and values by turns.

    :raises ValueError, TypeError, KeyError: if another program wrote the entry.
    """
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    key = values[b"key"].decode()
    message = EventMessage(values[b"data"], json.loads(values[b"attributes"]), ordering_key=key)  # checks the types
    published = datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC)
    return Delivery(entry_id, message.data, message.attributes, message.ordering_key, published, attempt)


def quoted(name: str) -> str:
    """Return *name* without the characters that separate the parts of a key."""
    return quote(name, safe="")
