"""Closing: who calls whom, in which order, on which thread, and in what time (C1 to C3).

Closing goes from the outside in, so that nothing opens what has been closed already.

What begins during a close never gets lost: an operation first registers itself where the close looks, and then looks
whether the client is closing.  A close sets its flag first, and then looks for operations.  So one of them sees the
other.

``EngineClient.close`` runs in the loop of its caller:

1. it tells the publisher and the receivers how much time there is (:class:`CloseTime`);
2. it runs ``EngineClient._shut`` at home, once for all callers, and waits until that has ended;
3. it waits until the home's thread has ended, if this client was the last one on it.

``EngineClient._shut`` runs at home:

1. flush the publisher and close all receivers, at the same time;
2. ``Home.end_tasks``: cancel what is left: requests, attempts to connect and to subscribe;
3. ``Driver.close``;
4. ``Home.stop``: let the thread end.

``EngineReceiver.close`` runs ``EngineReceiver._shut`` at home in the same way:

1. ``Feed.stop_fetching``; then what was never handed out goes back;
2. wait until nothing is held, or until the patience of the callers is over;
3. give back the rest, and wait until the settlements are told;
4. cancel the settler's request and the keeping of leases, if they go on;
5. ``Source.close``.

Home is the engine's thread; for an inline driver, it is the loop of the first caller.  A close always ends,
for three reasons:

* Each caller has a timer in its own loop.  If the home's thread hangs, perhaps in the kernel, the caller logs the
  thread's name and returns; what is open ends when the thread goes on.  If the loop of the first caller stands still,
  the next caller ends what is open itself.
* Each step at home has a share of the time that is left.
* A task is cancelled again and again (:func:`cancelled`), because a library may swallow a cancellation.

No step is in a ``finally`` clause.  If a loop is closed without ending its tasks, the garbage collector runs those
clauses later.  It may do so in any thread, perhaps in one that holds the lock which they take.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

__all__ = ["SHORTEST_CLOSE", "CloseTime", "cancelled", "ended"]

_log = logging.getLogger("events_core.engine")

SHORTEST_CLOSE = 2.0
"""Seconds that a close may take if its timeout is shorter."""
RESERVE = 2.0
"""Most seconds of a close's timeout that are reserved for telling the broker what was settled, and for giving back the
rest."""
STEP = 2.0
"""Most seconds of one step at home, such as closing a source."""
SHORTEST_STEP = 0.05
"""Seconds that a step has although the time is over.  Steps that need no answer of a broker then still succeed."""


class CloseTime:
    """The time of one close.  If there are several callers, the shortest timeout counts.

    The owner's lock guards :meth:`hasten` and :meth:`begin`.  The other methods read without it: a value that another
    caller is just making smaller is seen at the next step.
    """

    def __init__(self) -> None:
        self._gives_up = math.inf
        self._ends = math.inf

    def hasten(self, timeout: float) -> None:
        """Take no longer than *timeout* from now."""
        timeout = max(0.0, timeout)  # -inf minus a quarter of it is NaN, and a time of NaN is never over
        now = time.monotonic()
        self._gives_up = min(self._gives_up, now + timeout - min(RESERVE, timeout / 4))
        self._ends = min(self._ends, now + max(timeout, SHORTEST_CLOSE))

    def begin(self) -> None:
        """Begin at home.  If the time is over, because the thread was hanging, take the shortest time from now."""
        if time.monotonic() >= self._ends:
            self._gives_up = self._ends = math.inf
            self.hasten(0)

    def patience(self) -> float:
        """Return the seconds that are left to wait for the application to settle, and for sends."""
        return self._gives_up - time.monotonic()

    def flush(self) -> float:
        """Return the seconds that are left to tell the broker of settlements: 5/8 of the reserve."""
        return (3 * self._gives_up + 5 * self._ends) / 8 - time.monotonic()

    def step(self) -> float:
        """Return the seconds that the next step may take: half of what is left, so that time is left for the others."""
        return max(SHORTEST_STEP, min(STEP, (self._ends - time.monotonic()) / 2))


async def cancelled(tasks: Iterable[asyncio.Task[Any] | None], within: float) -> None:
    """Cancel *tasks* of the running loop and wait until they have ended, for *within* seconds at most.

    A library may swallow a cancellation and go on, as redis-py 8.1 sometimes does on CPython 3.11.  So a task that goes
    on is cancelled again.  The second cancellation comes late, because it would also interrupt a task that is cleaning
    up.  A warning names each task that still runs at the end.
    """
    now = asyncio.get_running_loop().time
    ends = now() + within
    # The second cancellation comes after 7/8 of the time, and then four more follow quickly.
    pause = within * 7 / 8
    while running := [task for task in tasks if task is not None and not task.done()]:
        left = ends - now()
        if left <= 0:
            for task in running:
                _log.warning("%s still runs, although it was cancelled again and again", _described(task))
            return
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=min(left, pause))
        pause = within / 32


async def ended(task: asyncio.Task[None] | None, within: float) -> None:
    """Cancel *task*, which works until it is cancelled, and wait for its end; log the error that has ended it before.

    It takes *within* seconds at most.
    """
    await cancelled([task], within)
    if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
        _log.error("%s had died: %r", task.get_name(), task.exception())


def _described(task: asyncio.Task[Any]) -> str:
    return f"{task.get_name()} ({getattr(task.get_coro(), '__qualname__', task.get_coro())})"
