"""``events check`` on Pub/Sub leaves nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from events_gcp.endpoint import Endpoint
from events_gcp.scratch import delete_topics

from .console import PROJECT, Console


def test_a_trial_leaves_nothing_behind(console: Console) -> None:
    """The topics and subscriptions of the kit are deleted; those of others stay."""
    url = f"gcp://{PROJECT}/{console.topic_name}?emulator_host={console.emulator}"
    ran = subprocess.run(
        [sys.executable, "-m", "events_core.cli", "check", url, "--timeout", "30", "--rule", "R12", "--rule", "P1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    # The rules may fail on a busy machine.  What they created is deleted all the same.
    assert "R12" in ran.stdout, ran.stderr
    topics = [topic.name for topic in console.publisher.list_topics(project=f"projects/{PROJECT}")]
    subscriptions = [each.name for each in console.subscriber.list_subscriptions(project=f"projects/{PROJECT}")]
    assert console.topic in topics
    assert [name for name in (*topics, *subscriptions) if "/events-check-" in name] == []


def test_a_trial_that_made_nothing_asks_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A trial that created nothing does not connect to delete it."""
    endpoint = Endpoint("localhost:1", is_emulator=False, credentials_file="gone.json")
    asyncio.run(delete_topics(endpoint, set()))
    assert caplog.messages == []
