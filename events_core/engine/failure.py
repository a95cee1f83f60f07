"""Mistakes of a driver: exceptions that are no :class:`BrokerError`, turned into failures that the engine knows."""

from __future__ import annotations

import asyncio
import threading

from events_core.engine.driver import BrokerError
from events_core.errors import ErrorCode

__all__ = ["UNFORESEEN", "internal", "is_meant"]

UNFORESEEN = (Exception, asyncio.CancelledError, SystemExit)
"""Exceptions that a driver may let out by mistake.

``SystemExit`` is one of them, because an SDK may call ``sys.exit``.  ``CancelledError`` is one of them too, because a
driver may await a future that another task cancels.  Neither may end a task of the engine, because callers wait for
it."""


def internal(error: BaseException, what: str = "") -> BrokerError:
    """Return a failure with the code ``INTERNAL`` in place of *error*.

    :param what: the operation, with a colon.
    :raises BaseException: *error* itself, if it must end the running task or the program.
    """
    if is_meant(error):
        raise error
    failure = BrokerError(f"{what}the backend failed: {error!r}", ErrorCode.INTERNAL)
    failure.__cause__ = error
    return failure


def is_meant(error: BaseException) -> bool:
    """Return whether *error* must end the running task or the program."""
    if isinstance(error, SystemExit):
        # In the main thread the handler of a signal may have raised it, to end the program.
        return threading.current_thread() is threading.main_thread()
    # A cancellation that was not asked of this task comes from something that the driver awaits.
    task = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return task is not None and task.cancelling() > 0
