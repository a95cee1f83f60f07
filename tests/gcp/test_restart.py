"""An emulator that is killed and started again, without its former state."""

from __future__ import annotations

import asyncio
from pathlib import Path

from events_core import EventMessage, EventReceiver

from ..servers.requiring import required
from .console import client
from .emulator import Emulator, program
from .waiting import send_until_done


async def take(receiver: EventReceiver) -> bytes:
    message = await receiver.receive_message(300)
    assert message is not None
    await receiver.acknowledge(message)
    return message.data


def test_an_emulator_that_was_killed_is_used_again(tmp_path: Path) -> None:
    """F1, Q2: with create=all, a waiting receiver gets messages from the new emulator, and nothing raises."""

    async def survive(emulator: Emulator) -> None:
        options = {"emulator_host": emulator.address, "subscription": "billing", "create": "all"}
        async with client(**options) as both:
            receiver = await both.subscribe()
            await both.send_message(EventMessage(b"before"))
            assert await take(receiver) == b"before"
            await asyncio.to_thread(emulator.kill)
            waiting = asyncio.create_task(take(receiver))
            await asyncio.to_thread(emulator.start)
            await send_until_done(both, EventMessage(b"after"), waiting)
            assert await waiting == b"after"
            await receiver.close()

    with required("gcp"), program(tmp_path) as emulator:
        asyncio.run(asyncio.wait_for(survive(emulator), 400))
