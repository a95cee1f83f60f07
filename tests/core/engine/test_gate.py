"""A gate keeps requests away from a topic that is being created again."""

from __future__ import annotations

import asyncio

import pytest

from events_core import ErrorCode
from events_core.engine import BrokerError, Gate


class Topic:
    """A topic that was deleted, and the requests to it."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.events: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_create = asyncio.Event()
        self.may_create.set()
        self.exists = False

    async def _request(self, name: str) -> str:
        self.events.append(f"send {name}")
        if name == "slow":
            await self.may_answer.wait()
        if not self.exists:
            raise BrokerError("no topic", ErrorCode.NOT_FOUND)
        return name

    async def _create(self) -> None:
        self.events.append("create")
        await self.may_create.wait()
        self.exists = True

    def send(self, name: str) -> asyncio.Task[str]:
        return asyncio.create_task(self.gate.send(lambda: self._request(name), self._create))


async def turns() -> None:
    """Let all tasks go on until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_topic_is_created_when_nothing_is_on_its_way() -> None:
    """And a send that begins meanwhile waits until it is there."""

    async def scenario() -> None:
        topic = Topic()
        slow = topic.send("slow")
        await turns()
        quick = topic.send("quick")
        await turns()
        assert topic.events == ["send slow", "send quick"]
        topic.may_create.clear()
        topic.may_answer.set()
        await turns()
        late = topic.send("late")
        await turns()
        assert {*topic.events[2:]} == {"create"}
        topic.may_create.set()
        assert await asyncio.gather(slow, quick, late) == ["slow", "quick", "late"]
        assert topic.gate.is_open

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_creation_that_was_cancelled_is_made_up_for() -> None:
    """A part of the topic may be there.  So the next send does not try without it."""

    async def scenario() -> None:
        topic = Topic()
        topic.may_create.clear()
        first = topic.send("first")
        await turns()
        first.cancel()
        await turns()
        topic.exists = True
        topic.may_create.set()
        assert await topic.send("second") == "second"
        assert topic.events == ["send first", "create", "create", "send second"]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_missing_topic_that_may_not_be_created() -> None:
    """The error surfaces, and the next send tries again."""

    async def scenario() -> None:
        topic = Topic()
        for _ in range(2):
            with pytest.raises(BrokerError, match="no topic"):
                await topic.gate.send(lambda: topic._request("x"), None)
        topic.exists = True
        assert await topic.gate.send(lambda: topic._request("x"), None) == "x"

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_creation_that_fails_does_not_blame_the_message() -> None:
    """The engine sends the halves of a batch alone if it is INVALID.  The gate stays closed."""

    async def refuse() -> None:
        raise BrokerError("another type", ErrorCode.INVALID)

    async def scenario() -> None:
        topic = Topic()
        for _ in range(2):
            with pytest.raises(BrokerError, match="another type") as caught:
                await topic.gate.send(lambda: topic._request("x"), refuse)
            assert caught.value.code is ErrorCode.NOT_FOUND
        assert topic.events == ["send x"]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_other_errors_surface() -> None:
    """They tell nothing about the topic."""

    async def refuse() -> None:
        raise BrokerError("not allowed", ErrorCode.PERMISSION_DENIED)

    async def scenario() -> None:
        topic = Topic()
        with pytest.raises(BrokerError, match="not allowed"):
            await topic.gate.send(refuse, topic._create)
        assert topic.gate.is_open
        assert topic.events == []

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_closing_waits_for_what_has_passed() -> None:
    """But for nothing that passes later: there may always be something."""

    async def scenario() -> None:
        topic = Topic()
        topic.exists = True
        slow = topic.send("slow")
        await turns()
        closing = asyncio.create_task(topic.gate.close())
        await turns()
        assert not closing.done()
        with topic.gate.passing():
            topic.may_answer.set()
            await closing
        assert not topic.gate.is_open
        assert await slow == "slow"

    asyncio.run(asyncio.wait_for(scenario(), 60))
