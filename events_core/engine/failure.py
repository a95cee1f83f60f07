"""What a driver raises by mistake, as a failure that the engine knows."""

from __future__ import annotations

import asyncio
import threading

from events_core.engine.driver import BrokerError
from events_core.errors import ErrorCode

__all__ = ["UNFORESEEN", "internal", "is_meant"]

UNFORESEEN = (Exception, asyncio.CancelledError, SystemExit)
"""What may come out of a driver, an SDK that exits included.  A cancellation that is none of the running task's comes
from something that the driver shares with others; a task that it ended would leave everybody waiting who relies on
that task."""


def internal(error: BaseException, what: str = "") -> BrokerError:
    """A failure in place of the unforeseen *error*, to be raised from it.

    :param what: the operation, with a colon.
    :raises BaseException: *error* itself, where it ends the running task or the program.
    """
    if is_meant(error):
        raise error
    failure = BrokerError(f"{what}the backend failed: {error!r}", ErrorCode.INTERNAL)
    failure.__cause__ = error
    return failure


def is_meant(error: BaseException) -> bool:
    """Whether *error* is there because the running task is being cancelled, or the program ended."""
    if isinstance(error, SystemExit):
        return threading.current_thread() is threading.main_thread()  # a signal's handler may have raised it there
    task = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return task is not None and task.cancelling() > 0
