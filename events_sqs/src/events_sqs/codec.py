"""From messages of SQS to deliveries, and from messages to the entries of a request.

A message whose data is text travels as it is: its body is the text, and its attributes are message attributes of the
type ``String``.  Any program of AWS can read it.  Whatever SQS cannot carry goes into one more attribute,
:data:`PACKED`.  That is the message's id alone, or a JSON object with these members, each only if it is needed:

``id``
    The message's id.  SQS gives each copy that SNS delivers an id of its own, so the sender cannot know that one.  Not
    on FIFO, where the id is the deduplication id, and not with ``topology=queue``, where SQS's own id serves.
``body``
    ``"base64"``: the body is the data in base64, because they are not UTF-8 or have a character that SQS forbids.
    ``"empty"``: the data are empty, which a body cannot be.
``attributes``
    The attributes with an empty value, a forbidden character or an odd name, and those that would be too many.
``key``
    The ordering key, if it cannot be the id of a message group.  That id is then a hash of the key.

On FIFO, the id of the message group is the ordering key.  A message without a key is its own group: the id of the group
is its own id.  On a standard queue, a message group serves fairness and keeps no order, so it is no key.

An id that travels with the message is not SQS's own.  A program may copy a message with it, to this queue or another.
If a receiver has a message and gets another one with the same id, the later one gets SQS's id too (:class:`Names`).

A message of any other program arrives by these rules.  Its data is the body, in UTF-8.  An attribute of the type
``Number`` becomes its text, and one of the type ``Binary`` its base64.  Its id is that of SQS.  An attribute
:data:`PACKED` that does not follow the rules above is an attribute as any other.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import attrs

from events_core import EventMessage
from events_core.engine import Delivery
from events_sqs.limits import MAX_ATTRIBUTES

__all__ = [
    "PACKED",
    "SYSTEM_ATTRIBUTES",
    "Names",
    "Receipt",
    "Wire",
    "decode",
    "encode",
    "fifo_id",
    "size_objection",
]

PACKED = "events_core"
"""The attribute with all that SQS cannot carry in another way."""

SYSTEM_ATTRIBUTES = ("ApproximateReceiveCount", "MessageDeduplicationId", "MessageGroupId", "SentTimestamp")
"""The system attributes that :func:`decode` needs from ``ReceiveMessage``."""

# "Amazon SQS message metadata" (SQS developer guide): the characters and the form of names.
_NAME = re.compile(r"(?!(?i:aws|amazon)\.)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""A character that no body and no value may have (``SendMessage``, SQS API reference)."""
_GROUP = re.compile(r"[!-~]{1,128}")
_ID = re.compile(r"[0-9a-f]{32}")
_FIFO_ID = re.compile(r"events-[0-9a-f]{32}")
_TYPE = "String"


@attrs.define(eq=False)
class Receipt:
    """The handle of a delivery: the token of :class:`~events_core.engine.Delivery`."""

    handle: str
    """What ``DeleteMessage`` and ``ChangeMessageVisibility`` need; of the latest receipt only."""
    received: float
    """The :func:`~events_core.engine.uptime` at which the message came; not later than SQS may have taken it."""
    message: Mapping[str, Any]
    """The message, as ``ReceiveMessage`` returned it."""
    is_deleting: bool = False
    """True if a request to delete the message has left; its answer may be lost."""
    until: float = 0.0
    """The :func:`~events_core.engine.uptime` at which its visibility timeout is over."""


class Wire(NamedTuple):
    """A message as AWS carries it."""

    body: str
    attributes: dict[str, dict[str, str]]
    """The message attributes, in the form of the API."""
    size: int
    """Bytes, as AWS counts them: the body, and the name, type and value of each attribute."""


def fifo_id(unique: str) -> str:
    """Return the id of a message on FIFO.

    :param unique: 32 hexadecimal digits.  The form tells our deduplication ids from those of other programs, which may
        give the same one to several messages.
    """
    return f"events-{unique}"


def group_of(message: EventMessage, message_id: str) -> str:
    """Return the id of the message group on FIFO."""
    key = message.ordering_key
    if key is None:
        return message_id
    return key if _GROUP.fullmatch(key) else f"sha256-{hashlib.sha256(key.encode()).hexdigest()}"


def encode(message: EventMessage, message_id: str | None) -> Wire:
    """Return *message* as AWS carries it.

    :param message_id: the id to carry in :data:`PACKED`; ``None`` if receivers know it otherwise.
    """
    packed: dict[str, Any] = {} if message_id is None else {"id": message_id}
    body = _body(message.data, packed)
    key = message.ordering_key
    if key is not None and not _GROUP.fullmatch(key):
        packed["key"] = key
    attributes: dict[str, dict[str, str]] = {}
    size = len(body) if body.isascii() else len(body.encode())
    if message.attributes or packed:
        size += _add_attributes(message.attributes, packed, attributes)
    return Wire(body, attributes, size)


def _body(data: bytes, packed: dict[str, Any]) -> str:
    if not data:
        packed["body"] = "empty"
        return "-"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        pass
    else:
        if _is_plain(text):
            return text
    packed["body"] = "base64"
    return b64encode(data).decode()


def _is_plain(text: str) -> bool:
    # All printable characters are allowed, and asking for them is much quicker than the search.
    return text.isprintable() or _FORBIDDEN.search(text) is None


@lru_cache(maxsize=1024)
def _is_name(name: str) -> bool:
    """Return whether an attribute may have *name*.  A program uses few names, and uses them often."""
    return len(name) <= 256 and name != PACKED and _NAME.fullmatch(name) is not None


def _add_attributes(given: Mapping[str, str], packed: dict[str, Any], attributes: dict[str, dict[str, str]]) -> int:
    """Put *given* and *packed* into *attributes*; return their bytes."""
    odd: dict[str, str] = {}
    size = 0
    for name, value in given.items():
        if value and _is_name(name) and _is_plain(value):
            attributes[name] = {"DataType": _TYPE, "StringValue": value}
        else:
            odd[name] = value
    if len(attributes) + bool(odd or packed) > MAX_ATTRIBUTES:
        for name in [*attributes][MAX_ATTRIBUTES - 1 :]:
            odd[name] = attributes.pop(name)["StringValue"]
    if odd:
        packed["attributes"] = odd
    if packed:
        # Usually the id is alone.  As JSON it would cost twice as much on SNS, which quotes its characters.
        is_alone = len(packed) == 1 and "id" in packed
        text = packed["id"] if is_alone else json.dumps(packed, separators=(",", ":"))
        attributes[PACKED] = {"DataType": _TYPE, "StringValue": text}
    for name, attribute in attributes.items():
        value = attribute["StringValue"]
        size += len(name) + len(_TYPE) + (len(value) if value.isascii() else len(value.encode()))
    return size


def size_objection(message: EventMessage, message_id: str | None, limit: int) -> str:
    """Return the reason why *message* is too large for AWS, or ``""``.

    :param message_id: an id as long as the one that :func:`encode` will get.
    :param limit: bytes, as AWS counts them.
    """
    key, attributes = message.ordering_key or "", message.attributes
    # A character has 12 bytes at most: as two escapes in JSON.  Encoding each message twice would cost more than this.
    most = 12 * (len(key) + sum(len(name) + len(value) + 2 for name, value in attributes.items()))
    if most + len(message.data) * 4 // 3 + _MOST_OVERHEAD <= limit:
        return ""
    size = encode(message, message_id).size
    if size <= limit:
        return ""
    counted = "with its attributes, and in base64 if it is no text"
    return f"it has {size} bytes as AWS counts them ({counted}); max_message_bytes is {limit}"


_MOST_OVERHEAD = 200
"""The most bytes of a message next to its data, attributes and key: :data:`PACKED` with an id."""


def decode(message: Mapping[str, Any], received: float, *, is_fifo: bool) -> Delivery:
    """Return the delivery of *message*, a member of ``Messages`` in the answer of ``ReceiveMessage``.

    It never raises, whatever program has sent the message.

    :param received: the :func:`~events_core.engine.uptime` at which the answer came.
    :param is_fifo: whether the queue keeps the order of keys.  If not, the delivery has no key, so it can be sent on.
    """
    system = message.get("Attributes", {})
    attributes = {name: _text(value) for name, value in message.get("MessageAttributes", {}).items()}
    message_id: str = message["MessageId"]
    data: bytes | None = None
    key: str | None = system.get("MessageGroupId")
    unique = system.get("MessageDeduplicationId")
    if unique is not None and _FIFO_ID.fullmatch(unique):
        message_id = unique
        key = None if key == unique else key
    if PACKED in attributes:
        unpacked = _unpacked(attributes[PACKED], message["Body"])
        if unpacked is not None:
            del attributes[PACKED]
            attributes |= unpacked.attributes
            message_id, data, key = unpacked.id or message_id, unpacked.data, unpacked.key or key
    # Positional, because this is done for every message.
    return Delivery(
        message_id,
        message["Body"].encode(errors="surrogatepass") if data is None else data,
        attributes,
        key if is_fifo else None,
        _time(system.get("SentTimestamp")),
        int(system.get("ApproximateReceiveCount", 1)),
        Receipt(message["ReceiptHandle"], received, message),
    )


class Names:
    """The ids of what one receiver has, so that two messages never share one (rule R7: duplicates)."""

    def __init__(self) -> None:
        # A receipt lives as long as its delivery.
        self._known: WeakValueDictionary[str, Receipt] = WeakValueDictionary()

    def distinguish(self, delivery: Delivery) -> None:
        """Change the id of *delivery* if it is that of another message which is here."""
        own = delivery.token.message["MessageId"]
        name = delivery.message_id
        if name == own:
            return
        known, longer = self._known.get(name), f"{name}#{own}"
        # Asked for both, because a copy keeps its name while it is here.
        if longer in self._known or (known is not None and known.message["MessageId"] != own):
            name = delivery.message_id = longer
        self._known[name] = delivery.token


def _text(value: Mapping[str, Any]) -> str:
    if "StringValue" in value:
        text: str = value["StringValue"]
        return text
    return b64encode(value.get("BinaryValue", b"")).decode()


class _Unpacked(NamedTuple):
    """The content of :data:`PACKED`."""

    id: str | None
    data: bytes | None
    key: str | None
    attributes: dict[str, str]


def _unpacked(text: str, body: str) -> _Unpacked | None:
    """Return the content of an attribute :data:`PACKED`; ``None`` if another program has made it."""
    if _ID.fullmatch(text):
        return _Unpacked(text, None, None, {})
    try:
        found = json.loads(text)
        match found.get("body"):
            case None:
                data = None
            case "empty":
                data = b""
            case "base64":
                data = b64decode(body, validate=True)
            case _:
                return None
        attributes = found.get("attributes", {})
        texts = [*attributes.items(), (found.get("id", ""), found.get("key", ""))]
    except (AttributeError, ValueError, RecursionError):
        return None
    if not all(isinstance(each, str) for pair in texts for each in pair):
        return None
    return _Unpacked(found.get("id"), data, found.get("key"), attributes)


def _time(milliseconds: str | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
