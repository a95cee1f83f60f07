"""What a driver raises by mistake, as a failure that the engine knows."""

from __future__ import annotations

import asyncio

from events_core.engine.driver import BrokerError
from events_core.errors import ErrorCode

__all__ = ["UNFORESEEN", "internal", "is_cancelled"]

UNFORESEEN = (Exception, asyncio.CancelledError)
"""What may come out of a driver.  A cancellation that is none of the running task's comes from something that the
driver shares with others; a task that it ended would leave everybody waiting who relies on that task."""


def internal(error: BaseException, what: str = "") -> BrokerError:
    """A failure in place of the unforeseen *error*, to be raised from it.

    :param what: the operation, with a colon.
    :raises CancelledError: *error* itself, where the running task is being cancelled.
    """
    if is_cancelled(error):
        raise error
    failure = BrokerError(f"{what}the backend failed: {error!r}", ErrorCode.INTERNAL)
    failure.__cause__ = error
    return failure


def is_cancelled(error: BaseException) -> bool:
    """Whether *error* is there because the running task is being cancelled."""
    task = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return task is not None and task.cancelling() > 0
