"""Steps of many tests with a receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, ReceivedMessage, ReceiveError

from .waiting import until

PATIENCE = 60.0
"""Seconds within which a message that must come does come, also on a busy machine."""


def numbered(count: int, key: str | None = None, size: int = 0) -> list[EventMessage]:
    """Return messages with the numbers from 0."""
    return [EventMessage(b"%d" % number + b" " * size, ordering_key=key) for number in range(count)]


def numbers(messages: Sequence[ReceivedMessage]) -> list[int]:
    return [int(message.data) for message in messages]


async def take(receiver: EventReceiver, seconds: float = PATIENCE) -> ReceivedMessage:
    """Return the next message."""
    message = await receiver.receive_message(seconds)
    assert message is not None, "no message came"
    return message


async def gather(receiver: EventReceiver, count: int) -> list[ReceivedMessage]:
    """Return *count* messages, in the order in which they come."""
    # All of them must be here first: a message waits while the one before it of its key is held.
    await until(lambda: receiver.stats.buffered >= count, PATIENCE)
    received = list(await receiver.receive_messages(count, PATIENCE))
    assert len(received) == count, f"{len(received)} of {count} came"
    return received


async def settle_all(receiver: EventReceiver, count: int) -> list[int]:
    """Receive and acknowledge until all numbers below *count* have come; return each number that came, in order."""
    came: list[int] = []
    while len(set(came)) < count:
        some = await receiver.receive_messages(100, PATIENCE)
        assert some, f"{len(set(came))} of {count} came"
        came += numbers(some)
        await receiver.acknowledge_messages(some)
    return came


async def settle_data(receiver: EventReceiver, expected: set[bytes]) -> None:
    """Receive until messages with all *expected* data are acknowledged; some may expire before, and come again."""
    left = set(expected)
    async with asyncio.timeout(PATIENCE):
        while left:
            some = await receiver.receive_messages(10, 1)
            left -= {message.data for message in await acknowledge_what_is_left(receiver, some)}


async def take_after(receiver: EventReceiver, code: ErrorCode) -> ReceivedMessage:
    """Return the next message.  A receive that fails with *code* is repeated."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                message = await receiver.receive_message(5)
            except ReceiveError as error:
                if error.code is not code:
                    raise
            else:
                if message is not None:
                    return message


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
