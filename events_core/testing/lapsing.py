"""R6, R10, S1, S3: receivers that come back after their lease is over, or never.

A receiver is late because its ``extend`` is held back, its process is stopped, or its process is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

import attrs
import pytest

from events_core import AcknowledgeError, ErrorCode, EventClient, EventMessage, EventReceiver, ReceivedMessage
from events_core.engine import Delivery, EngineClient, Source
from events_core.testing.processes import Child
from events_core.testing.rules import rule
from events_core.testing.skipping import not_declared, not_shown
from events_core.testing.stage import Stage, texts

__all__ = ["Lapsing"]


class _Absence:
    """A time in which receivers do not renew their leases, as if their process stood still."""

    def __init__(self) -> None:
        self.is_over = False
        self.source: Source | None = None

    def client(self, stage: Stage, **options: str) -> EventClient:
        """Return a client whose receivers are held back.  End the test if the client is not built on the engine."""
        present = type(stage.client())
        if not issubclass(present, EngineClient):
            not_shown("holding back a client that is not built on the engine")
        return stage.added(self._held_back(present)(stage.config(**options)))

    def _held_back(self, present: type[EngineClient]) -> type[EngineClient]:
        driver: Any = present.driver_class

        class HeldBackDriver(driver):  # type: ignore[misc]
            async def subscribe(_, subscription: str | None, wake: Callable[[], None]) -> Source:
                source: Source = await super().subscribe(subscription, wake)
                self.source = source
                self._hold_back(source)
                return source

        return type(f"HeldBack{present.__name__}", (present,), {"driver_class": HeldBackDriver})

    def _hold_back(self, source: Any) -> None:
        extend = source.extend

        async def extend_unless_away(deliveries: Sequence[Delivery]) -> Collection[Delivery]:
            # An empty answer says that nothing was taken back.  So the receiver goes on believing that it has its
            # messages.
            return await extend(deliveries) if self.is_over else ()

        source.extend = extend_unless_away


@attrs.frozen
class _Overtaken:
    """A late receiver, and another one that has received its message."""

    late: EventReceiver
    held: ReceivedMessage
    """The message, as the late receiver holds it."""
    other: EventReceiver
    again: ReceivedMessage
    """The message, as the other receiver holds it."""


async def _overtaken(stage: Stage, absence: _Absence) -> _Overtaken:
    # With room for one message only, neither fetches the message again while it believes that it has it.
    options = {"max_outstanding_messages": "1", **stage.harness.lease_options}
    client = absence.client(stage, **options)
    late = await client.subscribe(stage.subscription)
    if absence.source is None or absence.source.lease is None:
        not_declared("Source.lease, so that only a stopped process loses its messages")
    stage.require_lease()
    await client.send_message(EventMessage(b"x"))
    held = await stage.receive(late)
    _, other = await stage.open(**options)
    return _Overtaken(late, held, other, await _received_again(stage, other, held.message_id))


async def _received_again(stage: Stage, other: EventReceiver, message_id: str) -> ReceivedMessage:
    lease, patience = stage.harness.lease, stage.harness.patience
    again = await other.receive_message(lease + patience)
    assert again is not None, f"no message within the lease, {lease:g} s, and {patience:g} s more; is the lease right?"
    assert again.message_id == message_id
    return again


async def _assert_with(stage: Stage, receiver: EventReceiver, message: ReceivedMessage) -> None:
    """Check that *receiver* still has *message*: after a nack it comes again, and once acknowledged it is gone."""
    await receiver.nack(message, delay=0)
    assert texts(await stage.drain(receiver, 1)) == texts([message])
    await stage.silence(receiver)


async def _stop(stage: Stage, child: Child) -> None:
    """Stop *child* at a moment when others can subscribe: it may hold a lock, for example on a file."""
    # The lock of a file may be held for a moment only; so try again, each time for longer.
    for seconds in (1, 2, 4, 8, 16, 32):
        child.stop()
        joining = asyncio.create_task(stage.client().subscribe())
        done, _ = await asyncio.wait([joining], timeout=seconds)
        if not done:
            child.go_on()
        await (await joining).close(timeout=0)
        if done:
            return
    raise AssertionError("no process can subscribe while another process is stopped")


class Lapsing:
    """Receivers that come back after another receiver got their message."""

    @pytest.mark.parametrize("settle", ["acknowledge", "nack"])
    @rule("S3", "S1", "R9", proves=["exactly_once"])
    async def test_settling_after_the_lease_changes_nothing(self, stage: Stage, settle: str) -> None:
        """A late acknowledgement is EXPIRED, a late nack is a no-op, and the message stays with its new receiver."""
        stage.require("ack_confirmed")
        found = await _overtaken(stage, _Absence())
        if settle == "nack":
            await found.late.nack(found.held, delay=0)
        else:
            with pytest.raises(AcknowledgeError) as caught:
                await found.late.acknowledge(found.held)
            assert caught.value.code is ErrorCode.EXPIRED
        await stage.silence(found.late)
        await found.late.close(timeout=0)
        await _assert_with(stage, found.other, found.again)

    @rule("R6", "S3", proves=["exactly_once"])
    async def test_extending_after_the_lease_takes_nothing_from_others(self, stage: Stage) -> None:
        """A late receiver that extends its lease gets nothing back, and takes nothing from another receiver."""
        absence = _Absence()
        found = await _overtaken(stage, absence)
        absence.is_over = True
        lease = stage.harness.lease
        await stage.silence(found.other, seconds=1.5 * lease)
        longest = found.other.capabilities.limits.max_nack_delay
        # Meanwhile the late receiver extends once more, if it still believes that it has the message.
        await found.other.nack(found.again, delay=lease if longest is None else min(lease, longest))
        received = await stage.drain_together([found.late, found.other], 1)
        assert [message.message_id for part in received for message in part] == [found.held.message_id]

    @rule("S3", "R6", proves=["exactly_once"])
    async def test_a_process_that_was_stopped_has_lost_its_messages(self, stage: Stage) -> None:
        """A process that was stopped for longer than its lease cannot acknowledge its message, and changes nothing."""
        stage.require("durable")
        stage.require("ack_confirmed")
        stage.require_lease()
        options = stage.harness.lease_options
        client, other = await stage.open(**options)
        await other.close()
        message_id = await client.send_message(EventMessage(b"x"))
        child = stage.start("hold", subscription=stage.subscription, max_outstanding_messages="1", **options)
        assert await child.report() == {"received": message_id}
        await _stop(stage, child)
        other = await client.subscribe(stage.subscription)
        again = await _received_again(stage, other, message_id)
        child.go_on()
        assert await child.tell("acknowledge") == {"outcome": "EXPIRED"}
        assert await child.tell("close") == {"outcome": "done"}
        await _assert_with(stage, other, again)

    @rule("R10", "R9", proves=["ordering=subscription"])
    async def test_a_run_of_a_dead_process_comes_again_in_order(self, stage: Stage) -> None:
        """A process is killed while it holds the first messages of a key: they come again, then the others."""
        await stage.require_ordering()
        stage.require("durable")
        options = stage.harness.lease_options
        if stage.capabilities.redelivery == "lease":
            stage.require_lease()
        client, receiver = await stage.open_ordered(**options)
        if receiver.capabilities.ordering != "subscription":
            not_declared("ordering over a subscription")
        await receiver.close()
        sent = [EventMessage(data, ordering_key="k") for data in (b"k1", b"k2", b"k3", b"k4")]
        await client.send_messages(sent)
        options = {**options, "ordering": "true"}
        # With room for the run only: the broker itself must keep the later messages of the key.
        bounded = {"subscription": stage.subscription, "max_outstanding_messages": "2", **options}
        report = await stage.child("receive_run_and_die", **bounded)
        assert report["received"] in (["k1"], ["k1", "k2"])
        _, receiver = await stage.open(**options)
        received: list[ReceivedMessage] = []
        while len(received) < len(sent):
            more = await receiver.receive_messages(4, stage.harness.lease + stage.harness.patience)
            assert more, f"only {texts(received)} came"
            received += more
            await receiver.acknowledge_messages(more)
        assert texts(received) == texts(sent)
