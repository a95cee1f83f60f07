"""The requests of a receiver to its queue: receive, delete, and change visibility timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery
from events_sqs.codec import SYSTEM_ATTRIBUTES, Receipt, decode
from events_sqs.errors import entry_error, translated
from events_sqs.topology import Queue

__all__ = ["Calls"]

_ANSWER_TIME = 10.0
"""Seconds that an answer may take, in addition to the time for which SQS waits for messages."""

_OLD_HANDLE = ("ReceiptHandleIsInvalid", "MessageNotInflight")
"""Codes of an entry whose receipt handle is too old, or whose message is deleted."""


class Calls:
    """The requests of one receiver.

    :param sqs: a client of aiobotocore.
    :param lease: the visibility timeout of messages that are received, in seconds.
    """

    def __init__(self, sqs: Any, queue: Queue, subscription: str, lease: int) -> None:
        self._sqs = sqs
        self._url = queue.url
        self._subscription = subscription
        self._loop = asyncio.get_running_loop()
        self._receiving: dict[str, Any] = {
            "QueueUrl": queue.url,
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
        what = f"receive from subscription {self._subscription!r}"
        try:
            with translated(what):
                async with asyncio.timeout(wait + _ANSWER_TIME):
                    answer = await self._sqs.receive_message(**asked)
        except TimeoutError as error:
            raise BrokerError(f"{what}: no answer", ErrorCode.TIMEOUT, retryable=True) from error
        received = self._loop.time()
        return [decode(message, received) for message in answer.get("Messages", ())]

    async def delete(self, receipts: Sequence[Receipt]) -> Sequence[BrokerError | None]:
        """Delete messages, 10 at most, and return the result of each.

        :raises BrokerError: if no result is known.
        """
        entries = [{"Id": str(place), "ReceiptHandle": each.handle} for place, each in enumerate(receipts)]
        what = f"acknowledge in subscription {self._subscription!r}"
        with translated(what):
            answer = await self._sqs.delete_message_batch(QueueUrl=self._url, Entries=entries)
        return self._results(what, answer, len(entries))

    async def hide(self, receipts: Sequence[tuple[Receipt, int]]) -> Sequence[BrokerError | None]:
        """Let messages, 10 at most, come again after so many seconds each, and return the result of each.

        :raises BrokerError: if no result is known.
        """
        entries = [
            {"Id": str(place), "ReceiptHandle": each.handle, "VisibilityTimeout": seconds}
            for place, (each, seconds) in enumerate(receipts)
        ]
        what = f"change visibility timeouts in subscription {self._subscription!r}"
        with translated(what):
            answer = await self._sqs.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)
        return self._results(what, answer, len(entries))

    def _results(self, what: str, answer: Mapping[str, Any], count: int) -> Sequence[BrokerError | None]:
        successful = answer.get("Successful", ())
        if len(successful) == count:
            return [None] * count
        done = {each["Id"] for each in successful}
        failed = {each["Id"]: self._error(what, each) for each in answer.get("Failed", ())}
        unknown = BrokerError(f"{what}: SQS has not answered for one", ErrorCode.UNAVAILABLE, retryable=True)
        return [None if str(place) in done else failed.get(str(place), unknown) for place in range(count)]

    def _error(self, what: str, failed: Mapping[str, Any]) -> BrokerError:
        text = failed.get("Message") or ""
        # A FIFO queue says "The receipt handle has expired", with another code.
        if failed["Code"].rpartition(".")[2] in _OLD_HANDLE or "receipt handle has expired" in text:
            return BrokerError(
                f"{what}: the receipt handle is too old ({failed['Code']}: {text}); settle the new delivery",
                ErrorCode.EXPIRED,
            )
        return entry_error(what, failed)
