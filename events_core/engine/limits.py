"""The size of a message, and the limits of a broker.  This module does no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from events_core.capabilities import Limits
from events_core.message import EventMessage

__all__ = ["measure", "message_size"]


class _Sized(Protocol):
    @property
    def data(self) -> bytes: ...
    @property
    def attributes(self) -> Mapping[str, str]: ...
    @property
    def ordering_key(self) -> str | None: ...


def message_size(message: _Sized) -> int:
    """Return the bytes of data, attributes and ordering key in UTF-8.  All bounds and limits count these."""
    size = len(message.data)
    if message.ordering_key:
        size += _length(message.ordering_key)
    # This runs for each message that arrives, so it calls no function for each text.
    for key, value in message.attributes.items():
        if key.isascii() and value.isascii():
            size += len(key) + len(value)
        else:
            size += len(key.encode()) + len(value.encode())
    return size


def measure(message: EventMessage, limits: Limits) -> int:
    """Check *message* and return its size in bytes, as :func:`message_size` counts it.

    :raises ValueError: if it is beyond one of *limits*, or its text has half of a surrogate pair, which UTF-8 cannot
        carry.  The error names the limit.
    """
    size = len(message.data)
    if message.ordering_key:
        key_size = _length(message.ordering_key)
        maximum = limits.max_ordering_key_bytes
        if maximum is not None and key_size > maximum:
            raise _beyond(key_size, maximum, "ordering key", "max_ordering_key_bytes")
        size += key_size
    attributes = message.attributes
    if attributes:
        maximum = limits.max_attributes
        if maximum is not None and len(attributes) > maximum:
            raise ValueError(f"it has {len(attributes)} attributes; max_attributes is {maximum}")
        if limits.max_attribute_key_bytes is None and limits.max_attribute_value_bytes is None:
            # All at once and without a call, because this runs for each message.
            text = "".join([*attributes, *attributes.values()])
            size += len(text) if text.isascii() else len(text.encode())
        else:
            size += _attributes_size(attributes, limits)
    maximum = limits.max_message_bytes
    if maximum is not None and size > maximum:
        raise _beyond(size, maximum, "message", "max_message_bytes")
    return size


def _attributes_size(attributes: Mapping[str, str], limits: Limits) -> int:
    longest_key, longest_value = limits.max_attribute_key_bytes, limits.max_attribute_value_bytes
    size = 0
    for key, value in attributes.items():
        # This is _length() twice, written out: it runs for each attribute of each message.
        key_size = len(key) if key.isascii() else len(key.encode())
        value_size = len(value) if value.isascii() else len(value.encode())
        if longest_key is not None and key_size > longest_key:
            raise _beyond(key_size, longest_key, f"attribute key {key!r:.80}", "max_attribute_key_bytes")
        if longest_value is not None and value_size > longest_value:
            raise _beyond(value_size, longest_value, f"attribute {key!r}", "max_attribute_value_bytes")
        size += key_size + value_size
    return size


def _length(text: str) -> int:
    # Nearly all keys and attributes are ASCII, and encoding them only to count would dominate the check of a message.
    return len(text) if text.isascii() else len(text.encode())


def _beyond(size: int, maximum: int, what: str, limit: str) -> ValueError:
    return ValueError(f"its {what} has {size} bytes; {limit} is {maximum}")
