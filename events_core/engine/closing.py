"""Closing: who calls whom, in which order, on which thread, and in what time (C1 to C3).

A close ends the application's calls first, then the engine's tasks, then the driver, then the thread.  In this order
nothing can open what has been closed already.

A close never misses an operation that begins at the same time.  The operation first registers itself, and then checks
whether the client is closing.  The close first sets its flag, and then looks for registered operations.  So at least
one of the two sees the other.

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

1. ``Feed.stop_fetching``; then give back the deliveries that were never handed out;
2. wait until nothing is held and no request to fetch is out, or until :meth:`CloseTime.patience` is over;
3. give back the rest, and wait until the broker has answered all settlements and no request to fetch is out, or until
   :meth:`CloseTime.flush` is over;
4. cancel the settler's request, then the lease keeper, if they still run;
5. ``Source.close``.

Home is the engine's thread; for an inline driver, it is the loop of the first caller.  A close always ends,
for three reasons:

* Each caller has a timer in its own loop.  If the home's thread hangs, perhaps in the kernel, the caller logs the
  thread's name and returns.  The thread closes everything when it goes on.  If the home is the loop of the first caller
  and that loop stands still, the next caller does the closing itself.
* Each step at home has a share of the time that is left (:meth:`CloseTime.step`).  The home ends before its callers
  give up.
* A task is cancelled again and again (:func:`cancel_all`), because a library may swallow a cancellation.

No step is in a ``finally`` clause.  If a loop is closed without ending its tasks, the garbage collector runs the
``finally`` clauses of these tasks later, in any thread.  That thread may already hold the lock that a step takes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

__all__ = ["SHORTEST_CLOSE", "CloseTime", "cancel_all", "end_worker"]

_log = logging.getLogger("events_core.engine")

SHORTEST_CLOSE = 2.0
"""Seconds that a close may always take, even if its timeout is shorter."""
RESERVE = 2.0
"""The largest reserve, in seconds: the last part of a timeout, in which the broker is told what was settled, and the
rest is given back."""
STEP = 2.0
"""The longest time of one step at home, in seconds.  A source may ask for more (``Source.close_time``)."""
SHORTEST_STEP = 0.05
"""Seconds that a step has even if no time is left.  Steps that need no answer of a broker then still succeed."""


class CloseTime:
    """The time of one close.  If there are several callers, the shortest timeout counts.

    The client and each receiver have one.  :meth:`hasten` and :meth:`begin` run under the lock of that client or
    receiver.  The other methods need no lock: if another caller is shortening the time, the next step sees it.
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
        """Start closing; at home.  If the time is over already, because the thread was hanging, begin a shortest close.

        Otherwise no time would be left for giving anything back.
        """
        if time.monotonic() >= self._ends:
            self._gives_up = self._ends = math.inf
            self.hasten(0)

    def patience(self) -> float:
        """Return the seconds that are left to wait for the application to settle, and for sends."""
        return self._gives_up - time.monotonic()

    def flush(self) -> float:
        """Return the seconds that are left to tell the broker what was settled.  They end at half of the reserve."""
        return (self._gives_up + self._ends) / 2 - time.monotonic()

    def step(self, longest: float = STEP) -> float:
        """Return the seconds that the next step may take: half of what is left, so that time is left for the others."""
        # The last eighth of the reserve stays free.  If the home used it too, it would end at the moment at which its
        # callers give up, and they would warn of a thread that hangs.
        ends = (self._gives_up + 7 * self._ends) / 8
        return max(SHORTEST_STEP, min(longest, (ends - time.monotonic()) / 2))


async def cancel_all(tasks: Iterable[asyncio.Task[Any] | None], within: float) -> None:
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


async def end_worker(task: asyncio.Task[None] | None, within: float) -> None:
    """Cancel *task*, which should run until it is cancelled, and wait for its end, for *within* seconds at most.

    If an error has ended the task earlier, log that error.
    """
    await cancel_all([task], within)
    if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
        _log.error("%s had died: %r", task.get_name(), task.exception())


def _described(task: asyncio.Task[Any]) -> str:
    return f"{task.get_name()} ({getattr(task.get_coro(), '__qualname__', task.get_coro())})"
