"""Files in the folders that are no messages."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from events_acme import AcmeClient
from events_core import EventConfig, EventMessage, ReceivedMessage


def client(path: Path) -> AcmeClient:
    return AcmeClient(EventConfig("orders", options={"path": str(path), "subscription": "billing"}, backend="acme"))


async def send(path: Path, *texts: str) -> None:
    async with client(path) as orders:
        await orders.send_messages(map(EventMessage.from_string, texts))


async def receive(path: Path, count: int) -> list[ReceivedMessage]:
    received: list[ReceivedMessage] = []
    async with client(path) as orders, await orders.subscribe() as receiver:
        while len(received) < count and (some := await receiver.receive_messages(count, timeout=60)):
            received += some
            await receiver.acknowledge_messages(some)
    return received


@pytest.mark.parametrize("content", [b"", b"{", b"3\nx", b"\xff\nx"])
def test_a_damaged_message_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    """A warning names it, the file stays, and both older and newer messages come."""
    asyncio.run(send(tmp_path, "old", "bad", "new"))
    bad = sorted((tmp_path / "orders" / "billing").iterdir())[1]
    bad.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        received = asyncio.run(receive(tmp_path, 2))
    assert [(message.data, message.delivery_attempt) for message in received] == [(b"old", 1), (b"new", 1)]
    assert [path.name for path in bad.parent.iterdir()] == [f"{bad.name}.damaged"]
    assert bad.name in caplog.text


def test_a_message_that_cannot_be_read_keeps_none_from_coming(tmp_path: Path) -> None:
    """The other messages come, although one file is unreadable."""
    asyncio.run(send(tmp_path, "old", "bad", "new"))
    bad = sorted((tmp_path / "orders" / "billing").iterdir())[1]
    bad.unlink()
    bad.mkdir()
    assert [message.data for message in asyncio.run(receive(tmp_path, 2))] == [b"old", b"new"]


def test_a_file_next_to_the_subscriptions_is_none(tmp_path: Path) -> None:
    """A note in a topic's folder does not stop its senders."""
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "README").touch()
    asyncio.run(send(tmp_path, "x"))
    assert [message.data for message in asyncio.run(receive(tmp_path, 1))] == [b"x"]
