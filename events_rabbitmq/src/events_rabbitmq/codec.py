r"""From AMQP messages to deliveries.

Messages of this library have the property ``app-id=events-core``; all their headers are attributes.  A message of any
other program arrives as text by one rule:

* Each header becomes an attribute.  Texts stay as they are, numbers and times (ISO 8601) are written out, ``true`` and
  ``false`` too, nothing becomes ``""``.  Bytes are read as UTF-8, and others in them are escaped, as in ``\xff``.
  Arrays and tables, such as ``x-death``, become JSON.
* The headers ``CC`` and ``BCC`` become ``cc`` and ``bcc``: sent on, they would go to further queues.
* Each property in :data:`_PROPERTIES` becomes an attribute of that name, unless there is a header of the name.
* The id is that of the property ``message-id``, then ``#`` and a digest of the message.  So it is the same at each
  delivery, and messages that differ have different ids although their program gives all of them one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
from pika import spec  # type: ignore[import-untyped]

from events_core.engine import Delivery, Outcome
from events_rabbitmq.limits import FULL_CAPABILITIES, KEY_HEADER
from events_rabbitmq.wire import APP_ID, properties, time_of

if TYPE_CHECKING:
    from events_rabbitmq.consuming import Consumer

__all__ = ["NAMELESS", "NativeMessage", "Token", "decode", "native"]

_log = logging.getLogger("events_rabbitmq")

_PROPERTIES = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "type",
    "user_id",
    "app_id",
)


_RENAMED = {"CC": "cc", "BCC": "bcc"}
_MAX_KEY_BYTES = FULL_CAPABILITIES.limits.max_ordering_key_bytes


NAMELESS = "#"
"""The begin of the id of a message without ``message-id``.  Equal messages have equal ids then."""


@attrs.define(eq=False)
class Token:
    """The handle of a delivery."""

    consumer: Consumer
    tag: int
    method: bytes
    """The payload of the frame, as the server sent it; also ``header``."""
    header: bytes
    settled: Outcome | None = None
    """What was written for the delivery, perhaps without an answer: ``NACK`` if it goes back, ``REJECT`` if it became a
    dead letter."""


class NativeMessage(NamedTuple):
    """A message as pika shows it."""

    method: Any
    """A ``pika.spec.Basic.Deliver``."""
    properties: Any
    """A ``pika.BasicProperties``."""
    body: bytes


def native(delivery: Delivery) -> NativeMessage:
    """Return *delivery* as pika shows it."""
    token = delivery.token
    return NativeMessage(
        spec.Basic.Deliver().decode(token.method, 4), spec.BasicProperties(**properties(token.header)), delivery.data
    )


def decode(consumer: Consumer, method: bytes, header: bytes, body: bytes) -> Delivery:
    """Return the delivery of a message.  One whose header cannot be read has a body and no attributes.

    :param method: the payload of its method frame, ``basic.deliver``; *header* is that of its header frame.
    """
    start = 5 + method[4]  # behind the class, the method and the consumer tag
    token = Token(consumer, int.from_bytes(method[start : start + 8], "big"), method, header)
    is_again = method[start + 8] == 1
    try:
        return _delivery(token, is_again, properties(header), body)
    except Exception:  # an error here would end the channel, and the message would come again and again
        _log.warning("a message has a header that cannot be read; it arrives without attributes", exc_info=True)
        return _delivery(token, is_again, {}, body)


def _delivery(token: Token, is_again: bool, found: dict[str, Any], body: bytes) -> Delivery:
    attributes = found.get("headers", {})
    # Quorum queues count from 1, and write this header when a message comes again.  Before, it is the publisher's.
    failures = attributes.pop("x-delivery-count", 0)
    attributes.pop("x-acquired-count", None)
    key = attributes.pop(KEY_HEADER, None)
    if any(value.__class__ is not str for value in attributes.values()):
        attributes = {_RENAMED.get(name, name): _text(value) for name, value in attributes.items()}
    key, identity = _text(key), _text(found.get("message_id"))
    is_foreign = found.get("app_id") != APP_ID
    if is_foreign:
        attributes = {**{name: _text(found[name]) for name in _PROPERTIES if name in found}, **attributes}
    if is_foreign or not identity:
        identity = f"{identity}{NAMELESS}{_digest(key, attributes, body)}"
    if len(key) > 256:  # a character has 4 bytes at most
        key = key.encode()[:_MAX_KEY_BYTES].decode(errors="ignore")
    return Delivery(
        identity,
        body,
        attributes,
        key or None,
        time_of(found["timestamp"]) if "timestamp" in found else None,
        failures + 1 if is_again and isinstance(failures, int) and failures > 0 else 1,
        token,
    )


def _digest(key: str, attributes: Mapping[str, str], body: bytes) -> str:
    return blake2b(json.dumps([key, attributes]).encode() + body, digest_size=12).hexdigest()


def _text(value: Any) -> str:
    """Return the text that stands for the value of a header."""
    match value:
        case str():
            return value
        case None:
            return ""
        case bytes():
            return value.decode(errors="backslashreplace")
        case bool():
            return "true" if value else "false"
        case datetime():
            return value.isoformat()
        case list() | dict():
            return json.dumps(value, default=_text)
        case _:
            return str(value)
