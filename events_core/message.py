"""The values that travel: what is sent and what is received."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

import attrs

__all__ = ["EventMessage", "ReceivedMessage"]

_NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


def _data(value: object) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str):
        raise TypeError("data must be bytes, not str; use EventMessage.from_string(text) to encode text")
    raise TypeError(f"data must be bytes, bytearray or memoryview, not {type(value).__name__}")


def _preview(data: bytes) -> str:
    return repr(data) if len(data) <= 60 else f"{data[:60]!r}… ({len(data)} bytes)"


def _attributes(value: Mapping[str, str]) -> Mapping[str, str]:
    if not value:
        return _NO_ATTRIBUTES
    copy = dict(value)
    for key, text in copy.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"attributes map str to str, not {key!r} to {text!r}")
    return MappingProxyType(copy)


def _ordering_key(value: str | None) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"ordering_key must be str or None, not {type(value).__name__}")
    return value or None


@attrs.frozen(eq=False)
class EventMessage:
    """A message to send.

    Two messages are equal when data, attributes and ordering key are, whether sent or received.

    :raises TypeError: when a field is of the wrong type; ``str`` data names :meth:`from_string`.
    """

    data: bytes = attrs.field(converter=_data, repr=_preview)
    """Payload; ``bytearray`` and ``memoryview`` are copied."""
    attributes: Mapping[str, str] = attrs.field(
        default=_NO_ATTRIBUTES, converter=_attributes, repr=lambda value: repr(dict(value))
    )
    """Read-only copy of what was given."""
    message_id: str | None = None
    """Ignored when sending."""
    ordering_key: str | None = attrs.field(default=None, converter=_ordering_key)
    """Messages with the same key keep their order; ``""`` means ``None``."""

    @classmethod
    def from_string(
        cls,
        text: str,
        *,
        attributes: Mapping[str, str] = _NO_ATTRIBUTES,
        ordering_key: str | None = None,
        encoding: str = "utf-8",
    ) -> EventMessage:
        """A message whose data is *text*, encoded."""
        return EventMessage(text.encode(encoding), attributes, ordering_key=ordering_key)

    @classmethod
    def from_json(
        cls,
        value: object,
        *,
        attributes: Mapping[str, str] = _NO_ATTRIBUTES,
        ordering_key: str | None = None,
    ) -> EventMessage:
        """A message whose data is *value* as compact JSON in UTF-8.

        :raises TypeError: when *value* is not made of JSON types.
        :raises ValueError: for what JSON does not have, such as NaN, or what is nested too deeply.
        """
        import json  # which importing events_core must not cost

        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except RecursionError:
            raise ValueError("the value is nested too deeply for JSON") from None
        return EventMessage(text.encode(), attributes, ordering_key=ordering_key)

    def data_as_string(self, encoding: str = "utf-8") -> str:
        """The data, decoded.

        :raises UnicodeDecodeError: when it is no text in *encoding*.
        """
        return self.data.decode(encoding)

    def data_as_json(self) -> Any:
        """The data, parsed as JSON.

        :raises ValueError: when it is no JSON, or nested too deeply.  The sender controls that.
        """
        import json

        try:
            return json.loads(self.data)
        except RecursionError:
            raise ValueError("the data is JSON that is nested too deeply") from None

    def with_attribute(self, key: str, value: str) -> EventMessage:
        """A new, unsent message with one attribute added or replaced."""
        return self.with_attributes({key: value})

    def with_attributes(self, attributes: Mapping[str, str]) -> EventMessage:
        """A new, unsent message with *attributes* added to, or replacing, its own."""
        return EventMessage(self.data, {**self.attributes, **attributes}, ordering_key=self.ordering_key)

    def with_ordering_key(self, ordering_key: str | None) -> EventMessage:
        """A new, unsent message with another ordering key."""
        return EventMessage(self.data, self.attributes, ordering_key=ordering_key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EventMessage):
            return NotImplemented
        return (
            self.data == other.data and self.ordering_key == other.ordering_key and self.attributes == other.attributes
        )

    def __hash__(self) -> int:
        return hash((self.data, self.ordering_key))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled.
        return EventMessage, (self.data, dict(self.attributes), self.message_id, self.ordering_key)


@attrs.frozen(eq=False, kw_only=True)
class ReceivedMessage(EventMessage):
    """A message as a receive returned it.

    It knows its own delivery: settling it settles that hand-over and no other.  Sent again, or pickled, it is an
    :class:`EventMessage` like any other.
    """

    message_id: str
    """The id that ``send_message`` returned."""
    publish_time: datetime | None = None
    """When the broker stored the message; aware, UTC."""
    delivery_attempt: int | None = None
    """1 for the first delivery, where somebody counts."""
    delivery: object = attrs.field(default=None, repr=False)
    """The receiver's own record of this hand-over; opaque."""
