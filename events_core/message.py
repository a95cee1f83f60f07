"""The values that travel: a message to send, and a message as it was received."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

__all__ = ["EventMessage", "ReceivedMessage"]

_NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


def _data(value: bytes | bytearray | memoryview) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    # Not every caller has a type checker.  ``bytes(5)`` would be five zeroes.
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


@attrs.frozen(eq=False, init=False)
class EventMessage:
    """A message to send.

    Two messages are equal if their data, attributes and ordering keys are equal, whether sent or received.

    :raises TypeError: if an argument has a wrong type.  For ``str`` data, the error names :meth:`from_string`.
    """

    data: bytes = attrs.field(converter=_data, repr=_preview)
    """The payload.  A ``bytearray`` or ``memoryview`` is copied."""
    attributes: Mapping[str, str] = attrs.field(
        default=_NO_ATTRIBUTES, converter=_attributes, repr=lambda value: repr(dict(value))
    )
    """A read-only copy of the mapping that was given."""
    message_id: str | None = attrs.field(default=None, init=False)
    """``None``: the broker chooses the id when the message is sent.  See :attr:`ReceivedMessage.message_id`."""
    ordering_key: str | None = attrs.field(default=None, converter=_ordering_key)
    """Messages with the same key keep their order; ``""`` means ``None``."""

    if TYPE_CHECKING:

        def __init__(
            self,
            data: bytes | bytearray | memoryview,
            attributes: Mapping[str, str] = ...,
            *,
            ordering_key: str | None = None,
        ) -> None: ...

    else:

        def __init__(self, data, attributes=_NO_ATTRIBUTES, *pickled, ordering_key=None) -> None:
            message_id = None
            if pickled:
                # A pickle calls the class with its four fields, as ``__reduce__`` says.  Three arguments would be a
                # caller who takes the third one for the ordering key.
                if len(pickled) != 2:
                    raise TypeError("name the ordering key: EventMessage(data, attributes, ordering_key=…)")
                message_id, ordering_key = pickled
            # A converter is called only where it has something to do, because this runs for each message.
            _set_data(self, data if type(data) is bytes else _data(data))
            _set_attributes(self, _attributes(attributes) if attributes else _NO_ATTRIBUTES)
            _set_message_id(self, message_id)
            _set_ordering_key(self, None if ordering_key is None else _ordering_key(ordering_key))

    @classmethod
    def from_string(
        cls,
        text: str,
        *,
        attributes: Mapping[str, str] = _NO_ATTRIBUTES,
        ordering_key: str | None = None,
        encoding: str = "utf-8",
    ) -> EventMessage:
        """Return a message whose data is *text*, encoded."""
        return EventMessage(text.encode(encoding), attributes, ordering_key=ordering_key)

    @classmethod
    def from_json(
        cls,
        value: object,
        *,
        attributes: Mapping[str, str] = _NO_ATTRIBUTES,
        ordering_key: str | None = None,
    ) -> EventMessage:
        """Return a message whose data is *value* as compact JSON in UTF-8.

        :raises TypeError: if *value* has a part that is of no JSON type.
        :raises ValueError: if JSON cannot express *value*, for example NaN, or if it is nested too deeply.
        """
        import json  # here, because ``import events_core`` must be quick

        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except RecursionError:
            raise ValueError("the value is nested too deeply for JSON") from None
        return EventMessage(text.encode(), attributes, ordering_key=ordering_key)

    def data_as_string(self, encoding: str = "utf-8") -> str:
        """Return the data, decoded.

        :raises UnicodeDecodeError: if it is not text in *encoding*.
        """
        return self.data.decode(encoding)

    def data_as_json(self) -> Any:
        """Return the data, parsed as JSON.

        :raises ValueError: if it is not JSON, or nested too deeply.  The sender decides what is in it.
        """
        import json

        try:
            return json.loads(self.data)
        except RecursionError:
            raise ValueError("the data is JSON that is nested too deeply") from None

    def with_attribute(self, key: str, value: str) -> EventMessage:
        """Return a new, unsent message with one attribute added or replaced."""
        return self.with_attributes({key: value})

    def with_attributes(self, attributes: Mapping[str, str]) -> EventMessage:
        """Return a new, unsent message with *attributes* added to its own; an equal name is replaced."""
        return EventMessage(self.data, {**self.attributes, **attributes}, ordering_key=self.ordering_key)

    def with_ordering_key(self, ordering_key: str | None) -> EventMessage:
        """Return a new, unsent message with another ordering key."""
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
        # A mapping proxy cannot be pickled.  Pickles of every version call the class with these four arguments.
        return EventMessage, (self.data, dict(self.attributes), self.message_id, self.ordering_key)


# The class is frozen, so its own constructor must go around ``__setattr__``; this is the fastest way.
_set_data, _set_attributes, _set_message_id, _set_ordering_key = (
    getattr(EventMessage, name).__set__ for name in ("data", "attributes", "message_id", "ordering_key")
)


@attrs.frozen(eq=False, kw_only=True)
class ReceivedMessage(EventMessage):
    """A message as a receive returned it.

    It knows its own delivery: settling the message settles that hand-over and no other.  If it is sent again or
    pickled, it becomes an :class:`EventMessage`.
    """

    message_id: str
    """The id that ``send_message`` returned."""
    publish_time: datetime | None = None
    """The time at which the broker stored the message; aware, in UTC."""
    delivery_attempt: int | None = None
    """The number of this delivery, from 1; ``None`` if deliveries are not counted."""
    delivery: object = attrs.field(default=None, repr=False)
    """The receiver's own record of this hand-over; opaque."""
