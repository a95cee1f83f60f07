"""What is refused before any I/O, and where a client connects."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from events_core import (
    ConfigurationError,
    ErrorCode,
    EventConnectionError,
    EventMessage,
    PublishError,
    ReceiveError,
)

from .console import PROJECT, Console, client


@pytest.mark.parametrize(
    ("topic", "project", "options", "text"),
    [
        ("orders", "", {}, "project_id '' is no project"),
        ("orders", "projects/acme", {}, "project_id 'projects/acme' is no project"),
        ("or", PROJECT, {}, "topic 'or' is no valid"),
        ("google-orders", PROJECT, {}, "topic 'google-orders' is no valid"),
        ("orders", PROJECT, {"subscription": "a b c"}, "subscription 'a b c' is no valid"),
        ("orders", PROJECT, {"ack_deadline": "9"}, "'ack_deadline'.* 10 to 600 seconds"),
        ("orders", PROJECT, {"dead_letter_topic": "dead", "max_delivery_attempts": "4"}, "5 to 100"),
        ("orders", PROJECT, {"region": "europe-west2", "endpoint": "localhost"}, "'region' and 'endpoint'"),
        (
            "orders",
            PROJECT,
            {"dead_letter_topic": "dead", "max_delivery_attempts": "5", "ordering": "true"},
            "'ordering' and 'dead_letter_topic'",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    topic: str, project: str, options: dict[str, str], text: str
) -> None:
    """Before any I/O, with the value and what is wrong with it."""
    with pytest.raises(ConfigurationError, match=text):
        client(topic, project, **options)


def test_dead_letters_are_declared_where_they_are_configured() -> None:
    """With them attempts are counted, hand-backs too, and there is no order."""
    promised = client(dead_letter_topic="dead", max_delivery_attempts="5").capabilities
    assert (promised.dead_letter, promised.delivery_attempts, promised.handback_counts) == (True, True, True)
    assert promised.ordering == "none"
    assert not client().capabilities.delivery_attempts


@pytest.mark.parametrize("attributes", [{}, {"google": "y"}, {"": "y"}])
def test_what_pubsub_refuses_is_not_sent(attributes: dict[str, str]) -> None:
    """An empty message and reserved attributes are INVALID without asking the service."""
    with pytest.raises(PublishError) as caught:
        asyncio.run(client().send_message(EventMessage(b"", attributes)))
    assert caught.value.code is ErrorCode.INVALID


def test_missing_credentials_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credentials file that is not there is UNAUTHENTICATED, and the error says which."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    missing = tmp_path / "credentials.json"

    async def subscribe() -> None:
        async with client(credentials_file=str(missing)) as tried:
            await tried.subscribe("billing")

    with pytest.raises(ReceiveError, match=re.escape(str(missing))) as caught:
        asyncio.run(subscribe())
    assert caught.value.code is ErrorCode.UNAUTHENTICATED


def test_nobody_listening_is_a_connection_error() -> None:
    """Subscribe ends within connect_timeout; the client then closes at once."""

    async def subscribe() -> None:
        async with client(emulator_host="127.0.0.1:9", connect_timeout="0.5") as tried:
            with pytest.raises(EventConnectionError):
                await tried.subscribe("billing")
            assert not tried.is_connected

    asyncio.run(asyncio.wait_for(subscribe(), 10))


def test_the_environment_names_the_emulator(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """PUBSUB_EMULATOR_HOST goes before a region, so that a program is tried without changing its configuration."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", console.emulator)

    async def send() -> str:
        async with client(console.topic_name, region="europe-west2") as sender:
            return await sender.send_message(EventMessage(b"x"))

    assert asyncio.run(send())
