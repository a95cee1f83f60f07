"""The place for a trial, such as ``events check``."""

from __future__ import annotations

import asyncio
from pathlib import Path

from events_acme import AcmeClient
from events_core import EventConfig, EventMessage


def test_a_trial_leaves_nothing(tmp_path: Path) -> None:
    """It uses a folder next to the configured one, which is not even created."""
    config = EventConfig("orders", options={"path": str(tmp_path / "spool"), "subscription": "s"}, backend="acme")

    async def use(config: EventConfig) -> None:
        async with AcmeClient(config) as client:
            await client.send_message(EventMessage(b"x"))

    with AcmeClient.scratch(config) as trial:
        assert trial is not None
        asyncio.run(use(trial))
        assert not (tmp_path / "spool").exists()
    assert list(tmp_path.iterdir()) == []
