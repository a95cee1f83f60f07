"""A trial run on a cluster, after which the topics that it created are deleted."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from events_core.engine import BrokerError
from events_kafka.options import KafkaOptions

__all__ = ["created", "creations"]

_log = logging.getLogger("events_kafka")

# The names of the topics that each trial under way has created.  Clients add to them on the I/O thread, and a trial
# reads its own when they are closed, so no lock is needed.
_records: list[set[str]] = []


def created(topic: str) -> None:
    """Record that a client has created *topic*, or may have done so."""
    for record in _records:
        record.add(topic)


@asynccontextmanager
async def creations(options: KafkaOptions) -> AsyncGenerator[None, None]:
    """Delete, on leaving, all topics that this process has created since.  Kafka forgets their positions with them."""
    record: set[str] = set()
    _records.append(record)
    try:
        yield
    finally:
        _records.remove(record)
        if record:
            await _delete(options, sorted(record))


async def _delete(options: KafkaOptions, topics: list[str]) -> None:
    """Delete *topics*, and log what cannot be deleted."""
    from events_kafka.admin import Administrator  # imports the SDK, as every client that created a topic has done
    from events_kafka.topology import Topology

    admin = Administrator(options)
    try:
        await admin.open()
        for topic in topics:
            try:
                await Topology(admin, topic, options).delete_topic()
            except BrokerError as error:
                _log.warning("a trial has left something behind: %s", error)
    except BrokerError as error:
        _log.warning("a trial has left the topics %s behind: %s", ", ".join(topics), error)
    finally:
        await admin.close()
