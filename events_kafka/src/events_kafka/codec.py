"""From records to deliveries, and from messages to records."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from events_core import EventMessage
from events_core.engine import Delivery

if TYPE_CHECKING:
    from confluent_kafka import Message

__all__ = ["Token", "decode", "headers_of", "identity"]


class Token(NamedTuple):
    """The handle of a delivery."""

    partition: int
    offset: int
    claim: int
    """The number of the assignment with which the partition came to this receiver."""
    record: Message


def identity(topic: str, partition: int, offset: int) -> str:
    """Return the id of a message."""
    return f"{topic}/{partition}/{offset}"


def decode(record: Message, claim: int) -> Delivery:
    """Return the delivery of *record*, at attempt 1.  It never raises, whatever program has sent the record."""
    raise NotImplementedError


def headers_of(message: EventMessage) -> list[tuple[str, bytes]]:
    """Return the headers of the record that carries *message*."""
    raise NotImplementedError
