"""Sending to one topic: requests of up to ten messages, with a result for each.

The engine gathers the messages of a request, and on FIFO it takes at most one of each message group: SQS may store an
entry behind a failed one of its group.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError
from events_sqs.codec import Wire, encode, fifo_id, group_of
from events_sqs.errors import entry_error, translated
from events_sqs.session import Services
from events_sqs.topology import Topic

__all__ = ["Sender"]

_ANSWER_TIMEOUT = 10.0
"""Seconds for the answer to a small request."""
_SLOWEST = 2**16
"""Bytes a second of the slowest network whose requests are waited for."""


class Sender:
    """The sending side of one topic.

    :param limit: bytes of a request, as AWS counts them.
    """

    def __init__(self, services: Services, topic: Topic, limit: int) -> None:
        self._services = services
        self._topic = topic
        self._limit = limit
        self._asked = f"send to {topic}"

    async def send(self, messages: Sequence[EventMessage], ids: Sequence[str]) -> list[str | BrokerError]:
        """Send at most ten messages; return the id of each, or the reason why it was not stored.

        :param ids: an id for each message; without meaning for a standard queue, where SQS chooses it.
        :raises BrokerError: if no message was stored, or that is unknown.
        """
        names = [fifo_id(unique) for unique in ids] if self._topic.is_fifo else ids
        carried = names if self._topic.is_sns and not self._topic.is_fifo else itertools.repeat(None)
        wires = [encode(message, name) for message, name in zip(messages, carried, strict=False)]
        entries = [self._entry(place, wires[place], message, names[place]) for place, message in enumerate(messages)]
        results: list[str | BrokerError] = []
        for start, end in _parts(wires, self._limit):
            size = sum(wire.size for wire in wires[start:end])
            try:
                results += await self._request(entries[start:end], names[start:end], size)
            except BrokerError as error:
                if not start:
                    raise
                # An earlier part is stored.  So the engine must send the rest again without it, whatever the reason:
                # then the rest is a request of its own, with an error of its own.
                again = BrokerError(str(error), error.code, retryable=True)
                again.__cause__ = error
                results += [again] * (len(messages) - start)
                break
        return results

    def _entry(self, place: int, wire: Wire, message: EventMessage, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"Id": str(place), "Message" if self._topic.is_sns else "MessageBody": wire.body}
        if wire.attributes:
            entry["MessageAttributes"] = wire.attributes
        if self._topic.is_fifo:
            entry["MessageGroupId"] = group_of(message, name)
            entry["MessageDeduplicationId"] = name
        return entry

    async def _request(
        self, entries: Sequence[Mapping[str, Any]], names: Sequence[str], size: int
    ) -> list[str | BrokerError]:
        with translated(self._asked):
            async with asyncio.timeout(_ANSWER_TIMEOUT + size / _SLOWEST):
                answer = await self._ask(entries)
        stored = {each["Id"]: each["MessageId"] for each in answer.get("Successful", ())}
        failed = {each["Id"]: each for each in answer.get("Failed", ())}
        return [
            self._result(name, stored.get(entry["Id"]), failed.get(entry["Id"]))
            for entry, name in zip(entries, names, strict=True)
        ]

    async def _ask(self, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        address = self._topic.address
        answer: Mapping[str, Any]
        if self._topic.is_sns:
            answer = await self._services.sns.publish_batch(TopicArn=address, PublishBatchRequestEntries=entries)
        else:
            answer = await self._services.sqs.send_message_batch(QueueUrl=address, Entries=entries)
        return answer

    def _result(self, name: str, stored: str | None, failed: Mapping[str, Any] | None) -> str | BrokerError:
        if stored is not None:
            return name if self._topic.is_sns or self._topic.is_fifo else stored
        if failed is not None:
            return entry_error(self._asked, failed)
        return BrokerError(
            f"{self._asked}: the answer has no result for the message", ErrorCode.TIMEOUT, retryable=True
        )


def _parts(wires: Sequence[Wire], limit: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each part of *wires* that fits in one request."""
    start, size = 0, 0
    for place, wire in enumerate(wires):
        if place > start and size + wire.size > limit:
            yield start, place
            start, size = place, 0
        size += wire.size
    yield start, len(wires)
