"""``events check`` on Pub/Sub leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

from .console import PROJECT, Console


def test_a_trial_leaves_nothing_behind(console: Console) -> None:
    """Neither the topics nor the subscriptions that the kit made; others' stay."""
    url = f"gcp://{PROJECT}/{console.topic_name}?emulator_host={console.emulator}"
    ran = subprocess.run(
        [sys.executable, "-m", "events_core.cli", "check", url, "--rule", "R12", "--rule", "P1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    topics = [topic.name for topic in console.publisher.list_topics(project=f"projects/{PROJECT}")]
    subscriptions = [each.name for each in console.subscriber.list_subscriptions(project=f"projects/{PROJECT}")]
    assert console.topic in topics
    assert [name for name in (*topics, *subscriptions) if "/events-check-" in name] == []
