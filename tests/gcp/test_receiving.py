"""Deliveries: leases, order, dead letters, exactly once."""

from __future__ import annotations

import asyncio
import time

from events_core import (
    EventMessage,
)

from .console import Console


def test_what_nobody_read_is_not_handed_out_with_a_stale_lease(console: Console) -> None:
    """What the emulator sent beyond the bound goes back and comes again, each once, while another is held long."""

    async def receive() -> list[bytes]:
        async with console.client(max_outstanding_messages="1", ack_deadline="10") as slow:
            receiver = await slow.subscribe(f"{console.topic_name}-s")
            await slow.send_messages([EventMessage(b"%d" % number, ordering_key="k") for number in range(4)])
            received = []
            while len(received) < 4:
                message = await receiver.receive_message(10)
                assert message is not None
                assert await receiver.receive_message(3 if not received else 0) is None
                await receiver.acknowledge(message)
                received.append(message.data)
            assert await receiver.receive_message(0.3) is None
            return received

    assert asyncio.run(receive()) == [b"0", b"1", b"2", b"3"]


def test_a_short_nack_does_not_outlive_its_receiver(console: Console) -> None:
    """A message whose backoff of less than a second is not over comes to the next receiver when the first closes."""

    async def receive() -> None:
        async with console.client() as both:
            receiver = await both.subscribe(f"{console.topic_name}-s")
            await both.send_message(EventMessage(b"x"))
            message = await receiver.receive_message(10)
            assert message is not None
            await receiver.nack(message, delay=0.9)
            await receiver.close()
            began = time.monotonic()
            async with await both.subscribe(f"{console.topic_name}-s") as other:
                assert await other.receive_message(10)
            assert time.monotonic() - began < 0.8

    asyncio.run(receive())
