"""An emulator that is killed and started again, without its former state."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from events_core import EventMessage, EventReceiver

from .console import client
from .servers import Missing, program, reserved_address


def gcloud(address: str, folder: Path) -> AbstractContextManager[str]:
    command = f"gcloud beta emulators pubsub start --host-port={address} --data-dir={folder}"
    return program(command.split(), address, folder / "log", [signal.SIGKILL])


async def take(receiver: EventReceiver) -> bytes:
    message = await receiver.receive_message(300)
    assert message is not None
    await receiver.acknowledge(message)
    return message.data


def test_an_emulator_that_was_killed_is_used_again(tmp_path: Path) -> None:
    """F1, Q2: with create=all, a waiting receiver gets messages from the new emulator, and nothing raises."""

    async def survive(address: str) -> None:
        options = {"emulator_host": address, "subscription": "billing", "create": "all"}
        async with client(**options) as both:
            first = gcloud(address, tmp_path)
            await asyncio.to_thread(first.__enter__)
            try:
                receiver = await both.subscribe()
                await both.send_message(EventMessage(b"before"))
                assert await take(receiver) == b"before"
            finally:
                await asyncio.to_thread(first.__exit__, None, None, None)
            waiting = asyncio.create_task(take(receiver))
            second = gcloud(address, tmp_path)
            await asyncio.to_thread(second.__enter__)
            try:
                await both.send_message(EventMessage(b"after"))
                assert await waiting == b"after"
                await receiver.close()
            finally:
                await asyncio.to_thread(second.__exit__, None, None, None)

    try:
        with reserved_address() as address:
            asyncio.run(asyncio.wait_for(survive(address), 400))
    except Missing as reason:
        if "gcp" in os.environ.get("EVENTS_TEST_REQUIRE", "").split(","):
            raise
        pytest.skip(f"no Pub/Sub emulator of this machine: {reason}")
