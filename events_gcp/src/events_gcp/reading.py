"""Reading from a subscription, through several streams or several concurrent pulls.

The reader opens all of its inlets together and closes them together.  It closes them

* when one of them fails,
* when deliveries have waited for the engine for a while, because their leases run on,
* when the streams were told a bound that is too small for the room there is now (:meth:`Reader._is_narrow`),
* when the receiver closes.

The deliveries that the inlets brought and the engine has not fetched then go back to Pub/Sub:

* Deliveries without order go back at once.
* Deliveries with order stay here until the next inlets open, or until the receiver closes.  If the reader gave them
  back earlier, they would come before earlier messages of their key, which the receiver is about to give back.

Everything here runs on the engine's I/O loop.  :meth:`Reader.open`, :meth:`Reader.read` and :meth:`Reader.take` are
called by ``fetch`` only.  A settlement may stop the reader between two fetches, and ``finish_fetching`` does so after
the last one; ``_changing`` lets only one of them open or close inlets.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from events_core.engine import Delivery
from events_gcp.inlet import Inlet
from events_gcp.pull_pace import PullPace
from events_gcp.pulls import Pulls

if TYPE_CHECKING:
    from events_gcp.api import Api
    from events_gcp.leases import Leases
    from events_gcp.options import GcpOptions
    from events_gcp.subscription import JoinedSubscription

__all__ = ["MAX_AGE", "Reader"]

MAX_AGE = 0.25
"""The part of a lease for which a delivery may wait here for the engine, which counts the lease from then on."""

_ROUTINE_AGE = 10.0
"""Seconds after which the end of a stream is routine, because the service ends every stream now and then.  If a stream
ends sooner, there is an outage."""

_REFUSED_WITHIN = 1.0
"""Seconds within which a server refuses a stream, if it does.  If the stream lives longer, an outage is over, although
no message has come yet."""

_IDLE = 1.0
"""Seconds without a delivery after which streams are opened again if they can bring nothing and there is room.  If
deliveries are settled faster than that, a stream with a small bound soon brings the next one."""


class Reader:
    """The inlets of one receiver, and the deliveries that they brought."""

    def __init__(self, api: Api, joined: JoinedSubscription, options: GcpOptions, leases: Leases, lease: float) -> None:
        self.arrived: list[Delivery] = []
        """Deliveries that were read and not taken; closing the inlets gives them back."""
        self._api = api
        self._joined = joined
        self._leases = leases
        self._max_age = MAX_AGE * lease
        self._opener = _Opener(api, joined, options)
        self._inlets: list[Inlet] = []
        self._changing = asyncio.Lock()
        self._opened_at = math.inf
        self._read_at = math.inf
        self._arrived_at = math.inf
        """The time at which the oldest delivery in :attr:`arrived` came."""
        self._patience: float | None = None
        self._bound = 0
        self._brought: set[str] = set()
        """Ack ids of deliveries that the open streams brought, that were taken and are not settled yet.  Pulls have no
        bound, so theirs are not in it."""
        self._moved_at = math.inf
        """The time of the last delivery, or of the opening."""
        # Ack ids of deliveries with order, to be given back later.
        self._ordered: list[str] = []

    @property
    def is_routine(self) -> bool:
        """True if the inlets had been open for so long that their end is no outage."""
        return self._read_at - self._opened_at >= _ROUTINE_AGE

    async def open(self, limit: int) -> None:
        """Open inlets, or keep the open ones if they may bring as much as there is room for.

        :param limit: the room, in deliveries.
        """
        async with self._changing:
            if self._inlets and (self._is_stale() or self._is_narrow(limit)):
                await self._close()
            if not self._inlets:
                await self._give_back_ordered()
                self._inlets = self._opener.open(limit)
                self._opened_at = self._moved_at = asyncio.get_running_loop().time()
                self._bound = self._opener.bound(limit)
                self._brought.clear()
                self._patience = _REFUSED_WITHIN

    def _is_stale(self) -> bool:
        """Return whether a delivery lay here for so long that its lease has less left than the engine will think.

        The engine counts a lease from the end of ``fetch``.
        """
        oldest = min(inlet.unread_since for inlet in self._inlets)
        if self.arrived:
            oldest = min(oldest, self._arrived_at)
        return asyncio.get_running_loop().time() - oldest > self._max_age

    def _is_narrow(self, limit: int) -> bool:
        """Return whether new streams may bring more than the open ones.

        A stream keeps the bounds that it was opened with.  If the receiver held messages at that time, there is more
        room once they are settled.
        """
        if not self._opener.bounds_streams or self._has_unread:
            return False
        if limit >= 2 * self._bound:
            return True
        is_idle = asyncio.get_running_loop().time() - self._moved_at >= _IDLE
        return is_idle and self._is_exhausted(limit)

    @property
    def _has_unread(self) -> bool:
        return bool(self.arrived) or any(inlet.unread_since < math.inf for inlet in self._inlets)

    def _is_exhausted(self, limit: int) -> bool:
        """Return whether the streams bring nothing until one of their deliveries is settled, and new streams could.

        Each stream brings one delivery at least.  So for more streams than *limit* there is no room.
        """
        return len(self._brought) >= self._bound and limit >= len(self._inlets)

    async def read(self, limit: int) -> Sequence[Any]:
        """Wait for deliveries, and put them into :attr:`arrived`.

        It returns without any if the inlets were opened lately and the server has not refused them, or if the streams
        can bring nothing now.

        :returns: what streams have told about the subscription.
        :raises BrokerError: if an inlet failed.  Call :meth:`restart` then.
        """
        share = max(1, limit // len(self._inlets))
        reads = [inlet.reading(share) for inlet in self._inlets]
        patience, self._patience = self._patience, None
        if self._is_exhausted(limit):
            patience = _IDLE
        done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED, timeout=patience)
        if not done and not self._api.is_connected:
            await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
        self._read_at = asyncio.get_running_loop().time()
        self._arrived_at = min(inlet.unread_since for inlet in self._inlets)
        for inlet in self._inlets:
            self.arrived += inlet.take()
        if self.arrived:
            self._moved_at = self._read_at
        return [inlet.properties for inlet in self._inlets if inlet.properties is not None]

    def take(self, limit: int) -> Sequence[Delivery]:
        """Return up to *limit* of the deliveries that have arrived."""
        taken, self.arrived = self.arrived[:limit], self.arrived[limit:]
        if self._opener.bounds_streams:
            self._brought.update(delivery.token for delivery in taken)
        return taken

    def ended(self, deliveries: Iterable[Delivery]) -> None:
        """Learn that *deliveries*, which were taken, have ended."""
        self._brought.difference_update(delivery.token for delivery in deliveries)

    async def stop(self) -> None:
        """Close the inlets; keep deliveries with order, which go back behind earlier ones of their keys."""
        async with self._changing:
            await self._close()

    async def restart(self) -> None:
        """Close the inlets, and give back everything that they brought.  The next :meth:`open` opens others."""
        async with self._changing:
            await self._close()
            await self._give_back_ordered()

    async def _close(self) -> None:
        inlets, self._inlets = self._inlets, []
        # Deliveries stay in `arrived` until all inlets are closed.  So if this is cancelled, the next close gives them
        # back.
        await asyncio.gather(*(inlet.finish(self.arrived) for inlet in inlets))
        unread, self.arrived = self.arrived, []
        keeps_order_of = self._joined.keeps_order_of
        self._ordered += [delivery.token for delivery in unread if keeps_order_of(delivery)]
        await self._leases.give_back([delivery.token for delivery in unread if not keeps_order_of(delivery)])

    async def _give_back_ordered(self) -> None:
        ordered, self._ordered = self._ordered, []
        await self._leases.give_back(ordered)


class _Opener:
    """Opens the inlets that the options ask for."""

    def __init__(self, api: Api, joined: JoinedSubscription, options: GcpOptions) -> None:
        self._api = api
        self._joined = joined
        self._options = options
        self.bounds_streams = options.receive_mode == "stream"
        self._pace = PullPace()
        self._client_id = uuid.uuid4().hex

    def bound(self, limit: int) -> int:
        """Return how many deliveries the streams of :meth:`open` may bring together."""
        return self._share(limit) * self._options.streams

    def _share(self, limit: int) -> int:
        return max(1, limit // self._options.streams)

    def open(self, limit: int) -> list[Inlet]:
        """Open inlets that together may bring *limit* deliveries."""
        count = range(self._options.streams)
        if not self.bounds_streams:
            pull = partial(self._api.pull, self._joined.path)
            return [Pulls(pull, self._pace, self._joined.name) for _ in count]
        settings = {
            "stream_ack_deadline_seconds": self._options.ack_deadline,
            # Anything beyond these bounds would lie unread in the connection, and its leases would run out.
            "max_outstanding_messages": self._share(limit),
            "max_outstanding_bytes": max(1, self._options.max_outstanding_bytes // len(count)),
            "client_id": self._client_id,
            "protocol_version": 1,  # the service then answers pings (StreamingPullRequest in types/pubsub.py)
        }
        return [self._api.stream(self._joined.path, **settings) for _ in count]
