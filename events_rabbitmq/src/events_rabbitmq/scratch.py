"""A trial run on a virtual host, after which the exchanges and queues that it declared are deleted."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple

from events_core.engine import BrokerError
from events_rabbitmq.options import RabbitMQOptions

__all__ = ["Declared", "declarations", "declared"]

_log = logging.getLogger("events_rabbitmq")


class Declared(NamedTuple):
    """An exchange or a queue that a client has declared."""

    kind: Literal["exchange", "queue"]
    name: str


# The records of all trials under way.  AMQP lists nothing, so the clients write down what they declare.  They do so on
# the I/O thread, and a trial reads its record when they are closed, so no lock is needed.
_records: list[set[Declared]] = []


def declared(kind: Literal["exchange", "queue"], name: str) -> None:
    """Record that a client is about to declare an exchange or a queue."""
    for record in _records:
        record.add(Declared(kind, name))


@asynccontextmanager
async def declarations(options: RabbitMQOptions) -> AsyncGenerator[None, None]:
    """Delete, on leaving, all that this process has declared since."""
    record: set[Declared] = set()
    _records.append(record)
    try:
        yield
    finally:
        _records.remove(record)
        if record:
            await _delete(options, sorted(record))


async def _delete(options: RabbitMQOptions, record: Collection[Declared]) -> None:
    """Delete everything in *record*, and log what cannot be deleted.  Deleting what does not exist succeeds."""
    from events_rabbitmq.links import Link, Servers  # imports pika, as every client that declared something has done

    link = Link(Servers(options, "events-core scratch"))
    try:
        connection = await link.get()
        for kind, name in record:
            try:
                await connection.ask(f"delete {kind} {name!r}", f"{kind}_delete", name)
            except BrokerError as error:
                _log.warning("a trial has left something behind: %s", error)
    except BrokerError as error:
        names = ", ".join(f"{kind} {name!r}" for kind, name in record)
        _log.warning("a trial has left everything behind: %s: %s", names, error)
    finally:
        await link.close()
