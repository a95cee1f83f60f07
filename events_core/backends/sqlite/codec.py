"""A message in a row of the file: its attributes are JSON, everything else is a value of SQLite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from events_core.engine import Delivery

__all__ = ["MESSAGE", "decode", "decode_attributes", "encode_attributes"]

# Positional: it runs once for each message.
MESSAGE = "SELECT publish_time, ordering_key, attributes, data FROM messages WHERE id = ?"
"""The row of one message, as :func:`decode` reads it."""


def encode_attributes(attributes: Mapping[str, str]) -> str | None:
    """Return *attributes* as the text of their column; ``None``, which takes no room, if there are none."""
    return json.dumps(dict(attributes)) if attributes else None


def decode_attributes(text: str | None) -> dict[str, str]:
    """Return the attributes in *text*, as :func:`encode_attributes` has written it."""
    attributes: dict[str, str] = json.loads(text) if text else {}
    return attributes


def decode(message_id: int, row: tuple[Any, ...], *, failed: int, session: int) -> Delivery:
    """Return the delivery of a message that failed *failed* times before; its token is the *session*."""
    published, key, attributes, data = row
    return Delivery(
        str(message_id),
        data,
        decode_attributes(attributes),
        key,
        datetime.fromtimestamp(published, UTC),
        failed + 1,
        session,
    )
