"""Frames of AMQP 0-9-1 that this backend writes and reads itself, because pika's own way costs too much or fails.

* A batch of messages is one write.  pika makes three frame objects for each message, and calls the socket each time.
* The headers of a message from another program may have any type.  pika 1.4 cuts the fraction off a number, and loses
  the connection at a timestamp beyond the year 9999, at NaN and at a type that it does not know.  The broker would then
  deliver the same message again and again.

The numbers are those of the specification (sections 2.3.5, 4.2 and of the class ``basic``), with the types of fields
as RabbitMQ uses them (rabbitmq.com/amqp-0-9-1-errata).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pika import frame, spec  # type: ignore[import-untyped]

from events_core import EventMessage
from events_rabbitmq.limits import KEY_HEADER

__all__ = [
    "APP_ID",
    "FRAME",
    "FRAME_BYTES",
    "method_frame",
    "properties",
    "publishing",
    "read_frame",
    "time_of",
]

APP_ID = "events-core"
"""The property ``app-id`` of messages that this backend sends.  It says that ``message-id`` is unique, and that all
headers are attributes."""

_END = b"\xce"
FRAME = struct.Struct(">BHI")
"""The begin of a frame: its type, its channel and the size of its payload."""
FRAME_BYTES = 8
"""Bytes of a frame around its payload."""

_B = spec.BasicProperties
_FLAGS = _B.FLAG_HEADERS | _B.FLAG_DELIVERY_MODE | _B.FLAG_MESSAGE_ID | _B.FLAG_TIMESTAMP | _B.FLAG_APP_ID
# Type, channel and size of the frame; class, weight, size of the body and flags; size of the table of headers.
_HEADER = struct.Struct(">BHIHHQHI")
_HEADER_BYTES = _HEADER.size - 7
_LONG = struct.Struct(">I")
_APP_ID = bytes([len(APP_ID)]) + APP_ID.encode()
_KEY = bytes([len(KEY_HEADER)]) + KEY_HEADER.encode() + b"S"


def method_frame(channel: int, method: Any) -> bytes:
    """Return the frame of *method*, an object of :mod:`pika.spec`."""
    return bytes(frame.Method(channel, method).marshal())


def publishing(
    channel: int, method: bytes, ids: Iterable[str], messages: Sequence[EventMessage], now: int, frame_max: int
) -> tuple[bytes, list[str]]:
    """Return the frames that publish *messages*, and the ids of these messages.

    A message whose header needs more than one frame is left out: the server would end the connection.

    :param method: the frame of ``basic.publish``, the same for all.
    :param ids: the id of each message.
    :param now: the time of publishing, in whole seconds: AMQP has no finer timestamp.
    :param frame_max: bytes of the largest frame.
    """
    pieces: list[bytes] = []
    written: list[str] = []
    longest = frame_max - FRAME_BYTES
    for name, message in zip(ids, messages, strict=True):
        table = _table_of(message)
        body, identity = message.data, name.encode()
        # After the table: delivery mode 2, which means persistent; the id; the time; the id of this library.
        tail = b"\x02%c%b%b%b" % (len(identity), identity, now.to_bytes(8, "big"), _APP_ID)
        size = _HEADER_BYTES + len(table) + len(tail)
        if size > longest:
            continue
        written.append(name)
        pieces += (
            method,
            _HEADER.pack(spec.FRAME_HEADER, channel, size, 60, 0, len(body), _FLAGS, len(table)),
            table,
            tail,
            _END,
        )
        for start in range(0, len(body), longest):
            part = body if len(body) <= longest else body[start : start + longest]
            pieces += (FRAME.pack(spec.FRAME_BODY, channel, len(part)), part, _END)
    return b"".join(pieces), written


def _table_of(message: EventMessage) -> bytes:
    """Return the headers of *message*: long strings, all of them."""
    pieces: list[bytes] = []
    for key, value in message.attributes.items():
        name, text = key.encode(), value.encode()
        pieces += (b"%c%bS" % (len(name), name), len(text).to_bytes(4, "big"), text)
    if message.ordering_key:
        text = message.ordering_key.encode()
        pieces += (_KEY, len(text).to_bytes(4, "big"), text)
    return b"".join(pieces)


def read_frame(data: bytes) -> Any:
    """Return the frame in *data* as an object of :mod:`pika.frame`."""
    if data[0] != spec.FRAME_HEADER:
        return frame.decode_frame(data)[1]
    _, channel, _ = FRAME.unpack_from(data)
    payload = data[FRAME.size : -len(_END)]
    return frame.Header(channel, int.from_bytes(payload[4:12], "big"), spec.BasicProperties(**properties(payload)))


def properties(payload: bytes) -> dict[str, Any]:
    """Return the properties of a message from the payload of its header frame, by pika's names."""
    found: dict[str, Any] = {}
    offset = 14
    for name, kind in _layout(int.from_bytes(payload[12:14], "big")):
        found[name], offset = _value(kind, payload, offset)
    return found


def _table(data: bytes, offset: int, end: int, depth: int) -> dict[str, Any]:
    """Return the table of fields in *data*.  Fields behind one of an unknown type are left out: its length is unknown.

    Texts that are not UTF-8 stay ``bytes``.
    """
    found: dict[str, Any] = {}
    while offset < end:
        begin = offset + 1
        offset = begin + data[offset]
        name = _name(data[begin:offset])
        try:
            found[name], offset = _value(data[offset], data, offset + 1, depth)
        except _Unknown:
            break
    return found


def _name(data: bytes) -> str:
    """Return the name of a field.  Escapes make it longer, and it must stay one that can be sent on."""
    name = _text(data)
    return name if isinstance(name, str) else data.decode("ascii", "backslashreplace")[:255]


class _Unknown(Exception):
    """A field has a type that the specification does not know."""


_TEXT, _BYTES, _ARRAY, _TABLE = _LONG_KINDS = b"SxAF"
"""Types of fields that begin with their size."""
_MAX_DEPTH = 20
"""Tables and arrays around a value.  What is nested deeper stays ``bytes``, because Python bounds recursion."""
_TIME, _DECIMAL, _NOTHING, _SHORT = b"TDV\0"  # a short string is no type of a field, but of a property
_FIXED = {ord(kind): struct.Struct(f">{code}") for kind, code in zip("tbBsUuIilLfdQ", "?bBhhHiIqqfdQ", strict=True)}
_PROPERTIES = {"HEADERS": ord("F"), "DELIVERY_MODE": ord("B"), "PRIORITY": ord("B"), "TIMESTAMP": ord("Q")}
"""Types of properties.  All others are short strings."""


@lru_cache(100)  # a program sets the same ones in each message
def _layout(flags: int) -> list[tuple[str, int]]:
    """Return the names and types of the properties behind *flags*, in the order in which they are on the wire."""
    order = [(name[5:], flag) for name, flag in vars(spec.BasicProperties).items() if name.startswith("FLAG_")]
    return [(name.lower(), _PROPERTIES.get(name, _SHORT)) for name, flag in order if flags & flag]


def _value(kind: int, data: bytes, offset: int, depth: int = 0) -> tuple[Any, int]:
    """Return the value of a field at *offset*, and the offset behind it.

    :param depth: the number of tables and arrays around the field.
    """
    if kind in _LONG_KINDS:
        begin = offset + 4
        end = begin + _LONG.unpack_from(data, offset)[0]
        if kind == _TEXT:  # by far the most frequent one
            return _text(data[begin:end]), end
        if kind == _BYTES or depth > _MAX_DEPTH:
            return data[begin:end], end
        return (_table if kind == _TABLE else _array)(data, begin, end, depth + 1), end
    if kind == _SHORT:
        end = offset + 1 + data[offset]
        return _text(data[offset + 1 : end]), end
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.unpack_from(data, offset)[0], offset + fixed.size
    if kind == _TIME:
        seconds = int.from_bytes(data[offset : offset + 8], "big")
        return time_of(seconds) or seconds, offset + 8
    if kind == _DECIMAL:  # the number of decimals, and all digits as one integer
        decimals, digits = struct.unpack_from(">Bi", data, offset)
        return Decimal(digits).scaleb(-decimals), offset + 5
    if kind == _NOTHING:
        return None, offset
    raise _Unknown


def _array(data: bytes, offset: int, end: int, depth: int) -> list[Any]:
    found = []
    while offset < end:
        value, offset = _value(data[offset], data, offset + 1, depth)
        found.append(value)
    return found


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


@lru_cache(1)  # messages come in the order of their times
def time_of(seconds: int) -> datetime | None:
    """Return the time of a timestamp; ``None`` if it is none, such as the milliseconds that some programs send."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
