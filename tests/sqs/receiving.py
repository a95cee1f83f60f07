"""What many tests do with a receiver."""

from __future__ import annotations

from collections.abc import Sequence

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, ReceivedMessage

PATIENCE = 60.0
"""Seconds within which a message that must come does come, also on a busy machine."""


def numbered(count: int, key: str | None = None) -> list[EventMessage]:
    """Return messages with the numbers from 0."""
    return [EventMessage(b"%d" % number, ordering_key=key) for number in range(count)]


def numbers(messages: Sequence[ReceivedMessage]) -> list[int]:
    return [int(message.data) for message in messages]


async def take(receiver: EventReceiver, seconds: float = PATIENCE) -> ReceivedMessage:
    """Return the next message."""
    message = await receiver.receive_message(seconds)
    assert message is not None, "no message came"
    return message


async def settle_all(receiver: EventReceiver, count: int) -> list[int]:
    """Receive and acknowledge until all numbers below *count* have come; return each number that came, in order."""
    came: list[int] = []
    while len(set(came)) < count:
        some = await receiver.receive_messages(100, PATIENCE)
        assert some, f"{len(set(came))} of {count} came"
        came += numbers(some)
        await receiver.acknowledge_messages(some)
    return came


async def acknowledge_what_is_left(
    receiver: EventReceiver, messages: Sequence[ReceivedMessage]
) -> Sequence[ReceivedMessage]:
    """Acknowledge *messages*, and return those whose deliveries had not expired."""
    try:
        await receiver.acknowledge_messages(messages)
    except AcknowledgeError as error:
        if any(each.code is not ErrorCode.EXPIRED for each in error.failed.values()):
            raise
        return [message for message in messages if message.message_id not in error.failed]
    return messages
