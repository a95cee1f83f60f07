"""A trial run on an account, after which the topics and queues that it created are deleted."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

from events_core import ErrorCode
from events_core.engine import BrokerError
from events_sqs.options import SQSOptions

__all__ = ["Created", "created", "creations"]

_log = logging.getLogger("events_sqs")


class Created(NamedTuple):
    """A topic or a queue that a client has created."""

    kind: Literal["topic", "queue"]
    address: str
    """The ARN of the topic, or the URL of the queue."""


# What each trial under way has created.  Clients add to the records on the I/O thread, and a trial reads its own when
# they are closed, so no lock is needed.
_records: list[set[Created]] = []


def created(kind: Literal["topic", "queue"], address: str) -> None:
    """Record that a client has created a topic or a queue."""
    for record in _records:
        record.add(Created(kind, address))


@asynccontextmanager
async def creations(options: SQSOptions) -> AsyncGenerator[None, None]:
    """Delete, on leaving, all topics and queues that this process has created since."""
    record: set[Created] = set()
    _records.append(record)
    try:
        yield
    finally:
        _records.remove(record)
        if record:
            await _delete(options, sorted(record))


async def _delete(options: SQSOptions, record: Collection[Created]) -> None:
    """Delete everything in *record*, and log what cannot be deleted."""
    from events_sqs.session import Services  # imports the SDK, as every client that created something has done

    try:
        services = await Services.open(options)
    except BrokerError as error:
        _log.warning("a trial has left %s behind: %s", ", ".join(address for _, address in record), error)
        return
    try:
        for each in record:
            await _delete_one(services, each)
    finally:
        await services.close()


async def _delete_one(services: Any, each: Created) -> None:
    from events_sqs.errors import translated

    delete: Callable[..., Awaitable[object]]
    # SNS deletes the subscriptions of a topic with it.
    if each.kind == "topic":
        delete, where = services.sns.delete_topic, {"TopicArn": each.address}
    else:
        delete, where = services.sqs.delete_queue, {"QueueUrl": each.address}
    try:
        with translated(f"delete {each.kind} {each.address!r}"):
            await delete(**where)
    except BrokerError as error:
        if error.code is not ErrorCode.NOT_FOUND:  # the trial itself deletes what is ephemeral
            _log.warning("a trial has left something behind: %s", error)
