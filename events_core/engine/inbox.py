"""The state of one receiver, and the lock that guards it.

Every receiver has one lock, :attr:`Inbox.lock`.  It guards these fields:

* in the ledger, all: the deliveries that are here, and every field of a :class:`Delivery` that the engine writes;
* in the settlements, all: what is under way, and the tickets of the callers that wait for it;
* in the feed: whether it waits for room, and the failure that the next receive raises;
* in the receiver: its flags for closing.

These parts take the lock.  *Home* is where the driver runs: a thread of the engine, or the caller's thread if the
driver is inline (``home.py``).

=============  ======================  ================================================================
part           runs in                 takes the lock to
=============  ======================  ================================================================
receiver       any thread and loop     hand out, begin settlements, read statistics, close
settler        any thread              wait for settlements, give them up
settler        home                    pick what leaves next, record the broker's answers
feed           home                    see how much room there is, buffer what arrived
feed           any thread              drop what the source has lost (``Source.lost``), fetch again
lease keeper   home                    give back what is overdue, pick the leases to renew, drop the lost
=============  ======================  ================================================================

The rules:

1. Hold the lock briefly, and never across an ``await``.  All methods of the ledger and of the settlements need it,
   except those in the list at the end.  In other classes "Under the lock" marks the methods whose caller must hold it.
2. The engine calls a driver under the lock in three cases only.

   * ``fetch``, ``settle`` and ``next_due`` of an inline source, because they never wait.  So an inline driver may take
     its own locks, and must not call the receiver.  It logs later, in ``Source.unlocked``, because a log handler may
     call the receiver.
   * ``acknowledge_at_once``, which only takes a note.  It may take a lock of the driver.
   * The function that a driver passes to ``Source.lost``.  It only compares tokens.
3. The lock is not reentrant.  Release it before you call ``Settler.pump`` or ``Settler.progressed``, because both may
   take it.  An inline ``pump`` even settles before it returns.
4. While you hold the lock, you may take only a lock of a ``WaitingRoom``, of the home's thread, or of a driver.  A
   thread that holds one of these never takes the receiver's lock.  So no two threads can wait for each other.
5. The garbage collector may run code of ours in a thread that holds the lock.  Such code only appends to
   :attr:`Inbox.abandoned` or sets :attr:`Inbox.is_left` (``docs/design/engine.rst``).

Some fields are read or written without the lock.  Each is safe for a reason:

* ``Settler.pump`` reads ``Settlements.queued`` and ``may_leave``.  If it reads them too early, it does nothing although
  a settlement is queued.  That settlement leaves all the same: the thread that queued it calls ``pump`` afterwards, and
  a request that ends looks at the queue again, under the lock.  It also reads ``is_waiting`` and ``is_worth_it``, which
  only shorten a wait.
* ``deque.append`` and ``popleft`` are atomic, so :attr:`Inbox.abandoned` needs no lock.
* ``Settlements.abort`` writes one field, and ``has_deferred`` reads one.  Both run at home.
* ``token`` and ``lease_until`` of a delivery are written only at home, where the lease keeper reads and writes them.
  ``Ledger.renewing`` is written and read only there.
* The counters and times of a prefetching feed are written only at home.  Other threads read them for statistics only.
* ``EngineReceiver._closed`` changes once, from False to True.  The tasks that wait for it are woken after that, and
  then read it again.
* ``EngineReceiver._until`` checks its condition and sets ``_empty`` in one use of the lock.  ``_progressed`` runs after
  another thread has changed the ledger under the lock.  So either the check sees that change, or ``_progressed`` sees
  ``_empty`` and wakes its waiter.
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

    def __init__(self, ledger: Ledger, settle_unit: int = 1) -> None:
        self.lock = threading.Lock()
        self.ledger = ledger
        self.settlements = Settlements(ledger, settle_unit)
        self.abandoned: deque[ReceivedMessage] = deque()
        """Messages that no one will settle, because the garbage collector has ended the coroutine that processed them.
        It does so in any thread, so append without the lock."""
        self.is_left = False
        """True when an ``async with`` of the receiver was left by ``GeneratorExit``, perhaps in the garbage collector,
        which cannot close the receiver.  The lease keeper then closes it."""

    def give_back_overdue(self, now: float) -> None:
        """Give back what is past its deadline (R6) and what was abandoned; :attr:`settlements` queues it.

        Under the lock.
        """
        while self.abandoned:
            begun = self.ledger.begin([self.abandoned.popleft()], Outcome.RETURN, None, now)
            self.settlements.enqueue(begun.to_send)
        overdue = self.ledger.expire(now)
        if overdue:
            self.settlements.enqueue(overdue)
