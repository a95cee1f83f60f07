"""The requests of a receiver to its queue: receive, delete, and change visibility timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery, uptime
from events_sqs.codec import SYSTEM_ATTRIBUTES, Names, Receipt, decode
from events_sqs.errors import entry_error, translated
from events_sqs.topology import Queue

__all__ = ["Calls"]

_ANSWER_TIME = 10
"""Seconds that an answer may take, in addition to those for which SQS was asked to wait.  If a connection is silent,
the next try is sent over another one."""


class Calls:
    """The requests of one receiver.

    :param sqs: a client of aiobotocore.
    :param lease: the visibility timeout of messages that are received, in seconds.
    """

    def __init__(self, sqs: Any, queue: Queue, subscription: str, lease: int) -> None:
        self._sqs = sqs
        self._url = queue.url
        self._is_fifo = queue.is_fifo
        self._subscription = subscription
        self._lease = lease
        self._names = Names()
        self._receiving: dict[str, Any] = {
            "VisibilityTimeout": lease,
            "MessageSystemAttributeNames": list(SYSTEM_ATTRIBUTES),
            "MessageAttributeNames": ["All"],
        }

    async def receive(self, limit: int, wait: int, attempt_id: str | None) -> Sequence[Delivery]:
        """Receive up to *limit* messages, 10 at most, for which SQS waits *wait* seconds.

        :param attempt_id: the ``ReceiveRequestAttemptId``, on FIFO.
        :raises BrokerError: if that failed.
        """
        asked = dict(self._receiving, MaxNumberOfMessages=limit, WaitTimeSeconds=wait)
        if attempt_id is not None:
            asked["ReceiveRequestAttemptId"] = attempt_id
        latest = uptime() + wait
        answer = await self._ask(self._sqs.receive_message, asked, "receive", wait)
        # SQS counts from the moment at which it took the messages.  It did not wait longer, however late this is.
        received = min(uptime(), latest)
        deliveries = [decode(message, received, is_fifo=self._is_fifo) for message in answer.get("Messages", ())]
        for delivery in deliveries:
            delivery.token.until = received + self._lease
            self._names.distinguish(delivery)
        return deliveries

    async def delete(self, receipts: Sequence[Receipt]) -> Sequence[BrokerError | None]:
        """Delete messages, 10 at most, and return the result of each.

        :raises BrokerError: if no result is known.
        """
        entries = [{"Id": str(place), "ReceiptHandle": each.handle} for place, each in enumerate(receipts)]
        return await self._batch(self._sqs.delete_message_batch, entries, "acknowledge")

    async def hide(self, receipts: Sequence[tuple[Receipt, int]]) -> Sequence[BrokerError | None]:
        """Let messages, 10 at most, come again after so many seconds each, and return the result of each.

        :raises BrokerError: if no result is known.
        """
        entries = [
            {"Id": str(place), "ReceiptHandle": each.handle, "VisibilityTimeout": seconds}
            for place, (each, seconds) in enumerate(receipts)
        ]
        return await self._batch(self._sqs.change_message_visibility_batch, entries, "change visibility timeouts")

    async def _ask(
        self, operation: Callable[..., Awaitable[Any]], parameters: Mapping[str, Any], what: str, wait: int = 0
    ) -> Mapping[str, Any]:
        with translated(f"{what} in subscription {self._subscription!r}"):
            async with asyncio.timeout(wait + _ANSWER_TIME):
                answer: Mapping[str, Any] = await operation(QueueUrl=self._url, **parameters)
                return answer

    async def _batch(
        self, operation: Callable[..., Awaitable[Any]], entries: Sequence[Mapping[str, Any]], what: str
    ) -> Sequence[BrokerError | None]:
        try:
            answer = await self._ask(operation, {"Entries": entries}, what)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
            # The queue was deleted, and its messages with it.
            gone = BrokerError(str(error), ErrorCode.EXPIRED)
            gone.__cause__ = error
            return [gone] * len(entries)
        if len(answer.get("Successful", ())) == len(entries):
            return [None] * len(entries)
        results: dict[str, BrokerError | None] = {each["Id"]: None for each in answer.get("Successful", ())}
        for failed in answer.get("Failed", ()):
            results[failed["Id"]] = entry_error(f"{what} in subscription {self._subscription!r}", failed)
        unknown = BrokerError(f"{what}: SQS has not answered for one", ErrorCode.UNAVAILABLE, retryable=True)
        return [results.get(entry["Id"], unknown) for entry in entries]
