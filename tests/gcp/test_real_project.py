"""The tests for a real project, run on the emulator: they work, and leave nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

from .console import Console

FOLDER = Path(__file__).parents[1] / "real_gcp"


def run(environ: dict[str, str], *arguments: str) -> str:
    """Run the tests for a real project, with *environ* in place of what names a project or credentials."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EVENTS_TEST_", "PYTEST_"))}
    kept.pop("PUBSUB_EMULATOR_HOST", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *arguments, str(FOLDER)]
    ran = subprocess.run(command, env={**kept, **environ}, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_what_is_created_in_a_project_is_said_and_removed(console: Console) -> None:
    """Each topic and subscription is named when it is created, and is gone at the end."""
    project = f"p-{uuid.uuid4().hex}"
    told = run({"EVENTS_TEST_PROJECT": project, "PUBSUB_EMULATOR_HOST": console.emulator})
    created = told.count(f"\ncreating projects/{project}/")
    assert created >= 16
    assert told.count(f"\nremoved projects/{project}/") == created
    assert [*console.publisher.list_topics(project=f"projects/{project}")] == []
    assert [*console.subscriber.list_subscriptions(project=f"projects/{project}")] == []


def test_without_a_project_all_of_them_are_skipped() -> None:
    """Without EVENTS_TEST_PROJECT no test touches a project."""
    told = run({})
    assert "EVENTS_TEST_PROJECT names no project" in told
    assert "passed" not in told


def test_without_credentials_all_of_them_are_skipped(tmp_path: Path) -> None:
    """A project alone is not enough; the reason says what is missing."""
    nobody = {
        "HOME": str(tmp_path),
        "CLOUDSDK_CONFIG": str(tmp_path),
        "GOOGLE_APPLICATION_CREDENTIALS": "",
        # Where this machine is one of Google's, its own account must not be used.
        "NO_GCE_CHECK": "true",
    }
    told = run({"EVENTS_TEST_PROJECT": "events-test", **nobody})
    assert "no credentials: " in told
    assert "passed" not in told
    assert "creating" not in told
