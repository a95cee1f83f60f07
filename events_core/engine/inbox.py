"""The state of one receiver, and the lock that guards it.

Every receiver has one lock, :attr:`Inbox.lock`.  It guards

* the ledger: the deliveries that are here, and every field of a :class:`Delivery` that the engine writes;
* the settlements under way, and the tickets of the callers that wait for them;
* of the feed: whether it waits for room, and the failure that the next receive raises;
* of the receiver: its flags for closing.

These take it:

=============  ======================  ================================================================
part           runs in                 takes the lock to
=============  ======================  ================================================================
receiver       any thread and loop     hand out, begin settlements, read statistics, close
settler        callers' threads        wait for settlements, give them up
settler        home                    pick what leaves next, record the broker's answers
feed           home                    see how much room there is, buffer what arrived
feed           any thread              drop what the source has lost (``Source.lost``)
lease keeper   home                    give back what is overdue, pick the leases to renew, drop the lost
=============  ======================  ================================================================

The rules:

1. Hold it briefly, and never across an ``await``.  All methods of the ledger and of the settlements need it, except
   those named below.  In other classes "Under the lock" marks the methods whose caller must hold it.
2. No driver is called under it, with one exception.  ``fetch``, ``settle`` and ``next_due`` of an inline source never
   wait, and the engine calls them under it.  So an inline driver may take its own locks, and may not call the receiver.
   It logs later, in ``Source.unlocked``, because a log handler may call the receiver.
   ``Source.lost`` calls back under it too; that callback only looks at tokens.
3. It is not reentrant.  Call these after releasing it, because they may take it: ``Settler.pump`` (inline, it settles
   before it returns) and ``Settler.progressed``.
4. Under it you may take only a leaf lock: that of a ``WaitingRoom``, of the home's thread, or of an inline driver.
   A thread that holds one of these never takes this one.  So no two threads can wait for each other.
5. The garbage collector may run code of ours in a thread that holds it.  Such code only appends to
   :attr:`Inbox.abandoned` (``docs/design/engine.rst``).

What is read or written without it, and why that is safe:

* ``Settler.pump`` reads ``Settlements.queued`` and ``may_leave``.  If another thread changes them at that moment, there
  are two cases.  A request is out: it looks at the queue again, under the lock, when it ends.  Or the thread has queued
  something: it calls ``pump`` itself afterwards.
* ``deque.append`` and ``popleft`` are atomic, so :attr:`Inbox.abandoned` needs no lock.
* ``Settlements.abort`` and ``has_deferred`` are one store and one read, at home.
* ``token`` and ``lease_until`` of a delivery are written only at home, where the lease keeper reads and writes them.
* The counters and times of a prefetching feed are written only at home, and read for statistics only.
* ``EngineReceiver._closed`` changes once, from False to True.  Tasks that wait for it are woken afterwards, and look
  again.
* ``EngineReceiver._empty`` is set under the lock, together with a look at what it waits for.  ``_progressed`` reads it
  after it has held the lock itself.  So one of the two sees the other's change.
"""

from __future__ import annotations

import threading
from collections import deque

from events_core.engine.driver import Outcome
from events_core.engine.ledger import Ledger
from events_core.engine.settlements import Settlements
from events_core.message import ReceivedMessage

__all__ = ["Inbox"]


class Inbox:
    """The deliveries of one receiver and their settlements, behind one lock."""

    def __init__(self, ledger: Ledger) -> None:
        self.lock = threading.Lock()
        self.ledger = ledger
        self.settlements = Settlements(ledger)
        self.abandoned: deque[ReceivedMessage] = deque()
        """Messages whose processing the garbage collector has ended, in any thread.  Append without the lock."""

    def give_back_overdue(self, now: float) -> None:
        """Queue for the broker what is past its deadline (R6), and what was abandoned.  Under the lock."""
        while self.abandoned:
            begun = self.ledger.begin([self.abandoned.popleft()], Outcome.RETURN, None, now)
            self.settlements.enqueue(begun.asked)
        overdue = self.ledger.expire(now)
        if overdue:
            self.settlements.enqueue(overdue)
