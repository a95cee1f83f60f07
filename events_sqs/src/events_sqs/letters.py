"""Dead letters in the form that AWS takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from events_core import EventMessage

__all__ = ["letter_id", "shortened"]

_SOURCE = ("dead_letter_source_topic", "dead_letter_source_subscription", "dead_letter_source_message_id")
_ORIGIN = ("dead_letter_reason", "dead_letter_delivery_attempts", *_SOURCE)
"""The attributes that say where a letter comes from; what is missed least is first."""


def letter_id(letter: EventMessage) -> str:
    """Return 32 hexadecimal digits, which are always the same for one message of one subscription.

    So FIFO recognises a letter that is stored again, because an answer was lost or a process died.
    """
    source = "\n".join(letter.attributes.get(name, "") for name in _SOURCE)
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def shortened(letter: EventMessage, objection: Callable[[EventMessage], str]) -> EventMessage:
    """Return *letter* with as much of its origin as fits next to the message.

    :param objection: returns the reason why a message is too large, or ``""``.
    """
    for name in _ORIGIN:
        if not objection(letter):
            break
        attributes = {each: value for each, value in letter.attributes.items() if each != name}
        letter = EventMessage(letter.data, attributes, ordering_key=letter.ordering_key)
    return letter
