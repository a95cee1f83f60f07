"""A trial, such as ``events check``, has a place of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from events_acme import AcmeClient
from events_core import EventConfig, EventMessage


def test_a_trial_leaves_nothing(tmp_path: Path) -> None:
    """It happens in a folder beside the configured one, which is not even made."""
    config = EventConfig("orders", options={"path": str(tmp_path / "spool"), "subscription": "s"}, backend="acme")

    async def use(config: EventConfig) -> None:
        async with AcmeClient(config) as client:
            await client.send_message(EventMessage(b"x"))

    with AcmeClient.scratch(config) as trial:
        assert trial is not None
        asyncio.run(use(trial))
        assert not (tmp_path / "spool").exists()
    assert list(tmp_path.iterdir()) == []
