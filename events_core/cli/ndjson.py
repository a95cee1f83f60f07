"""Messages as lines of JSON: what ``send --ndjson`` reads and ``receive --json`` writes; pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, NoReturn, cast

from events_core import EventMessage, ReceivedMessage
from events_core.cli.escaping import escaped_in_json
from events_core.options import did_you_mean

__all__ = ["dump", "dump_message", "parse_message"]

_SENT = ("data", "data_base64", "attributes", "ordering_key")
_RECEIVED = ("message_id", "publish_time", "delivery_attempt")
"""Ignored when sending, so that what was received can be sent again."""


def dump(value: Mapping[str, object]) -> bytes:
    """Return *value* as one line, without a character that a terminal would obey."""
    return escaped_in_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"))).encode() + b"\n"


def dump_message(message: ReceivedMessage) -> bytes:
    """*message* as one line; data that is no UTF-8 goes into ``data_base64``."""
    try:
        data = {"data": message.data_as_string()}
    except UnicodeDecodeError:
        data = {"data_base64": base64.b64encode(message.data).decode()}
    published = message.publish_time
    return dump(
        {
            "message_id": message.message_id,
            **data,
            "attributes": dict(message.attributes),
            "ordering_key": message.ordering_key,
            "publish_time": published.isoformat() if published else None,
            "delivery_attempt": message.delivery_attempt,
        }
    )


def parse_message(line: bytes, defaults: EventMessage) -> EventMessage | None:
    """The message that *line* says, with the attributes and ordering key of *defaults* where it has none of its own.

    ``None`` for a blank line.

    :raises ValueError: saying what is wrong, without quoting data.
    """
    if not line.strip():
        return None
    fields = _object(line)
    unknown = [key for key in fields if key not in _SENT + _RECEIVED]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}{did_you_mean(unknown[0], _SENT)}")
    return EventMessage(
        _data(fields),
        {**defaults.attributes, **_attributes(fields.get("attributes", {}))},
        ordering_key=_ordering_key(fields.get("ordering_key", defaults.ordering_key)),
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        value: object = json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError('not a JSON object; write {"data": …}')
    return cast("dict[str, Any]", value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"not JSON: {constant} is no JSON number")


def _data(fields: Mapping[str, Any]) -> bytes:
    if ("data" in fields) is ("data_base64" in fields):
        raise ValueError("give exactly one of 'data' and 'data_base64'")
    if "data_base64" in fields:
        try:
            return base64.b64decode(fields["data_base64"], validate=True)
        except (TypeError, ValueError):
            raise ValueError("'data_base64' is not base64") from None
    data = fields["data"]
    try:
        return data.encode() if isinstance(data, str) else EventMessage.from_json(data).data
    except UnicodeEncodeError:
        raise ValueError("'data' has half of a surrogate pair, which is no text") from None


def _attributes(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("'attributes' must be an object of strings")
    attributes = cast("dict[str, Any]", value)
    for key, text in attributes.items():
        if not isinstance(text, str):
            raise ValueError(f"attribute {key!r} must be a string")
    return attributes


def _ordering_key(value: object) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError("'ordering_key' must be a string or null")
    return value
