"""A trial run on a project, after which the topics that it created are deleted."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from events_core import ErrorCode
from events_core.engine import BrokerError
from events_gcp.endpoint import Endpoint

__all__ = ["created", "creations", "delete_topics"]

_log = logging.getLogger("events_gcp")

# The sets of all trials under way.  Clients add to them on the I/O thread, and a trial reads its set when they are
# closed, so no lock is needed.
_recordings: list[set[str]] = []


@contextmanager
def creations() -> Iterator[set[str]]:
    """Yield a set, and add the full name of each topic that this process creates inside the block."""
    topics: set[str] = set()
    _recordings.append(topics)
    try:
        yield topics
    finally:
        _recordings.remove(topics)


def created(topic: str) -> None:
    """Record that a client has created *topic*."""
    for topics in _recordings:
        topics.add(topic)


async def delete_topics(endpoint: Endpoint, topics: Collection[str]) -> None:
    """Delete *topics*, and log those that cannot be deleted."""
    from events_gcp.api import Api

    if not topics:
        return
    try:
        api = await Api.open(endpoint, lambda: None, compress=False)
    except BrokerError as error:
        _log.warning("the topics of the trial were not deleted: %s: %s", ", ".join(topics), error)
        return
    for topic in topics:
        try:
            await api.delete_topic(topic)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                _log.warning("a topic of the trial was not deleted: %s", error)
    await api.close()
