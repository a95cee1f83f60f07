"""Groups whose partitions the broker assigns (KIP-848)."""

from __future__ import annotations

import asyncio

from ..receiving import numbered, settle_data
from .console import Console
from .test_moving import spread


def test_receivers_come_and_go_in_a_group_of_the_new_protocol(console: Console) -> None:
    """Q1, C1: two receivers share the partitions, and when one closes, the other one gets all that is sent."""
    console.create_topic(partitions=4)

    async def scenario() -> None:
        async with console.client(group_protocol="consumer") as both:
            first, second = await both.subscribe(), await both.subscribe()
            await spread(console, [first, second], 4)
            await first.close()
            await both.send_messages(numbered(40, key="k"))
            await settle_data(second, {b"%d" % number for number in range(40)})

    asyncio.run(scenario())
