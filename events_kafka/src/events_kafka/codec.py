r"""From records to deliveries, and from messages to records.

A message is a record.  Its ordering key is the key, its attributes are the headers, and its data is the value, so any
program of Kafka can read it.  A record of any other program arrives by these rules:

* The key is read as UTF-8; other bytes in it are escaped, as in ``\xff``.  An empty key is none.
* Each header becomes an attribute.  Its value is read as the key is, and a null becomes ``""``.  If a name occurs
  several times, the last header counts.
* A null value, which is a *tombstone*, becomes empty data and the attribute :data:`TOMBSTONE`.  A message that is sent
  with empty data and this attribute becomes a tombstone.
* The data are the bytes of the value.  Those of a schema registry begin with the id of their schema.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from events_core import EventMessage
from events_core.engine import Delivery
from events_kafka.claims import Token

if TYPE_CHECKING:
    from confluent_kafka import Message

__all__ = ["TOMBSTONE", "decode", "packed", "record_size", "shortened"]

_log = logging.getLogger("events_kafka")

TOMBSTONE = "kafka_tombstone"
"""The attribute of a record whose value is null."""


def decode(token: Token) -> Delivery:
    """Return the delivery of a record, at attempt 1.  It never raises, whatever program has sent the record."""
    # This is done for every message, so it is written for the usual record.
    claim, offset, record = token
    value, key = record.value(), record.key()
    message_id = f"{claim.prefix}{offset}"
    attributes, size = _attributes(record, message_id)
    if value is None:
        attributes[TOMBSTONE] = "true"
    return Delivery(
        message_id,
        value or b"",
        attributes,
        _text(key) if key else None,
        _instant(*record.timestamp()),
        1,
        token,
        size + len(value or b"") + len(key or b""),
    )


def _attributes(record: Message, message_id: str) -> tuple[dict[str, str], int]:
    """Return the attributes of a record, and the bytes of its headers."""
    try:
        headers: Any = record.headers()
    except Exception:
        # The name of a header is not UTF-8.  confluent-kafka then leaves a list behind that must not be read.
        record.set_headers([])
        _log.warning("message %r has a header whose name is not UTF-8; it arrives without attributes", message_id)
        return {}, 0
    attributes: dict[str, str] = {}
    size = 0
    for name, value in headers or ():
        try:
            attributes[name] = value.decode()
        except (AttributeError, UnicodeDecodeError):  # a null, or other bytes
            attributes[name] = _text(value) if value else ""
        size += len(name) + len(value or b"")
    return attributes, size


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode(errors="backslashreplace")


@lru_cache(16)  # of records that are sent together, many have the same time
def _instant(kind: int, milliseconds: int) -> datetime | None:
    if not kind:  # TIMESTAMP_NOT_AVAILABLE
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):  # a program may write any time
        return None


def packed(message: EventMessage) -> tuple[bytes | None, dict[str, str | bytes | None] | None, int]:
    """Return the value and the headers of the record that carries *message*, and a bound of its size.

    The value of a tombstone is ``None``.  The bound is the most bytes that a batch with only this record may have.
    """
    value = message.data
    characters = len(message.ordering_key or "")
    if not message.attributes:
        return value, None, len(value) + 4 * characters + _OVERHEAD
    headers: dict[str, str | bytes | None] = {}
    for name, text in message.attributes.items():
        # As bytes: confluent-kafka ends a text at its first NUL.
        headers[name] = data = text.encode()
        characters += len(name) + len(data)
    # A character has 4 bytes at most, and measuring each text would cost as much as half a record.
    size = len(value) + 4 * characters + _MOST_LENGTHS * len(headers) + _OVERHEAD
    if not value and TOMBSTONE in headers:
        del headers[TOMBSTONE]
        return None, headers, size
    return value, headers, size


def record_size(message: EventMessage) -> int:
    """Return the bytes of a batch with only the record of *message*; the result may be a few bytes too large."""
    texts = [text.encode() for header in message.attributes.items() for text in header]
    key = (message.ordering_key or "").encode()
    return len(message.data) + _OVERHEAD + len(key) + sum(len(text) + _size_of_length(len(text)) for text in texts)


def shortened(message: EventMessage, limit: int) -> EventMessage:
    """Return *message*; the longest attributes are cut or left out if its record has more than *limit* bytes.

    Its data and its ordering key stay, so it may still be too large.
    """
    if record_size(message) <= limit:
        return message
    bare = EventMessage(message.data, ordering_key=message.ordering_key)
    room = limit - record_size(bare)
    attributes: dict[str, str] = {}
    for name, value in sorted(message.attributes.items(), key=lambda item: len(item[1])):
        room -= len(name.encode()) + _MOST_LENGTHS
        data = value.encode()[: max(room, 0)]
        room -= len(data)
        if room >= 0:
            attributes[name] = data.decode(errors="ignore")
    return bare.with_attributes(attributes)


def _size_of_length(length: int) -> int:
    """Return the bytes that a length takes: 7 bits in each, and one bit for the sign."""
    return (length.bit_length() + 1 + 6) // 7


_OVERHEAD = 61 + 36
"""The most bytes of a batch and of a record next to their data (Kafka's protocol, "Record Batch" and "Record")."""
_MOST_LENGTHS = 10
"""The most bytes that the lengths of a header take."""
