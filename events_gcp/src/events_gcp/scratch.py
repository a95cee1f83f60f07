"""A trial on a project: the topics that it creates are deleted when it is over."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from events_core import ErrorCode
from events_core.engine import BrokerError
from events_gcp.endpoint import Endpoint

__all__ = ["created", "creations", "delete_topics"]

_log = logging.getLogger("events_gcp")

_recordings: list[set[str]] = []


@contextmanager
def creations() -> Iterator[set[str]]:
    """The full names of the topics that clients of this process create while this is entered."""
    topics: set[str] = set()
    _recordings.append(topics)
    try:
        yield topics
    finally:
        _recordings.remove(topics)


def created(topic: str) -> None:
    """A client has created *topic*."""
    for topics in _recordings:
        topics.add(topic)


async def delete_topics(endpoint: Endpoint, topics: Collection[str]) -> None:
    """Delete *topics*; what cannot be deleted is logged."""
    from events_gcp.api import Api

    if not topics:
        return
    try:
        api = await Api.open(endpoint, lambda: None, compress=False)
    except BrokerError as error:
        _log.warning("the topics of the trial are left: %s: %s", ", ".join(topics), error)
        return
    for topic in topics:
        try:
            await api.delete_topic(topic)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                _log.warning("a topic of the trial is left: %s", error)
    await api.close()
