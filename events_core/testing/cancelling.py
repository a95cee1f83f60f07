"""P8, R3, S5, C1, C2, H2: every coroutine, cancelled at each point at which it waits.

The kit makes each call again and again: cancelled at its first point of waiting, at its second, and so on, until the
call ends by itself.  It does so twice: cancelled when the call begins to wait, and when its future is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import pytest

from events_core import (
    AcknowledgeError,
    ConfigurationError,
    ErrorCode,
    EventClient,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    ReceivedMessage,
    ReceiveError,
    consume,
)
from events_core.testing.explaining import described, explained
from events_core.testing.interruption import Interruption
from events_core.testing.rules import rule
from events_core.testing.skipping import NO_WAIT, not_declared, not_shown
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Cancelling"]

MOST_POINTS = 100
TRIES = 5
"""Pairs of calls after which a call that has not waited is believed to wait never."""


class _Scene:
    """A receiver that holds messages of a key, a client that is not connected, and the messages that must come."""

    client: EventClient
    receiver: EventReceiver
    held: list[ReceivedMessage]

    def __init__(
        self, stage: Stage, number: int, where: object, *, connected: bool = False, dead_letters: bool = False
    ) -> None:
        self.stage = stage
        self._dead_letters = stage.dead_letters if dead_letters else {}
        self.number = number
        self._where = where
        self._connected = connected
        self.topic_name = stage.name(f"run-{number}")
        self.subscription = stage.name(f"shared-{number}")
        # Messages that the call sends have a key of their own, which settling the first key does not disturb.
        ordered = stage.capabilities.ordering != "none"
        self.key, self.new_key = ("k" if ordered else None), ("new" if ordered else None)
        self.fresh = stage.client(self.topic_name, **self.options)
        self.due: list[str] = []
        """The texts of messages that must come in the end."""
        self.doubtful: list[str] = []
        """The texts of cancelled sends, in the order of the calls.  The first ones of a key may come, or none."""
        self.maybe_settled: list[str] = []
        """The texts of messages whose settlement was cancelled.  Each may come or not."""

    def explained(self) -> AbstractContextManager[None]:
        """Explain a failure inside: the point of cancellation, the topic, and the state of the receiver."""
        topic = f"topic: {self.topic_name!r}"
        return explained(lambda: f"point: {self._where}", lambda: topic, lambda: described(self.receiver))

    @property
    def caller(self) -> EventClient:
        """The client whose calls are cancelled: the connected one, or the other."""
        return self.client if self._connected else self.fresh

    @property
    def options(self) -> dict[str, str]:
        return {**({"ordering": "true"} if self.key else {}), **self._dead_letters}

    async def open(self) -> None:
        self.client = self.stage.client(self.topic_name, **self.options)
        self.receiver = await self.client.subscribe(self.subscription)
        await self.send(self.client, numbered(4, key=self.key) if self.key else numbered(1))
        self.held = await self.receiver.receive_messages(2, self.stage.harness.patience)

    async def send(self, client: EventClient, messages: list[EventMessage]) -> None:
        """Send *messages*, which must come."""
        await client.send_messages(messages)
        self.due += texts(messages)

    def settled(self, messages: Sequence[ReceivedMessage]) -> None:
        """Note that *messages* must not come."""
        for message in messages:
            self.due.remove(message.data_as_string())

    def doubt(self, messages: Sequence[ReceivedMessage]) -> None:
        """Note that *messages* may come or not."""
        self.due = [text for text in self.due if text not in texts(messages)]
        self.maybe_settled += texts(messages)

    async def check_usable(self) -> None:
        """Check that both clients go on, and send one more message with each."""
        for name, client in (("client", self.client), ("fresh", self.fresh)):
            await client.ping(self.stage.harness.patience)
            await self.send(client, [EventMessage.from_string(f"later, by {name}")])

    async def check(self) -> None:
        """Check that each message that is not settled comes, once and in order, and no other."""
        with self.explained():
            await self._check()

    async def _check(self) -> None:
        await self.receiver.close(timeout=0)
        other = await self.stage.client(self.topic_name, **self.options).subscribe(self.subscription)
        received = await self.stage.drain_until(other, lambda came: set(self.due) <= set(texts(came)))
        came = texts(received)
        assert len(came) == len(set(came)), "a message came twice"
        stored = [text for text in came if text in self.doubtful]
        due = sorted(text for text in came if text not in (*stored, *self.maybe_settled))
        assert due == sorted(self.due), "these messages came, and not those that are due"
        for key in (self.key, self.new_key):
            queue = texts(message for message in received if key and message.ordering_key == key)
            assert queue == sorted(queue), f"the messages of key {key!r} came out of order"
        if self.new_key:
            first = self.doubtful[: len(stored)]
            assert stored == first, "a cancelled send was stored, and one before it was not"


async def _sweep(stage: Stage, act: _Act, *, connected: bool = False, dead_letters: bool = False) -> int:
    """Run *act* for each point at which it can be cancelled, on a separate scene, and once to its end.

    :param connected: True if *act* calls a client that is connected already.
    :param dead_letters: True if the scenes have a dead-letter topic, which they share.
    :returns: the number of scenes.
    """
    scenes: list[_Scene] = []
    points = 0
    # Another thread may have done the work before the call could wait for it.  So one call alone says little.
    for late in (False, True) * TRIES:
        for point in itertools.count(1):
            cut = Interruption(point, late=late)
            # Of each point a scene of its own: what a cancelled call leaves behind must not meet the next one.
            scene = _Scene(stage, len(scenes), cut, connected=connected, dead_letters=dead_letters)
            scenes.append(scene)
            await scene.open()
            with scene.explained():
                await act(scene, cut)
            if not cut.happened:
                break
            points += 1
            assert point < MOST_POINTS, "the call waits again and again"
        if late and points:
            break
    if not points:
        not_shown("a cancellation of a call that never waits" if stage.capabilities.ack_confirmed else NO_WAIT)
    # Together at the end, because each check waits for the settle time.
    await asyncio.gather(*(scene.check() for scene in scenes))
    return len(scenes)


_Act: TypeAlias = Callable[[_Scene, Interruption], Coroutine[Any, Any, None]]


# Sending and connecting


async def _send_message(scene: _Scene, cut: Interruption) -> None:
    message = EventMessage(b"1", ordering_key=scene.new_key)
    sent = await cut(scene.caller.send_message(message))
    scene.doubtful += ["1"] if sent is None else []
    scene.due += ["1"] if sent is not None else []
    await scene.check_usable()


async def _send_messages(scene: _Scene, cut: Interruption) -> None:
    messages = numbered(5, key=scene.new_key, prefix="1 ")
    sent = await cut(scene.caller.send_messages(messages))
    (scene.doubtful if sent is None else scene.due).extend(texts(messages))
    await scene.check_usable()


async def _wait_for_room(scene: _Scene, cut: Interruption) -> None:
    crowded = scene.stage.client(scene.topic_name, publish_max_messages="1", **scene.options)
    await crowded.ping(scene.stage.harness.patience)
    first, second, third = numbered(3, key=scene.new_key, prefix="1 ")
    # Room for one message is taken, so the next send has to wait for it.
    sending = asyncio.create_task(scene.send(crowded, [first]))
    await asyncio.sleep(0)
    sent = await cut(crowded.send_message(second))
    await sending
    (scene.doubtful if sent is None else scene.due).extend(texts([second]))
    await scene.send(crowded, [third])
    await scene.check_usable()


async def _subscribe(scene: _Scene, cut: Interruption) -> None:
    receiver = await cut(scene.caller.subscribe(scene.subscription))
    if receiver is not None:
        await receiver.close(timeout=0)
    await scene.check_usable()


async def _subscribe_for_a_while(scene: _Scene, cut: Interruption) -> None:
    receiver = await cut(scene.caller.subscribe())
    if receiver is not None:
        await receiver.close(timeout=0)
    await scene.check_usable()


async def _subscribe_and_leave(scene: _Scene, cut: Interruption) -> None:
    async def enter() -> None:
        async with scene.caller.subscribe(scene.subscription):
            pass

    await cut(enter())
    await scene.check_usable()


async def _delete_subscription(scene: _Scene, cut: Interruption) -> None:
    doomed = await scene.client.subscribe(scene.stage.name(f"doomed-{scene.number}"))
    await doomed.close()
    await cut(scene.caller.delete_subscription(doomed.subscription))
    # The cancelled call has deleted the subscription or not.  After this one it is gone in any case.
    with contextlib.suppress(ReceiveError):
        await scene.fresh.delete_subscription(doomed.subscription)
    with pytest.raises(ReceiveError) as caught:
        await scene.fresh.delete_subscription(doomed.subscription)
    assert caught.value.code is ErrorCode.NOT_FOUND
    await scene.check_usable()


async def _ping(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.caller.ping(scene.stage.harness.patience))
    await scene.check_usable()


# Receiving


async def _receive(scene: _Scene, cut: Interruption, call: Coroutine[Any, Any, Any]) -> None:
    receiving = asyncio.create_task(cut(call))
    # The call must wait before the message is sent, or there is no point to cancel it at.
    while not (cut.suspensions or receiving.done()):
        await asyncio.sleep(0)
    await scene.send(scene.client, [EventMessage(b"1")])
    if await receiving is None:
        assert (await scene.stage.receive(scene.receiver)).data == b"1", "another message came first"
    await scene.check_usable()


async def _receive_message(scene: _Scene, cut: Interruption) -> None:
    await _receive(scene, cut, scene.receiver.receive_message(scene.stage.harness.patience))


async def _receive_messages(scene: _Scene, cut: Interruption) -> None:
    await _receive(scene, cut, scene.receiver.receive_messages(10, scene.stage.harness.patience))


async def _iterate(scene: _Scene, cut: Interruption) -> None:
    await _receive(scene, cut, _next(aiter(scene.receiver)))


async def _next(messages: AsyncIterator[ReceivedMessage]) -> ReceivedMessage:
    return await anext(messages)


# Settling.  Each settlement is repeated, cancelled or not: that must be safe.


async def _acknowledge(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.receiver.acknowledge(scene.held[0]))
    await scene.receiver.acknowledge(scene.held[0])
    scene.settled(scene.held[:1])
    await scene.check_usable()


async def _acknowledge_messages(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.receiver.acknowledge_messages(scene.held))
    await scene.receiver.acknowledge_messages(scene.held)
    scene.settled(scene.held)
    await scene.check_usable()


async def _acknowledge_then_nack(scene: _Scene, cut: Interruption) -> None:
    """While the first outcome is under way, the other is refused and the message counts as held."""
    await cut(scene.receiver.acknowledge(scene.held[0]))
    try:
        await scene.receiver.nack(scene.held[0])
    except AcknowledgeError as error:
        if error.code is not ErrorCode.ALREADY_SETTLED:
            raise
    scene.doubt(scene.held[:1])
    async with asyncio.timeout(scene.stage.harness.patience):
        while scene.receiver.stats.held >= len(scene.held):
            await asyncio.sleep(0.01)
    await scene.check_usable()


async def _nack(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.receiver.nack(scene.held[0]))
    await scene.receiver.nack(scene.held[0])
    await scene.check_usable()


async def _nack_messages(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.receiver.nack_messages(scene.held, delay=0))
    await scene.receiver.nack_messages(scene.held, delay=0)
    await scene.check_usable()


async def _hand_back(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.receiver.hand_back(scene.held[0]))
    await scene.receiver.hand_back(scene.held[0])
    await scene.check_usable()


async def _reject(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.receiver.reject(scene.held[0]))
    await scene.receiver.reject(scene.held[0])
    scene.settled(scene.held[:1])
    await scene.check_usable()


async def _processing(scene: _Scene, cut: Interruption) -> None:
    async def process() -> None:
        async with scene.receiver.processing(scene.held[0]):
            await asyncio.sleep(0)

    await cut(process())
    (scene.doubt if cut.happened else scene.settled)(scene.held[:1])
    await scene.check_usable()


async def _processing_fails(scene: _Scene, cut: Interruption) -> None:
    async def process() -> None:
        async with scene.receiver.processing(scene.held[0]):
            await asyncio.sleep(0)
            raise ArithmeticError

    with contextlib.suppress(ArithmeticError):
        await cut(process())
    await scene.check_usable()


# Closing


async def _close_receiver(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.receiver.close(timeout=0.05))
    await scene.receiver.close()
    await _assert_closed(scene.receiver.receive_message(0))
    await scene.check_usable()


async def _close_client(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.client.close(timeout=0.05))
    await scene.client.close()
    assert not scene.client.is_connected
    await _assert_closed(scene.client.send_message(EventMessage(b"x")))


async def _leave_receiver(scene: _Scene, cut: Interruption) -> None:
    async def leave() -> None:
        async with scene.receiver:
            pass

    await cut(leave())
    await scene.receiver.close()
    await _assert_closed(scene.receiver.receive_message(0))
    await scene.check_usable()


async def _leave_client(scene: _Scene, cut: Interruption) -> None:
    async def leave() -> None:
        async with scene.client:
            await scene.receiver.close(timeout=0)

    await cut(leave())
    await scene.client.close()
    await _assert_closed(scene.client.send_message(EventMessage(b"x")))


async def _close_at_work(scene: _Scene, cut: Interruption) -> None:
    """Close while sends and settlements are under way: a confirmed call has happened, any other may have."""
    sent = numbered(3, key=scene.new_key, prefix="1 ")
    sends = [asyncio.create_task(scene.client.send_message(message)) for message in sent]
    settling = asyncio.create_task(scene.receiver.acknowledge(scene.held[0]))
    await asyncio.sleep(0)
    await cut(scene.client.close(timeout=0.05))
    await scene.client.close()
    *results, settled = await asyncio.gather(*sends, settling, return_exceptions=True)
    (scene.settled if settled is None else scene.doubt)(scene.held[:1])
    for message, result in zip(sent, results, strict=True):
        (scene.due if isinstance(result, str) else scene.doubtful).extend(texts([message]))
    for result in (*results, settled):
        if isinstance(result, BaseException):
            assert getattr(result, "code", result) is ErrorCode.CLOSED


async def _assert_closed(call: Awaitable[object]) -> None:
    with pytest.raises(EventRuntimeError) as caught:
        await call
    assert caught.value.code is ErrorCode.CLOSED


class Cancelling:
    """Cancelled calls: they lose and reorder nothing, and clients and receivers go on."""

    @pytest.mark.parametrize("connected", [False, True], ids=["unconnected", "connected"])
    @pytest.mark.parametrize("act", [_send_message, _send_messages])
    @rule("P8")
    async def test_a_send_is_cancelled_anywhere(self, stage: Stage, act: _Act, connected: bool) -> None:
        """A cancelled send is stored or not; of a key the first messages are stored, or none."""
        await _sweep(stage, act, connected=connected)

    @rule("P8", "P6")
    async def test_a_wait_for_room_is_cancelled_anywhere(self, stage: Stage) -> None:
        """A cancelled wait for room takes no room from later sends."""
        await _sweep(stage, _wait_for_room)

    @pytest.mark.parametrize("connected", [False, True], ids=["unconnected", "connected"])
    @pytest.mark.parametrize(
        "act", [_subscribe, _subscribe_for_a_while, _subscribe_and_leave, _delete_subscription, _ping]
    )
    @rule("§3")
    async def test_connecting_is_cancelled_anywhere(self, stage: Stage, act: _Act, connected: bool) -> None:
        """After a cancelled call the client connects the next time, and no receiver is left that takes messages."""
        await _sweep(stage, act, connected=connected)

    @pytest.mark.parametrize("act", [_receive_message, _receive_messages, _iterate])
    @rule("R3")
    async def test_a_receive_is_cancelled_anywhere(self, stage: Stage, act: _Act) -> None:
        """The message that a cancelled receive would have returned comes again."""
        await _sweep(stage, act)

    @pytest.mark.parametrize(
        "act",
        [
            _acknowledge,
            _acknowledge_messages,
            _acknowledge_then_nack,
            _nack,
            _nack_messages,
            _hand_back,
            _processing,
            _processing_fails,
        ],
    )
    @rule("S5")
    async def test_a_settlement_is_cancelled_anywhere(self, stage: Stage, act: _Act) -> None:
        """A cancelled settlement is applied or not, and can be repeated."""
        await _sweep(stage, act)

    @rule("S5", "S6")
    async def test_a_rejection_is_cancelled_anywhere(self, stage: Stage) -> None:
        """A cancelled rejection can be repeated, and the message becomes a letter."""
        ordered = stage.capabilities.ordering != "none"
        options = {**stage.dead_letters, **({"ordering": "true"} if ordered else {})}
        try:
            can_reject = stage.client(**options).capabilities.reject
        except ConfigurationError:
            not_declared("dead_letter together with ordering")
        if not can_reject:
            not_declared("reject")
        dead = await stage.undertaker()
        scenes = await _sweep(stage, _reject, dead_letters=True)
        await stage.drain(dead, scenes)

    @pytest.mark.parametrize("act", [_close_receiver, _close_client, _leave_receiver, _leave_client, _close_at_work])
    @rule("C2")
    async def test_a_close_is_cancelled_anywhere(self, stage: Stage, act: _Act) -> None:
        """A cancelled close finishes all the same, and held messages go to other receivers."""
        await _sweep(stage, act)

    @rule("H2")
    async def test_consuming_is_cancelled_anywhere(self, stage: Stage) -> None:
        """Cancelled at any step of its handlers, ``consume`` hands back each message that was not handled, in order."""
        scenes: list[_Scene] = []
        # Three messages of two steps each.  The turns after a step reach into the acknowledgement of its message.
        for step in range(1, 7):
            for turns in range(5):
                scene = _Scene(stage, len(scenes), f"cancelled {turns} turns after step {step}")
                scenes.append(scene)
                await scene.open()
                with scene.explained():
                    await _consume(scene, step, turns)
        await asyncio.gather(*(scene.check() for scene in scenes))


async def _consume(scene: _Scene, step: int, turns: int) -> None:
    """Handle the messages of the scene, two steps for each, and cancel that *turns* turns of the loop after *step*."""
    await scene.receiver.acknowledge_messages(scene.held)
    scene.settled(scene.held)
    await scene.send(scene.client, numbered(3, key=scene.key, prefix="9 "))
    handled: list[ReceivedMessage] = []
    steps = 0
    reached = asyncio.Event()

    async def handle(message: ReceivedMessage) -> None:
        nonlocal steps
        for _ in range(2):
            steps += 1
            if steps == step:
                reached.set()
            await asyncio.sleep(0)
        handled.append(message)

    consuming = asyncio.create_task(consume(scene.receiver, handle))
    await reached.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    consuming.cancel()
    await asyncio.wait([consuming])
    assert consuming.cancelled()
    async with asyncio.timeout(scene.stage.harness.patience):
        while scene.receiver.stats.held:  # an acknowledgement may be under way
            await asyncio.sleep(0.01)
    # A message is received only after the one before is acknowledged.  The last one may be acknowledged or not.
    scene.settled(handled[:-1])
    scene.doubt(handled[-1:])
    await scene.check_usable()
