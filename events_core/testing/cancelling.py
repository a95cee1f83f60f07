"""P8, R3, S5, C2: every coroutine, cancelled wherever it waits.

Each call is made again and again, cancelled at its first point of waiting, at its second, and so on until it ends by
itself; once cancelled as it begins to wait, and once when what it waits for has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias

import pytest

from events_core import (
    ErrorCode,
    EventClient,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    ReceivedMessage,
    ReceiveError,
)
from events_core.testing.interruption import Interruption
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Cancelling"]

MOST_POINTS = 100


class _Scene:
    """A receiver that holds the first messages of a key, a client not yet connected, and what must come of it all."""

    client: EventClient
    receiver: EventReceiver
    held: list[ReceivedMessage]

    def __init__(self, stage: Stage, number: int, cut: Interruption) -> None:
        self.stage = stage
        self.number = number
        self.cut = cut
        self.topic_name = stage.name(f"run-{number}")
        self.subscription = stage.name(f"shared-{number}")
        # What is sent on the way has a key of its own: who returns the first one's messages is not its matter.
        ordered = stage.capabilities.ordering != "none"
        self.key, self.new_key = ("k" if ordered else None), ("new" if ordered else None)
        self.fresh = stage.client(self.topic_name, **self._options)
        self.due: list[str] = []
        """What must come in the end."""
        self.doubtful: list[str] = []
        """What may come or not: sent, or settled, by a call that was cancelled."""

    @property
    def _options(self) -> dict[str, str]:
        return {"ordering": "true"} if self.key else {}

    async def open(self) -> None:
        self.client = self.stage.client(self.topic_name, **self._options)
        self.receiver = await self.client.subscribe(self.subscription)
        await self.send(self.client, numbered(4, key=self.key) if self.key else numbered(1))
        self.held = await self.receiver.receive_messages(2, self.stage.harness.patience)

    async def send(self, client: EventClient, messages: list[EventMessage]) -> None:
        """Send what must come."""
        await client.send_messages(messages)
        self.due += texts(messages)

    def settled(self, messages: Sequence[ReceivedMessage]) -> None:
        """These must not come."""
        for message in messages:
            self.due.remove(message.data_as_string())

    def doubt(self, messages: Sequence[ReceivedMessage]) -> None:
        """These may come or not."""
        self.due = [text for text in self.due if text not in texts(messages)]
        self.doubtful += texts(messages)

    async def check_usable(self) -> None:
        """Both clients and the receiver go on."""
        for name, client in (("client", self.client), ("fresh", self.fresh)):
            await client.ping(self.stage.harness.patience)
            await self.send(client, [EventMessage.from_string(f"later, by {name}")])

    async def check(self) -> None:
        """What is not settled comes, once and in order, and nothing else does."""
        await self.receiver.close(timeout=0)
        other = await self.stage.client(self.topic_name, **self._options).subscribe(self.subscription)
        received = [*await self.stage.drain(other, len(self.due)), *await self.stage.rest(other)]
        came = texts(received)
        doubtful = [text for text in came if text in self.doubtful]
        assert sorted(text for text in came if text not in doubtful) == sorted(self.due), self._where
        for key in (self.key, self.new_key):
            queue = texts(message for message in received if key and message.ordering_key == key)
            assert queue == sorted(queue), self._where
        assert doubtful == self.doubtful[: len(doubtful)], self._where

    @property
    def _where(self) -> str:
        return f"cancelled {'late' if self.cut.late else 'early'} at suspension {self.cut.point}"


async def _sweep(stage: Stage, act: _Act) -> None:
    """Run *act* on a scene of its own for each point at which it can be cancelled, and once to its end."""
    scenes: list[_Scene] = []
    for late in (False, True):
        for point in itertools.count(1):
            cut = Interruption(point, late=late)
            scene = _Scene(stage, len(scenes), cut)
            scenes.append(scene)
            await scene.open()
            await act(scene, cut)
            if not cut.happened:
                break
            assert point < MOST_POINTS, "it waits again and again"
    await asyncio.gather(*(scene.check() for scene in scenes))


_Act: TypeAlias = Callable[[_Scene, Interruption], Coroutine[Any, Any, None]]


# Sending and connecting


async def _send_message(scene: _Scene, cut: Interruption) -> None:
    message = EventMessage(b"1", ordering_key=scene.new_key)
    sent = await cut(scene.fresh.send_message(message))
    scene.doubtful += ["1"] if sent is None else []
    scene.due += ["1"] if sent is not None else []
    await scene.check_usable()


async def _send_messages(scene: _Scene, cut: Interruption) -> None:
    messages = numbered(5, key=scene.new_key, prefix="1 ")
    sent = await cut(scene.fresh.send_messages(messages))
    (scene.doubtful if sent is None else scene.due).extend(texts(messages))
    await scene.check_usable()


async def _subscribe(scene: _Scene, cut: Interruption) -> None:
    receiver = await cut(scene.fresh.subscribe(scene.subscription))
    if receiver is not None:
        await receiver.close(timeout=0)
    await scene.check_usable()


async def _delete_subscription(scene: _Scene, cut: Interruption) -> None:
    doomed = await scene.client.subscribe(scene.stage.name(f"doomed-{scene.number}"))
    await doomed.close()
    await cut(scene.fresh.delete_subscription(doomed.subscription))
    with contextlib.suppress(ReceiveError):
        await scene.fresh.delete_subscription(doomed.subscription)
    with pytest.raises(ReceiveError) as caught:
        await scene.fresh.delete_subscription(doomed.subscription)
    assert caught.value.code is ErrorCode.NOT_FOUND
    await scene.check_usable()


async def _ping(scene: _Scene, cut: Interruption) -> None:
    await cut(scene.fresh.ping(scene.stage.harness.patience))
    await scene.check_usable()


# Receiving


async def _receive(scene: _Scene, cut: Interruption, call: Coroutine[Any, Any, Any]) -> None:
    receiving = asyncio.create_task(cut(call))
    while not (cut.suspensions or receiving.done()):
        await asyncio.sleep(0)
    await scene.send(scene.client, [EventMessage(b"1")])
    if await receiving is None:
        assert (await scene.stage.receive(scene.receiver)).data == b"1", "not the message that it would have returned"
    await scene.check_usable()


async def _receive_message(scene: _Scene, cut: Interruption) -> None:
    await _receive(scene, cut, scene.receiver.receive_message(scene.stage.harness.patience))


async def _receive_messages(scene: _Scene, cut: Interruption) -> None:
    await _receive(scene, cut, scene.receiver.receive_messages(10, scene.stage.harness.patience))


# Settling: cancelled or not, it is repeated, which must be safe


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


async def _assert_closed(call: Awaitable[object]) -> None:
    with pytest.raises(EventRuntimeError) as caught:
        await call
    assert caught.value.code is ErrorCode.CLOSED


class Cancelling:
    """Nothing confirmed is lost or reordered, nothing settled comes back, and whoever was cancelled works on."""

    @pytest.mark.parametrize("act", [_send_message, _send_messages])
    @rule("P8")
    async def test_a_send_is_cancelled_anywhere(self, stage: Stage, act: _Act) -> None:
        """It is stored or not, of a key the first messages or none."""
        await _sweep(stage, act)

    @pytest.mark.parametrize("act", [_subscribe, _delete_subscription, _ping])
    @rule("§3")
    async def test_connecting_is_cancelled_anywhere(self, stage: Stage, act: _Act) -> None:
        """The client connects the next time, and no receiver is left that takes messages."""
        await _sweep(stage, act)

    @pytest.mark.parametrize("act", [_receive_message, _receive_messages])
    @rule("R3")
    async def test_a_receive_is_cancelled_anywhere(self, stage: Stage, act: _Act) -> None:
        """The message that it would have returned comes again."""
        await _sweep(stage, act)

    @pytest.mark.parametrize(
        "act",
        [_acknowledge, _acknowledge_messages, _nack, _nack_messages, _hand_back, _processing, _processing_fails],
    )
    @rule("S5")
    async def test_a_settlement_is_cancelled_anywhere(self, stage: Stage, act: _Act) -> None:
        """It is applied or not, and safe to repeat."""
        await _sweep(stage, act)

    @pytest.mark.parametrize("act", [_close_receiver, _close_client])
    @rule("C2")
    async def test_a_close_is_cancelled_anywhere(self, stage: Stage, act: _Act) -> None:
        """It finishes all the same, and what was held goes to others."""
        await _sweep(stage, act)
