"""Warnings about messages and letters that no subscription will receive."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from events_core import ErrorCode, EventConfig, EventMessage, consume, create_client
from events_core.engine import BrokerError
from events_core.message import ReceivedMessage

_topics = itertools.count(1)
DEAD_LETTERS = {"dead_letter_topic": "dead", "max_delivery_attempts": "1"}


@pytest.fixture(params=["memory", "sqlite"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> EventConfig:
    options = {"path": str(tmp_path / "events.db")} if request.param == "sqlite" else {}
    return EventConfig("orders", f"recipients-{next(_topics)}", options=options, backend=request.param)


def with_options(config: EventConfig, **options: str) -> EventConfig:
    return EventConfig(
        config.topic_name, config.project_id, options={**config.options, **options}, backend=config.backend
    )


def send(config: EventConfig, *, subscribe: bool = False) -> None:
    async def main() -> None:
        async with create_client(config) as client:
            if subscribe:
                await client.subscribe("s")
            await client.send_message(EventMessage(b"1"))
            await client.send_messages([EventMessage(b"2"), EventMessage(b"3")])

    asyncio.run(main())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_send_to_nobody_is_told_once(config: EventConfig, caplog: pytest.LogCaptureFixture) -> None:
    """P1: the first send to a topic without a subscription logs one warning, however many follow."""
    send(config)
    (warning,) = warnings(caplog)
    assert "topic 'orders' has no subscription" in warning


def test_a_send_to_a_subscription_is_fine(config: EventConfig, caplog: pytest.LogCaptureFixture) -> None:
    """P1: a topic with a subscription causes no warning."""
    send(config, subscribe=True)
    assert warnings(caplog) == []


def test_what_is_kept_is_not_lost(config: EventConfig, caplog: pytest.LogCaptureFixture) -> None:
    """P1, Q3: a topic that keeps messages for later subscriptions needs no warning."""
    send(with_options(config, retention="60"))
    assert warnings(caplog) == []


@pytest.mark.parametrize(("code", "level"), [("PERMISSION_DENIED", "DEBUG"), ("UNAVAILABLE", "WARNING")])
def test_a_receiver_that_may_not_look_for_letters_is_no_news(
    code: str, level: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """R12: an application that may only receive cannot change it.  Any other failure is a warning."""
    config = EventConfig("orders", f"recipients-{next(_topics)}", options=DEAD_LETTERS, backend="memory")

    async def refused(*_: object) -> bool:
        raise BrokerError("no", ErrorCode[code])

    async def main() -> None:
        async with create_client(config) as client:
            monkeypatch.setattr(client._driver, "keep_dead_letters", refused)  # type: ignore[attr-defined]
            await client.subscribe("s")

    caplog.set_level("DEBUG")
    asyncio.run(main())
    (told,) = [record for record in caplog.records if "'dead'" in record.getMessage()]
    assert told.levelname == level


def test_each_letter_is_logged(config: EventConfig, caplog: pytest.LogCaptureFixture) -> None:
    """R12, H2: the log names message, attempts and destination, and does not say that it comes again."""
    config = with_options(config, **DEAD_LETTERS)
    ids: list[str] = []

    async def fail(message: ReceivedMessage) -> None:
        raise RuntimeError("no")

    async def main() -> None:
        async with create_client(config) as client, await client.subscribe("s") as receiver:
            ids.append(await client.send_message(EventMessage(b"x")))
            consuming = asyncio.create_task(consume(receiver, fail))
            async with create_client(EventConfig("dead", config.project_id, config.options, config.backend)) as reader:
                letters = await reader.subscribe("dead-letters")
                assert await letters.receive_message(60) is not None
            consuming.cancel()
            await asyncio.wait([consuming])

    asyncio.run(main())
    (moved,) = warnings(caplog)
    assert ids[0] in moved
    assert "failed 1 times" in moved
    assert "'dead'" in moved
    assert "comes again" not in caplog.text


def test_a_passing_reader_keeps_no_letters(config: EventConfig) -> None:
    """R12: an ephemeral subscription of the dead-letter topic does not count as its subscription."""
    received = []

    async def main() -> None:
        dead = EventConfig("dead", config.project_id, config.options, config.backend)
        async with create_client(dead) as client:
            passing = await client.subscribe()
            async with create_client(with_options(config, **DEAD_LETTERS)) as failing:
                await failing.subscribe("s")
            await passing.close()
            await client.send_message(EventMessage(b"letter"))
            async with await client.subscribe("dead-letters") as letters:
                received.append(await letters.receive_message(60))

    asyncio.run(main())
    assert [message.data for message in received if message] == [b"letter"]


def test_letters_that_nobody_may_keep_are_told_once(config: EventConfig, caplog: pytest.LogCaptureFixture) -> None:
    """R12: with create=never a dead-letter topic without a subscription is a warning, one for each client."""

    async def main() -> None:
        async with create_client(with_options(config, **DEAD_LETTERS)) as founder:
            await founder.subscribe("s")
            async with create_client(EventConfig("dead", config.project_id, config.options, config.backend)) as dead:
                await dead.delete_subscription("dead-letters")
        async with create_client(with_options(config, create="never", **DEAD_LETTERS)) as client:
            await client.subscribe("s")
            await client.subscribe("s")

    asyncio.run(main())
    (warning,) = warnings(caplog)
    assert "topic 'dead' has no durable subscription" in warning
    assert "'dead-letters'" in warning
