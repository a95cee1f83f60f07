"""The end of a membership: the last commit, and then the group learns that the member leaves.

It runs in the consumer's thread.
"""

from __future__ import annotations

import time

from confluent_kafka.cimpl import Consumer as Native

from events_kafka.assignment import Assignment
from events_kafka.commits import Commits
from events_kafka.health import Health

__all__ = ["leave"]

_LAST_COMMIT = 20.0
"""Seconds for which the thread tries to commit and to leave.  A rebalance delays both until all members have joined."""

_CALLBACKS = 0.02
"""Seconds to wait for callbacks of librdkafka."""


def leave(native: Native, assignment: Assignment, commits: Commits, health: Health, *, announces: bool) -> bool:
    """Commit the last positions, and leave the group; return False if the broker does not answer.

    :param announces: True if the id of the member tells that it has left.
    """
    ends = time.monotonic() + _LAST_COMMIT
    assignment.pause()
    while commits.send(native):
        if not _goes_on(native, health, ends):
            return False
    if announces:
        # During a rebalance the broker handles this only after it.  close() gives up after 5 s and cuts the connection,
        # and the others would wait for this member until its session ends.
        native.unsubscribe()
        while native.memberid():
            if not _goes_on(native, health, ends):
                return False
    return True


def _goes_on(native: Native, health: Health, ends: float) -> bool:
    """Serve librdkafka; return False if the broker does not answer, or if the time is over."""
    native.consume(1, _CALLBACKS)  # it returns no record, because everything is paused
    health.check(native, at_once=True)
    return not health.is_down and time.monotonic() < ends
