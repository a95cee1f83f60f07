"""The receiving side of the engine without a receiver around it."""

from __future__ import annotations

import contextlib

from events_core.engine.driver import Source
from events_core.engine.feed import PrefetchingFeed
from events_core.engine.inbox import Inbox
from events_core.engine.ledger import Ledger
from events_core.engine.link import Link
from events_core.engine.loop_thread import ThreadHome
from events_core.engine.settler import Settler
from events_core.engine.surroundings import Surroundings
from events_core.engine.waiting import WaitingRoom
from events_core.options import CommonOptions


def prefetching(source: Source, ledger: Ledger, link: Link, max_lease: float) -> PrefetchingFeed:
    """Return a feed at work, whose home is the running loop."""
    home, inbox, waiting = ThreadHome(), Inbox(ledger), WaitingRoom()
    settler = Settler(source, inbox, home=home, link=link, limit=1000, timeout=60, progressed=lambda: None)
    surroundings = Surroundings(
        home=home,
        link=link,
        options=CommonOptions(max_lease_duration=max_lease),
        settle_limit=1000,
        check_process=lambda: None,
        is_observed=lambda: False,
        observed=lambda *_, **__: contextlib.nullcontext(),
        located=lambda error: error,
        forget=lambda _: None,
    )
    return PrefetchingFeed(source, inbox, settler, waiting=waiting, surroundings=surroundings, left=lambda: None)
