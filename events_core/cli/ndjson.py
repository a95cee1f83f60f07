"""Messages as lines of JSON, which ``send --ndjson`` reads and ``receive --json`` writes; pure."""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn, cast

from events_core import EventMessage, ReceivedMessage
from events_core.arguments import described
from events_core.cli.escaping import escaped_in_json
from events_core.options import did_you_mean

__all__ = ["dump", "dump_message", "parse_message"]

_SENT = ("data", "data_base64", "attributes", "ordering_key")
_RECEIVED = ("json", "message_id", "publish_time", "delivery_attempt")
"""Keys that sending ignores, so that the lines of ``receive --json`` can be sent again."""


def dump(value: Mapping[str, object]) -> bytes:
    """Return *value* as one line, without characters that control a terminal."""
    return escaped_in_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"))).encode() + b"\n"


def dump_message(message: ReceivedMessage) -> bytes:
    """Return *message* as one line.

    Data that is not UTF-8 goes into ``data_base64``.  Data that is JSON is in the line twice: as the string ``data``,
    and as the value ``json``.
    """
    value = None
    try:
        text = message.data_as_string()
        data = {"data": text}
        value = _json_value(text)
    except UnicodeDecodeError:
        data = {"data_base64": base64.b64encode(message.data).decode()}
    published = message.publish_time
    line = dump(
        {
            "message_id": message.message_id,
            **data,
            "attributes": dict(message.attributes),
            "ordering_key": message.ordering_key,
            "publish_time": published.isoformat() if published else None,
            "delivery_attempt": message.delivery_attempt,
        }
    )
    # The text of the value is put in as it is: json.dumps would write 1.10 as 1.1.
    return line if value is None else line[:-2] + b',"json":' + escaped_in_json(value).encode() + b"}\n"


def _json_value(text: str) -> str | None:
    """Return *text* without the space between its tokens if it is JSON that programs can parse, otherwise ``None``.

    A sender must not be able to stop the program that reads the lines.  So JSON that its decoder may refuse is left
    out: an integer of more digits than ``int`` takes, more than :data:`_DEEPEST` nested values, or half of a surrogate
    pair.
    """
    try:
        _STRICT_DECODER.decode(text)
        # Each string apart: of two members of one name, the decoder keeps only the last.
        for string in _ANY_STRING.findall(text):
            if "\\u" in string:
                json.loads(string).encode()
    except (ValueError, RecursionError):
        return None
    brackets = _NO_BRACKETS.sub("", text)
    depth = max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)
    return _SPACE_OR_STRING.sub(r"\1", text) if depth <= _DEEPEST else None


def parse_message(line: bytes, defaults: EventMessage) -> EventMessage | None:
    """Return the message in *line*, or ``None`` for a blank line.

    :param defaults: a message with the attributes and the ordering key for lines that have none.
    :raises ValueError: for a bad line; its text never quotes data.
    """
    line = line.removeprefix(codecs.BOM_UTF8)
    if not line.strip():
        return None
    fields = _parsed(line)
    unknown = [key for key in fields if key not in _SENT + _RECEIVED]
    if unknown:
        raise ValueError(f"unknown key {described(unknown[0])}{did_you_mean(unknown[0], _SENT)}")
    attributes, key = fields.get("attributes"), fields.get("ordering_key")
    return EventMessage(
        _data(fields),
        {**defaults.attributes, **(_attributes(attributes.value) if attributes else {})},
        ordering_key=_ordering_key(key.value) if key else defaults.ordering_key,
    )


class _Member(NamedTuple):
    """One value of an object."""

    value: Any
    text: str
    """The text of the value, as it stands in the line."""


def _parsed(line: bytes) -> dict[str, _Member]:
    try:
        return _object(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None


def _object(text: str) -> dict[str, _Member]:
    """Return the members of the JSON object *text*, each with its own text.

    ``json.loads`` would turn 1.10 into 1.1.  So this function walks through the object itself, and uses the decoder
    only to find where a key or a value ends.
    """
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        _DECODER.decode(text)
        raise ValueError('not a JSON object; write {"data": …}')
    members: dict[str, _Member] = {}
    at = _skip(text, at + 1)
    closed = text[at : at + 1] == "}"
    while not closed:
        key, at = _key(text, at)
        if key in members:
            raise ValueError(f"the key {described(key)} occurs twice")
        decoder = _ATTRIBUTES_DECODER if key == "attributes" else _DECODER
        value, end = decoder.raw_decode(text, at)
        members[key] = _Member(value, text[at:end])
        at = _skip(text, end)
        closed = text[at : at + 1] == "}"
        if not closed:
            at = _expect(",", text, at)
    at = _skip(text, at + 1)
    if at != len(text):
        raise json.JSONDecodeError("Extra data", text, at)
    return members


def _key(text: str, at: int) -> tuple[str, int]:
    """Return the key at *at*, and the index at which its value begins."""
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    key, at = _DECODER.raw_decode(text, at)
    return key, _expect(":", text, _skip(text, at))


def _expect(delimiter: str, text: str, at: int) -> int:
    if text[at : at + 1] != delimiter:
        raise json.JSONDecodeError(f"Expecting {delimiter!r} delimiter", text, at)
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"not JSON: {constant} is no JSON number")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the attribute {described(key)} occurs twice")
        found[key] = value
    return found


_DEEPEST = 100
"""Values within values; jq 1.6 fails at 256, and Python 3.11 at its recursion limit."""

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_SPACE_OR_STRING = re.compile(rf"({_STRING})|[ \t\r\n]+")
_ANY_STRING = re.compile(_STRING)
_NO_BRACKETS = re.compile(rf"{_STRING}|[^][{{}}\"]+")
# int refuses more than 4,300 digits, as it does in the program that reads the line.
_STRICT_DECODER = json.JSONDecoder(parse_constant=_refuse)
# The values of numbers are not used, only their text.  float takes every number; int refuses more than 4,300 digits.
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=_refuse)
_ATTRIBUTES_DECODER = json.JSONDecoder(parse_int=float, parse_constant=_refuse, object_pairs_hook=_unique)


def _data(fields: Mapping[str, _Member]) -> bytes:
    if ("data" in fields) is ("data_base64" in fields):
        raise ValueError("give exactly one of 'data' and 'data_base64'")
    if "data_base64" in fields:
        try:
            return base64.b64decode(fields["data_base64"].value, validate=True)
        except (TypeError, ValueError):
            raise ValueError("'data_base64' is not base64") from None
    value, text = fields["data"]
    try:
        return (value if isinstance(value, str) else text).encode()
    except UnicodeEncodeError:
        raise ValueError("'data' has half of a surrogate pair, which is no text") from None


def _attributes(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("'attributes' must be an object of strings")
    attributes = cast("dict[str, Any]", value)
    for key, text in attributes.items():
        if not isinstance(text, str):
            raise ValueError(f"attribute {described(key)} must be a string")
    return attributes


def _ordering_key(value: object) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError("'ordering_key' must be a string or null")
    return value
