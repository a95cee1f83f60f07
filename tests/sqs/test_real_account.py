"""The tests for a real account, run on an emulator: they work, and leave nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import botocore.session

from .server import KEY, REGION, SECRET, Server

FOLDER = Path(__file__).parents[1] / "real_aws"


def run(environ: dict[str, str], *arguments: str) -> str:
    """Run the tests for a real account, with *environ* in place of what names a region, a server or credentials."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "EVENTS_TEST_", "PYTEST_"))
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *arguments, str(FOLDER)]
    ran = subprocess.run(command, env={**kept, **environ}, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_what_is_created_in_an_account_is_said_and_removed(server: Server) -> None:
    """Each queue and topic is named when it is created, and none of them is left, also of those of the backend."""
    access = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    told = run({"EVENTS_TEST_AWS_REGION": REGION, "AWS_ENDPOINT_URL": server.url, **access})
    created = told.count("\ncreating queue events-real-")
    assert created >= 6
    assert told.count("\nremoved events-real-") > created
    assert "NOT REMOVED" not in told
    session = botocore.session.get_session()
    session.set_credentials(KEY, SECRET)
    sqs = session.create_client("sqs", REGION, endpoint_url=server.url)
    sns = session.create_client("sns", REGION, endpoint_url=server.url)
    assert not sqs.list_queues(QueueNamePrefix="events-real-").get("QueueUrls")
    topics = [each["TopicArn"] for page in sns.get_paginator("list_topics").paginate() for each in page["Topics"]]
    assert not [each for each in topics if ":events-real-" in each]


def test_without_a_region_all_of_them_are_skipped() -> None:
    """Without EVENTS_TEST_AWS_REGION no test touches an account."""
    told = run({})
    assert "EVENTS_TEST_AWS_REGION names no region" in told
    assert "passed" not in told


def test_without_credentials_all_of_them_are_skipped(tmp_path: Path) -> None:
    """A region alone is not enough; the reason says what is missing."""
    nobody = {
        "HOME": str(tmp_path),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        # Where this machine is one of AWS, its own role must not be used.
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    told = run({"EVENTS_TEST_AWS_REGION": REGION, **nobody})
    assert "no credentials: " in told
    assert "passed" not in told
    assert "creating" not in told
