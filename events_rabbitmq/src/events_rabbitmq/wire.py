"""Frames of AMQP 0-9-1 that this backend writes and reads itself, because pika's own way costs too much or fails.

* A batch of messages is one write.  pika makes three frame objects for each message, and calls the socket each time.
* Acknowledgements of a batch are one write too.
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
from typing import Any

from pika import frame, spec  # type: ignore[import-untyped]

from events_core import EventMessage

__all__ = [
    "APP_ID",
    "FRAME",
    "FRAME_BYTES",
    "KEY_HEADER",
    "acknowledgement",
    "content_header",
    "method_frame",
    "own_properties",
    "publishing",
    "read_frame",
]

APP_ID = "events-core"
"""The property ``app-id`` of messages that this backend sends.  It says that ``message-id`` is unique, and that all
headers are attributes."""

KEY_HEADER = "x-ordering-key"
"""The header that carries the ordering key."""

_END = b"\xce"
FRAME = struct.Struct(">BHI")
"""The begin of a frame: its type, its channel and the size of its payload."""
FRAME_BYTES = 8
"""Bytes of a frame around its payload."""

_B = spec.BasicProperties
_FLAGS = _B.FLAG_HEADERS | _B.FLAG_DELIVERY_MODE | _B.FLAG_MESSAGE_ID | _B.FLAG_TIMESTAMP | _B.FLAG_APP_ID
_OWN = _FLAGS.to_bytes(2, "big")
# Type, channel and size of the frame; class, weight, size of the body and flags; size of the table of headers.
_HEADER = struct.Struct(">BHIHHQHI")
_HEADER_BYTES = _HEADER.size - 7
_ACK = struct.Struct(">BHIIQBB")
_LONG = struct.Struct(">I")
_APP_ID = bytes([len(APP_ID)]) + APP_ID.encode()
_KEY = bytes([len(KEY_HEADER)]) + KEY_HEADER.encode() + b"S"


def method_frame(channel: int, method: Any) -> bytes:
    """Return the frame of *method*, an object of :mod:`pika.spec`."""
    return bytes(frame.Method(channel, method).marshal())


def acknowledgement(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return the frame that acknowledges *tag*, and all before it if *multiple*."""
    return _ACK.pack(spec.FRAME_METHOD, channel, 13, spec.Basic.Ack.INDEX, tag, multiple, 0xCE)


def publishing(
    channel: int, method: bytes, ids: Iterable[str], messages: Sequence[EventMessage], now: int, frame_max: int
) -> bytes:
    """Return the frames that publish *messages*.

    :param method: the frame of ``basic.publish``, the same for all.
    :param ids: the id of each message.
    :param now: the time of publishing, in whole seconds: AMQP has no finer timestamp.
    :param frame_max: bytes of the largest frame.
    """
    pieces: list[bytes] = []
    for name, message in zip(ids, messages, strict=True):
        table = _table_of(message)
        body, identity = message.data, name.encode()
        # After the table: delivery mode 2, which means persistent; the id; the time; the id of this library.
        tail = b"\x02%c%b%b%b" % (len(identity), identity, now.to_bytes(8, "big"), _APP_ID)
        size = _HEADER_BYTES + len(table) + len(tail)
        pieces += (
            method,
            _HEADER.pack(spec.FRAME_HEADER, channel, size, 60, 0, len(body), _FLAGS, len(table)),
            table,
            tail,
            _END,
        )
        longest = frame_max - FRAME_BYTES
        for start in range(0, len(body), longest):
            part = body if len(body) <= longest else body[start : start + longest]
            pieces += (FRAME.pack(spec.FRAME_BODY, channel, len(part)), part, _END)
    return b"".join(pieces)


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
    if data[0] == spec.FRAME_HEADER:
        return content_header(int.from_bytes(data[1:3], "big"), data[7:-1])
    return frame.decode_frame(data)[1]


def own_properties(payload: bytes) -> tuple[dict[str, Any], str, int] | None:
    """Return headers, id and time from the payload of a header frame; ``None`` if another program made the message."""
    if payload[12:14] != _OWN:
        return None
    end = 18 + _LONG.unpack_from(payload, 14)[0]
    # See publishing() for the order.
    begin = end + 2
    end_of_id = begin + payload[end + 1]
    if payload[end_of_id + 8 :] != _APP_ID:
        return None
    headers = _table(payload, 18, end)
    return headers, payload[begin:end_of_id].decode(), int.from_bytes(payload[end_of_id : end_of_id + 8], "big")


def content_header(channel: int, payload: bytes) -> Any:
    """Return the header frame with this *payload* as pika would, with headers of any type."""
    _, _, size, flags = struct.unpack_from(">HHQH", payload)
    properties = spec.BasicProperties()
    if not flags & _B.FLAG_HEADERS:
        properties.decode(payload[12:])
        return frame.Header(channel, size, properties)
    start = 14
    for flag in (_B.FLAG_CONTENT_TYPE, _B.FLAG_CONTENT_ENCODING):
        if flags & flag:
            start += 1 + payload[start]
    begin = start + 4
    end = begin + _LONG.unpack_from(payload, start)[0]
    # pika decodes all the rest.
    properties.decode((flags & ~_B.FLAG_HEADERS).to_bytes(2, "big") + payload[14:start] + payload[end:])
    properties.headers = _table(payload, begin, end)
    return frame.Header(channel, size, properties)


def _table(data: bytes, offset: int, end: int) -> dict[str, Any]:
    """Return the table of fields in *data*.  Fields behind one of an unknown type are left out: its length is unknown.

    Texts that are not UTF-8 stay ``bytes``.
    """
    found: dict[str, Any] = {}
    while offset < end:
        size = data[offset]
        name = data[offset + 1 : offset + 1 + size].decode(errors="backslashreplace")
        offset += 1 + size
        if data[offset] == _TEXT:  # by far the most frequent one
            begin = offset + 5
            offset = begin + _LONG.unpack_from(data, offset + 1)[0]
            found[name] = _text(data[begin:offset])
            continue
        try:
            found[name], offset = _value(data, offset)
        except _Unknown:
            break
    return found


_TEXT = ord("S")


class _Unknown(Exception):
    """A field has a type that nobody has specified."""


_FIXED = {
    ord(kind): struct.Struct(f">{code}")
    for kind, code in {
        **{"t": "?", "b": "b", "B": "B", "s": "h", "U": "h", "u": "H", "I": "i", "i": "I"},
        **{"l": "q", "L": "q", "f": "f", "d": "d", "T": "Q"},
    }.items()
}


def _value(data: bytes, offset: int) -> tuple[Any, int]:
    """Return the value of the field at *offset*, and the offset behind it."""
    kind = data[offset]
    offset += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        value = fixed.unpack_from(data, offset)[0]
        return (_time(value) if kind == 0x54 else value), offset + fixed.size
    if kind == 0x56:  # V: nothing
        return None, offset
    if kind == 0x44:  # D: the number of decimals, and all digits as one integer
        decimals, digits = struct.unpack_from(">Bi", data, offset)
        return Decimal(digits).scaleb(-decimals), offset + 5
    if kind not in b"SxAF":
        raise _Unknown
    begin = offset + 4
    end = begin + _LONG.unpack_from(data, offset)[0]
    if kind == 0x41:  # A: an array
        return _array(data, begin, end), end
    if kind == 0x46:  # F: a table
        return _table(data, begin, end), end
    return (_text(data[begin:end]) if kind == _TEXT else data[begin:end]), end


def _array(data: bytes, offset: int, end: int) -> list[Any]:
    found = []
    while offset < end:
        value, offset = _value(data, offset)
        found.append(value)
    return found


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _time(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):  # for example milliseconds, which some programs send
        return seconds
